"""A job whose scheduler lost its tasks ends; one that only takes long does not."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from distributed import Client, Scheduler, SpecCluster, wait

from jobs.cluster import connected
from jobs.errors import SpecError, WorkersLostError
from jobs.job import Job
from jobs.settings import seconds_of
from jobs.stall_watch import STALLED_AFTER, dead_ends, watched
from tests.conftest import JobFactory

# Of the setting, and a wait that a watch which is too eager would have ended by then.
LIMIT_S, LONG_S = 2.0, 6.0
# What a wait may take to end where it should.
PATIENCE_S = 60

pytestmark = pytest.mark.timeout(90)


@pytest.fixture(scope="module")
def cluster_client() -> Iterator[Client]:
    with connected(2) as client:
        yield client


@pytest.fixture
def own(cluster_client: Client) -> Iterator[Client]:
    """A watched client."""
    with dask.config.set({STALLED_AFTER: f"{LIMIT_S}s"}), watched(cluster_client):
        yield cluster_client


@pytest.fixture
def job(own: Client, job_factory: JobFactory, tmp_path: Path) -> Job:
    (tmp_path / "input.csv").write_text("a\n1\n")
    return job_factory("kmeans", {"n_clusters": 2}, {"url": str(tmp_path / "input.csv")}, client=own)


def double(x: int, **_: Any) -> int:
    return 2 * x


def slow(seconds: float, *_: Any) -> float:
    time.sleep(seconds)
    return seconds


def scheduler_of(client: Client) -> Scheduler:
    assert isinstance(client.cluster, SpecCluster)
    scheduler = client.cluster.scheduler
    assert isinstance(scheduler, Scheduler)
    return scheduler


def fail_on_graphs(client: Client, monkeypatch: pytest.MonkeyPatch, *, is_told: bool) -> None:
    """Have the scheduler fail on every graph, and tell its client or not."""

    async def update_graph(**_: Any) -> None:
        logging.getLogger("distributed.scheduler").error("Traceback\n  of a bug\nKeyError: no graph is taken today")
        if is_told:
            raise KeyError("no graph is taken today")

    monkeypatch.setitem(scheduler_of(client).stream_handlers, "update-graph", update_graph)


WAITS: dict[str, Callable[[Job], Any]] = {
    "job.map": lambda job: job.map(double, range(3)),
    "job.wait": lambda job: job.wait([job.client.submit(double, 1)]),
    "gather": lambda job: job.client.gather(job.client.map(double, range(1_500), pure=False)),
    "result": lambda job: job.client.submit(double, 2, pure=False).result(),
    "wait, then result": lambda job: [f.result() for f in wait(job.client.map(double, [3, 4], pure=False)).done],
    "dask": lambda job: dask.delayed(double)(5).compute(),
}


@pytest.mark.parametrize("how", WAITS)
def test_a_wait_ends_where_the_scheduler_lost_the_graph(job: Job, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_on_graphs(job.client, monkeypatch, is_told=False)
    start = time.monotonic()
    said = (
        r"nothing has led to .* for 2 s \(.* is unknown\); its log ends with: KeyError: no graph .* run the job again"
    )
    with pytest.raises(WorkersLostError, match=said):
        WAITS[how](job)
    assert time.monotonic() - start < PATIENCE_S


def test_what_the_scheduler_tells_of_ends_the_wait_without_the_watch(
    monkeypatch: pytest.MonkeyPatch, job_factory: JobFactory, tmp_path: Path
) -> None:
    (tmp_path / "input.csv").write_text("a\n1\n")
    with connected(1) as client:
        job = job_factory("kmeans", {"n_clusters": 2}, {"url": str(tmp_path / "input.csv")}, client=client)
        fail_on_graphs(client, monkeypatch, is_told=True)
        with pytest.raises(WorkersLostError, match="run the job again"):
            job.map(double, range(3))


def test_keys_that_wait_for_what_no_worker_does_end_the_wait() -> None:
    # Distributed puts a large keyword into the graph under its bare name: that of another call meets it there.
    with connected(1) as client, dask.config.set({STALLED_AFTER: f"{LIMIT_S}s"}), watched(client):
        for value in range(3):
            futures = client.map(double, range(3), new=np.full(20_000, value), pure=False)
            wait(futures, timeout=PATIENCE_S)
        with pytest.raises(WorkersLostError, match="it waits for new, which is processing"):
            client.gather(futures)


def test_only_the_keys_that_are_lost_fail(own: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    running = own.submit(slow, LONG_S, pure=False)
    after = own.submit(double, running, pure=False)
    while after.key not in scheduler_of(own).tasks:
        time.sleep(0.05)
    fail_on_graphs(own, monkeypatch, is_told=False)
    lost = own.map(double, range(5), pure=False)
    with pytest.raises(WorkersLostError, match=re.escape(lost[0].key.removesuffix("-0"))):
        own.gather(lost)
    assert {future.status for future in lost} == {"error"}
    assert after.result(timeout=PATIENCE_S) == 2 * LONG_S


def test_a_long_task_and_those_behind_it_are_waited_for(own: Client) -> None:
    first = own.map(slow, [LONG_S] * 2, pure=False)
    behind = own.map(slow, [0.0] * 20, [first] * 20, pure=False)
    assert own.gather(own.map(double, behind, pure=False)) == [0.0] * 20


def test_a_chain_of_short_tasks_is_waited_for(own: Client) -> None:
    link = own.submit(slow, 0.1, pure=False)
    for _ in range(int(LONG_S / 0.1)):
        link = own.submit(slow, 0.1, link, pure=False)
    assert link.result(timeout=PATIENCE_S) == 0.1


def test_tasks_that_wait_for_a_worker_to_come_are_waited_for(own: Client) -> None:
    gpu = own.submit(double, 1, resources={"GPU": 1}, pure=False)
    behind = own.submit(double, gpu, pure=False)
    time.sleep(LONG_S)
    assert {gpu.status, behind.status} == {"pending"}


@pytest.mark.parametrize("is_with_gil", [True, False], ids=["computes", "waits for storage"])
def test_a_runner_that_has_other_work_for_long_is_left_alone(own: Client, is_with_gil: bool) -> None:
    futures = own.map(double, range(50), pure=False)
    end = time.monotonic() + LONG_S
    if is_with_gil:
        n = 7**800_000
        while time.monotonic() < end:
            assert n * n > n  # which keeps the interpreter's lock, so that nothing else runs
    else:
        time.sleep(LONG_S)
    assert own.gather(futures) == [2 * x for x in range(50)]
    assert own.submit(double, 4, pure=False).result(timeout=PATIENCE_S) == 8


def test_many_keys_cost_a_bounded_look(own: Client) -> None:
    scheduler = scheduler_of(own)
    blockers = own.map(slow, [4.0] * 2, pure=False)
    futures = own.map(slow, [0.0] * 20_000, [blockers] * 20_000, pure=False)
    while futures[0].key not in scheduler.tasks:
        time.sleep(0.05)
    start = time.thread_time()
    assert dead_ends([future.key for future in futures[:1_000]], scheduler) == []
    assert time.thread_time() - start < 1
    for begin in range(0, len(futures), 100):  # Dask takes their number squared
        own.cancel(futures[begin : begin + 100])


@pytest.mark.parametrize("value", ["soon", 0, -1, "inf"])
def test_a_time_that_is_none_is_refused(value: object) -> None:
    with dask.config.set({STALLED_AFTER: value}), pytest.raises(SpecError, match=STALLED_AFTER):
        seconds_of(STALLED_AFTER)
