"""A store that does not answer ends a job in time, wherever it is met: in the runner, in preflight, on any worker."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster

from jobs import preflight, runner, storage
from jobs.conditional import PROBE
from jobs.errors import StorageStalledError
from jobs.local_s3 import LocalS3
from jobs.spec import JobSpec
from jobs.storage.tries import stall_seconds
from jobs.storage_limits import limit_storage_of_workers
from tests.conftest import spec_of
from tests.s3_proxy import Rule, S3Proxy

CSV = b"x,y\n" + b"".join(b"%d,%d\n" % (i, 3 * i + i % 2) for i in range(40))
# What is shown is that it ends: without a deadline, after 21 minutes or never.
LONGEST_S = 60.0


@pytest.fixture
def proxy(s3_server: LocalS3) -> Iterator[S3Proxy]:
    with S3Proxy(s3_server) as proxy:
        yield proxy


@pytest.fixture
def job(s3: str) -> JobSpec:
    storage.write_bytes(f"{s3}/data.csv", CSV)
    # Longer than an answer takes on a busy machine, on which a cluster starts beside.
    more: dict[str, Any] = {"run_id": "r", "storage": {"stall_seconds": 4}}
    return spec_of("linear_regression", {"target": "y"}, f"{s3}/data.csv", f"{s3}/runs", **more)


def test_the_deadline_reaches_workers_that_are_there_and_those_that_come(tmp_path: Path) -> None:
    options: dict[str, Any] = {"threads_per_worker": 1, "host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(n_workers=1, **options) as cluster, Client(cluster) as client:
        limit_storage_of_workers(client, 12.5)
        cluster.scale(2)
        client.wait_for_workers(2, timeout=60)
        assert list(client.run(stall_seconds).values()) == [12.5, 12.5]
    assert stall_seconds() == 300


@pytest.mark.parametrize(
    ("rule", "place"),
    [
        (Rule("silent", key="manifest.json"), "manifest.json"),
        (Rule("silent", method="GET", key="data.csv"), "data.csv"),
        (Rule("trickling", part="head", key="prefix"), "data.csv"),
        (Rule("silent", method="PUT", key=PROBE), PROBE),
    ],
    ids=["manifest", "input", "listing", "output"],
)
def test_preflight_ends(job: JobSpec, proxy: S3Proxy, rule: Rule, place: str) -> None:
    proxy.add(rule)
    begin = time.monotonic()
    with pytest.raises(StorageStalledError, match=rf"{place}.*less than 64 KiB moved in 4 s"):
        preflight.check(job)
    assert proxy.n_struck(rule)
    assert time.monotonic() - begin < LONGEST_S


def test_a_run_whose_worker_gets_no_answer_ends(job: JobSpec, proxy: S3Proxy) -> None:
    # The runner looks at the header; a worker reads the rows, in a range of the same object.
    rule = proxy.add(Rule("silent", method="GET", key="data.csv", first=2))
    begin = time.monotonic()
    with pytest.raises(StorageStalledError, match=r"data.csv: less than 64 KiB moved in 4 s") as caught:
        runner.run(job, n_workers=1)
    assert proxy.n_struck(rule)
    assert caught.value.exit_code == 75
    assert time.monotonic() - begin < LONGEST_S
