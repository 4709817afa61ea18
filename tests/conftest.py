"""Fixtures that run the real thing: a Dask cluster, an S3 server, jobs."""

from __future__ import annotations

import faulthandler
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from distributed import Client, LocalCluster

from jobs.artifacts import Attempt
from jobs.job import Job
from jobs.listener import Listener
from jobs.local_s3 import LocalS3
from jobs.spec import JobSpec, parse

JobFactory = Callable[..., Job]

# What a test that its timeout has ended may take to close what it opened.
_TO_CLOSE_S = 120
_STDERR = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    """Keep the standard error that tests do not capture."""
    config.stash[_STDERR] = os.dup(2)


def _end_after(seconds: float, config: pytest.Config) -> None:
    faulthandler.dump_traceback_later(seconds, exit=True, file=config.stash[_STDERR])


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> None:
    """End the process, with each thread's stack, where the timeout cannot: native code does not heed its signal."""
    _end_after(settings.timeout + _TO_CLOSE_S, item.config)


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_cancel_timer() -> None:
    """Watch no longer."""
    faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(trylast=True)
def pytest_exception_interact(node: pytest.Item | pytest.Collector) -> None:
    """Watch the fixtures of a test that failed as well: its timeout is over, and pytest ends every watch."""
    if isinstance(node, pytest.Item):
        _end_after(_TO_CLOSE_S, node.config)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take long, so that at the end no process waits for another."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[LocalS3]:
    """A real S3 server on loopback, with its endpoint and credentials in the environment."""
    with LocalS3() as server:
        yield server


@pytest.fixture
def s3(s3_server: LocalS3) -> Iterator[str]:
    """URL of a bucket of the test's own; each takes room on the server's disk, which has it back afterwards."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    yield s3_server.create_bucket(name)
    # A test may have removed it.
    with suppress(ClientError), s3_server._client() as client:
        client.delete_bucket(Bucket=name)


@pytest.fixture(scope="session")
def client(s3_server: LocalS3) -> Iterator[Client]:
    """A client of two worker processes of one thread each; they know the S3 server."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        yield client


def files_below(output: str | Path) -> dict[str, bytes]:
    """Path to content of all files of runs; the probe of conditional writes stays, and belongs to none."""
    files = (path for path in Path(output).rglob("*") if path.is_file() and "_daskyard" not in path.parts)
    return {str(path): path.read_bytes() for path in files}


def spec_of(pipeline: str, params: dict[str, Any], input: Any, output: str, **more: Any) -> JobSpec:
    """Parse a job spec from its parts."""
    return parse({"pipeline": pipeline, "params": params, "input": input, "output": output, **more})


@pytest.fixture
def job_factory(tmp_path: Any, client: Client) -> JobFactory:
    """Make the Job of a pipeline by hand, to call its stages one by one."""

    def make(
        pipeline: str, params: dict[str, Any], input: Any, output: str | None = None, client: Client = client
    ) -> Job:
        output = output or str(tmp_path / "runs")
        spec = spec_of(pipeline, params, input, output)
        return Job(spec, client, Attempt(f"{output}/{spec.name}"), Listener())

    return make
