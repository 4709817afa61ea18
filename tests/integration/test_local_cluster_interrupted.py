"""An interrupt reaches the process that has the cluster, and the cluster ends with it, wherever it strikes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

STARTING = """
import asyncio, os, signal
from distributed import Nanny
from jobs import local_cluster
from jobs.cli import app, stops

class Struck(Nanny):
    async def start_unsafe(self):
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(60)

local_cluster.Nanny = Struck

def start():
    with local_cluster.started(1, 2**28, {}):
        pass

stops.heeded(start, app._error)
"""


def test_an_interrupt_as_the_cluster_starts_leaves_one_line_and_no_folder(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STARTING],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 130
    assert done.stderr.count("\n") == 1, done.stderr
    assert list(tmp_path.iterdir()) == []


MASKS = """
import json, os, psutil
from distributed import Client
from jobs import local_cluster

if __name__ == "__main__":
    with local_cluster.started(1, 2**28, {}) as cluster, Client(cluster) as client:
        [worker] = client.run(os.getpid).values()
        [helper] = [c.pid for c in psutil.Process().children() if "resource_tracker" in " ".join(c.cmdline())]
        states = [open(f"/proc/{pid}/status").read() for pid in (worker, helper, os.getpid())]
        print(json.dumps([state.split("SigBlk:")[1].split()[0] for state in states]))
"""


def test_processes_of_the_cluster_leave_a_terminals_signals_to_the_one_that_has_it(tmp_path: Path) -> None:
    """A terminal sends them to all; one that is still importing would show where, and who cleans up would be gone."""
    script = tmp_path / "masks.py"
    script.write_text(MASKS)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=True)
    worker, helper, own = map(blocked, json.loads(done.stdout))
    assert worker >= {signal.SIGINT, signal.SIGHUP}
    assert signal.SIGHUP in helper
    assert own == set()


def blocked(mask: str) -> set[int]:
    return {number for number in range(1, 65) if int(mask, 16) >> number - 1 & 1}
