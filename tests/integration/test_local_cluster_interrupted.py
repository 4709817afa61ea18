"""An interrupt reaches the process that has the cluster, and the cluster ends with it, wherever it strikes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
from distributed import Client

from jobs import local_cluster

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


def test_processes_of_the_cluster_leave_an_interrupt_to_the_one_that_has_it() -> None:
    """A terminal sends it to all of them; one that is still importing would show where."""
    with local_cluster.started(1, 2**28, {}) as cluster, Client(cluster) as client:
        [worker] = client.run(os.getpid).values()
        processes = [worker, *(child.pid for child in psutil.Process(worker).children())]
        assert all(blocks_interrupts(pid) for pid in processes)
        assert not blocks_interrupts(os.getpid())
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()


def blocks_interrupts(pid: int) -> bool:
    [blocked] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigBlk:")]
    return bool(int(blocked.split()[1], 16) >> signal.SIGINT - 1 & 1)
