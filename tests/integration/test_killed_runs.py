"""Runs and servers that are killed (SIGKILL) at some moment: the next one removes the temporary folders they leave."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import jobs

# What stays for the next run to use, and is of one size however many runs there were.
KEPT = "daskyard-shards-"
DEADLINE_S = 120.0


def left_in(folder: Path) -> list[str]:
    """What is there, without what may stay."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(KEPT))


def start(command: list[object], temporary: Path, **more: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1", **more}
    environment.pop("DASK_TEMPORARY_DIRECTORY", None)
    return subprocess.Popen(list(map(str, command)), env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def kill_when(is_time: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    with process:
        deadline = time.monotonic() + DEADLINE_S
        while not is_time():
            assert process.poll() is None, "it ended before"
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.kill()


def wait_until_gone(text: str) -> None:
    """Workers, guards and servers end by themselves when their parent is gone."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if int(folder.name) != os.getpid() and text.encode() in (folder / "environ").read_bytes():
                    break
            except OSError:
                continue
        else:
            return
        time.sleep(0.1)
    raise AssertionError(f"{folder}: still runs")


@pytest.mark.slow
def test_killed_runs_leave_no_temporary_folder_beyond_the_next_run(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = "\n".join(f"{a:.3f},{b:.3f}" for a, b in rng.normal(size=(200, 2)))
    (tmp_path / "rows.csv").write_text("a,b\n" + rows)
    (tmp_path / "job.yaml").write_text(
        f"pipeline: kmeans\ninput: {{url: {tmp_path}/rows.csv}}\noutput: {tmp_path}/runs\nparams: {{n_clusters: 2}}\n"
    )
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    command = [sys.executable, "-m", "jobs.cli", "run", tmp_path / "job.yaml", "--workers", "1"]
    output = tmp_path / "runs"

    def has(pattern: str, folder: Path = temporary) -> Callable[[], bool]:
        def is_there() -> bool:
            try:
                return any(folder.glob(pattern))
            except FileNotFoundError:  # of a folder that was removed while it was looked into
                return False

        return is_there

    moments = [has("*"), has("*/**/worker-*"), has("daskyard-held-run-*"), has("**/attempts/**/spec.json", output)]
    n_left = 0
    for moment in moments:
        kill_when(moment, start(command, temporary))
        wait_until_gone(str(temporary))
        n_left += len(left_in(temporary))
    assert n_left > 0  # else nothing is tried here
    with start(command, temporary) as last:
        assert last.wait(DEADLINE_S) == 0
    wait_until_gone(str(temporary))
    assert left_in(temporary) == []


def test_killed_servers_leave_no_temporary_folder_beyond_the_next_one(tmp_path: Path) -> None:
    code = "from jobs.local_s3 import LocalS3\nwith LocalS3() as s3: s3.create_bucket('demo'); input()"
    command = [sys.executable, "-c", code]

    def serve() -> subprocess.Popen[bytes]:
        return start(command, tmp_path, PYTHONPATH=str(Path(jobs.__file__).parent.parent))

    def kill_with_its_guard(moment: str) -> list[Path]:
        """Return what the server has made elsewhere."""
        process = serve()
        with process:
            deadline = time.monotonic() + DEADLINE_S
            while not list(tmp_path.glob(moment)):
                assert time.monotonic() < deadline
                time.sleep(0.002)
            if moment.endswith("/data/*"):
                time.sleep(1)
            elsewhere = [Path(line) for file in tmp_path.glob("*/elsewhere.txt") for line in file.read_text().split()]
            guards = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            for guard in guards:
                os.kill(int(guard), signal.SIGKILL)
            process.kill()
        return elsewhere

    elsewhere: list[Path] = []
    for moment in ("daskyard-held-s3-*", "daskyard-held-s3-*/server.log", "daskyard-held-s3-*/data/*"):
        elsewhere += kill_with_its_guard(moment)
        wait_until_gone(str(tmp_path))
        assert left_in(tmp_path)
    assert elsewhere
    with start([sys.executable, "-c", code.replace("input()", "")], tmp_path) as last:
        assert last.wait(DEADLINE_S) == 0
    wait_until_gone(str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    assert not any(path.exists() for path in elsewhere)
