"""A run that is killed at any moment and run again ends as one manifest with the same metrics."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from distributed import Client, wait

from jobs import storage
from jobs.artifacts import Manifest, read_manifest
from jobs.errors import StorageMissingError
from jobs.job import workers_of
from jobs.local_s3 import LocalS3
from tests.kills import Place, kill, write_job
from tests.s3_proxy import S3Proxy
from tests.s3_reader import Reader

# `python -m tests.kills` makes more of them, at other moments.
N_KILLS, SEED = 20, 0


@pytest.fixture
def job_file(s3: str, tmp_path: Path) -> Path:
    """A linear regression on a small table in S3."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2000, 4))
    columns = {f"x{i}": features[:, i] for i in range(4)}
    target = features @ [1.0, -2.0, 0.5, 3.0] + rng.normal(size=2000)
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table({**columns, "y": target}), buffer)
    storage.write_bytes(f"{s3}/data.parquet", buffer.getvalue().to_pybytes())
    path = tmp_path / "job.yaml"
    content = {
        "pipeline": "linear_regression",
        "params": {"target": "y"},
        "input": f"{s3}/data.parquet",
        "output": f"{s3}/runs",
    }
    path.write_text(yaml.safe_dump(content))
    return path


def start(job_file: Path, run_id: str, scheduler: str | None, *more: str) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DASK_")}
    if scheduler:
        environment["DASK_SCHEDULER_ADDRESS"] = scheduler
    command = [sys.executable, "-m", "jobs.cli", "run", str(job_file), "--run-id", run_id, *more]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )


def finish(job_file: Path, run_id: str, scheduler: str | None, *more: str) -> None:
    process = start(job_file, run_id, scheduler, *more)
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 0, errors.decode()


def run_of(job_file: Path, run_id: str) -> tuple[str, Manifest]:
    url = f"{yaml.safe_load(job_file.read_text())['output']}/{run_id}"
    return url, read_manifest(url)


def files_under(url: str) -> list[storage.StoredFile]:
    try:
        return storage.list_files(url)
    except StorageMissingError:
        return []


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_runs_that_are_killed_at_random_and_around_their_commit_are_there_whole_or_not_at_all(
    s3_server: LocalS3, s3: str, client: Client, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    with S3Proxy(s3_server) as proxy, closing(Reader(s3_server)) as reader:
        found = kill(N_KILLS, SEED, Place(write_job(s3, tmp_path), client, proxy, reader))
    record_property("kills", str(found))
    assert found.faults == []
    assert found.n + found.ends["before its kill"] >= N_KILLS


def test_two_runs_that_race_leave_one_manifest_and_no_other_files(job_file: Path, client: Client) -> None:
    scheduler = client.scheduler.address
    racing = [start(job_file, "race", scheduler) for _ in range(2)]
    for process in racing:
        _, errors = process.communicate(timeout=90)
        assert process.returncode == 0, errors.decode()
    url, manifest = run_of(job_file, "race")
    standing = [file.url for file in storage.list_files(url)]
    assert standing == sorted([*(file.url for file in manifest.files), f"{url}/manifest.json"])


def test_a_killed_run_leaves_no_worker_of_its_local_cluster(job_file: Path) -> None:
    process = start(job_file, "orphans", None, "--workers", "1")
    family = psutil.Process(process.pid)
    deadline = time.monotonic() + 60
    while len(children := family.children(recursive=True)) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    finish(job_file, "orphans", None, "--workers", "1")


def busy_until(released: Path) -> None:
    deadline = time.monotonic() + 120
    while not released.exists() and time.monotonic() < deadline:
        time.sleep(0.05)


@pytest.fixture
def busy(client: Client, tmp_path: Path) -> Iterator[None]:
    """All workers have other work: a run that begins does not end."""
    released = tmp_path / "released"
    tasks = [client.submit(busy_until, released, workers=[address], pure=False) for address in workers_of(client)]
    yield
    released.touch()
    wait(tasks, timeout=30)


@pytest.mark.usefixtures("busy")
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_run_that_is_told_to_stop_cleans_up(sent: signal.Signals, code: int, job_file: Path, client: Client) -> None:
    process = start(job_file, "stopped", client.scheduler.address)
    runs = f"{yaml.safe_load(job_file.read_text())['output']}/stopped"
    deadline = time.monotonic() + 60
    while not files_under(runs):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, sent)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code, errors.decode()
    assert [file.url for file in files_under(runs)] == []
    assert errors.decode().strip().splitlines()[-1].startswith("error: ")
