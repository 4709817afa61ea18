"""`daskyard run --retries` while the scheduler of a real cluster is killed and comes back at the same address."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from jobs.artifacts import read_manifest
from tests.processes import Processes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Processes]:
    processes = Processes(tmp_path)
    start(processes)
    yield processes
    processes.stop()


def start(cluster: Processes) -> None:
    cluster.start_scheduler()
    cluster.start_worker()


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    """A job whose fit takes some seconds."""
    generator = np.random.default_rng(0)
    pairs = [(user, item) for user in range(60) for item in range(30) if generator.random() < 0.4]
    frame = pd.DataFrame(pairs, columns=["user_id", "item_id"])
    frame["rating"] = 1.0 + (frame.user_id % 3) + (frame.item_id % 2)
    frame["timestamp"] = np.arange(len(frame))
    frame.to_parquet(tmp_path / "ratings.parquet")
    job = {
        "pipeline": "recommender",
        "input": str(tmp_path / "ratings.parquet"),
        "output": str(tmp_path / "runs"),
        "run_id": "mine",
        "params": {"rank": 4, "n_iterations": 60},
    }
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    return path


class Run:
    """`daskyard run` as a process; its standard error is read while it goes."""

    def __init__(self, job_file: Path, address: str, *more: str) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("DASK_")}
        environment["DASK_SCHEDULER_ADDRESS"] = address
        command = [sys.executable, "-m", "jobs.cli", "run", str(job_file), *more]
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))

    def wait_for(self, text: str, timeout_s: float = 90.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not any(text in line for line in self.lines):
            assert self.process.poll() is None, self.lines
            assert time.monotonic() < deadline, self.lines
            time.sleep(0.05)

    def finish(self, timeout_s: float = 120.0) -> int:
        code = self.process.wait(timeout=timeout_s)
        self._reader.join(timeout=10)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
        return code


def run_folder(job_file: Path) -> Path:
    return job_file.parent / "runs" / "mine"


def test_without_retries_a_lost_scheduler_is_exit_code_75_and_one_line(cluster: Processes, job_file: Path) -> None:
    run = Run(job_file, cluster.address)
    run.wait_for("3/5 fit")
    cluster.kill_scheduler()
    start = time.monotonic()
    assert run.finish() == 75, run.lines
    assert time.monotonic() - start < 20
    assert re.match(r"error: .*scheduler.*; run the job again$", run.lines[-1]), run.lines
    assert not any("Traceback" in line for line in run.lines), "\n".join(run.lines)
    assert not any(path.is_file() for path in run_folder(job_file).rglob("*"))


def test_with_retries_the_run_is_committed_when_the_scheduler_is_back(cluster: Processes, job_file: Path) -> None:
    run = Run(job_file, cluster.address, "--retries", "3")
    run.wait_for("3/5 fit")
    cluster.kill_scheduler()
    run.wait_for("try 1 of 4 failed: ")
    start(cluster)
    assert run.finish() == 0, run.lines
    [told] = [line for line in run.lines if " of 4 failed: " in line]
    assert re.search(r"try 1 of 4 failed: .*scheduler.*; again in [45] s$", told), told
    assert not any("Traceback" in line for line in run.lines), "\n".join(run.lines)
    manifest = read_manifest(str(run_folder(job_file)))
    assert [path.name for path in (run_folder(job_file) / "attempts").iterdir()] == [manifest.attempt]


def test_a_run_told_to_stop_between_its_tries_stops(cluster: Processes, job_file: Path) -> None:
    run = Run(job_file, cluster.address, "--retries", "3")
    run.wait_for("3/5 fit")
    cluster.kill_scheduler()
    run.wait_for("try 1 of 4 failed: ")
    run.process.send_signal(signal.SIGTERM)
    assert run.finish(timeout_s=10) == 75, run.lines
    assert run.lines[-1] == "error: told to stop by SIGTERM; run the job again"
    assert sum(" of 4 failed: " in line for line in run.lines) == 1
    assert not any(path.is_file() for path in run_folder(job_file).rglob("*"))
