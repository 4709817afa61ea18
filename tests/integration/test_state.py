"""What the scheduler tells an autoscaler, of tasks that need, and workers that offer, different things."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from distributed import Client, Event, Scheduler, SpecCluster, Worker

from controller.scaling import Decision, Demand, Group, Limits, decide
from controller.scaling import Worker as ScaledWorker
from jobs.pods import state


@pytest.fixture
def cluster() -> Iterator[SpecCluster]:
    """One worker of two threads, and one of one thread that offers a GPU."""
    scheduler = {"cls": Scheduler, "options": {"dashboard_address": "127.0.0.1:0"}}
    workers = {
        "c-cpu-worker-a": {"cls": Worker, "options": {"nthreads": 2}},
        "c-gpu-worker-b": {"cls": Worker, "options": {"nthreads": 1, "resources": {"GPU": 1}}},
    }
    with SpecCluster(workers=workers, scheduler=scheduler) as cluster:
        state.dask_setup(cluster.scheduler)
        yield cluster


def asked(cluster: SpecCluster) -> dict[str, Any]:
    with urllib.request.urlopen(
        f"http://{cluster.scheduler.http_server.address}:{port(cluster)}{state.PATH}"
    ) as answer:
        assert answer.headers["Content-Type"].startswith("application/json")
        told: dict[str, Any] = json.load(answer)
        return told


def port(cluster: SpecCluster) -> int:
    return int(cluster.scheduler.http_server.port)


def until(cluster: SpecCluster, holds: Any) -> dict[str, Any]:
    deadline = time.monotonic() + 10
    while not holds(told := asked(cluster)):
        assert time.monotonic() < deadline, told
        time.sleep(0.02)
    return told


def by_needs(told: dict[str, Any]) -> dict[str, int]:
    return {"+".join(demand["needs"]): demand["n_tasks"] for demand in told["demands"]}


def wait_for(name: str, i: int) -> None:
    Event(name).wait(30)


def test_an_idle_cluster_has_no_demand_and_workers_that_idle_longer_and_longer(cluster: SpecCluster) -> None:
    told = asked(cluster)
    assert told["demands"] == []
    assert {w["name"]: (w["offers"], w["n_threads"]) for w in told["workers"]} == {
        "c-cpu-worker-a": ({}, 2),
        "c-gpu-worker-b": ({"GPU": 1.0}, 1),
    }
    time.sleep(0.2)
    assert all(0.2 <= worker["idle_s"] < 10 for worker in asked(cluster)["workers"])


def test_tasks_are_told_by_what_they_need_whether_they_run_wait_or_find_no_worker(cluster: SpecCluster) -> None:
    with Client(cluster) as client:
        event = Event("go", client=client)
        plain = client.map(lambda i: wait_for("go", i), range(50), pure=False)
        gpu = client.map(lambda i: wait_for("go", i), range(7), resources={"GPU": 1}, pure=False)
        none = client.map(lambda i: wait_for("go", i), range(3), resources={"LICENCE": 1}, pure=False)
        told = until(cluster, lambda told: by_needs(told) == {"": 50, "GPU": 7, "LICENCE": 3})
        assert all(worker["n_tasks"] > 0 and worker["idle_s"] == 0 for worker in told["workers"])
        client.cancel(none)
        event.set()
        client.gather([*plain, *gpu])
        until(cluster, lambda told: told["demands"] == [])


def test_of_many_tasks_a_part_is_looked_at_and_all_are_counted(
    cluster: SpecCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "_N_LOOKED_AT", 5)
    with Client(cluster) as client:
        event = Event("go", client=client)
        futures = client.map(lambda i: wait_for("go", i), range(500), pure=False)
        until(cluster, lambda told: by_needs(told) == {"": 500})
        event.set()
        client.gather(futures)


def test_what_is_told_is_what_scaling_decides_by(cluster: SpecCluster) -> None:
    with Client(cluster) as client:
        event = Event("go", client=client)
        futures = client.map(lambda i: wait_for("go", i), range(4), resources={"GPU": 1}, pure=False)
        told = until(cluster, lambda told: by_needs(told) == {"GPU": 4})
        event.set()
        client.gather(futures)
    groups = [
        Group(
            name,
            Limits(1, 4),
            worker["offers"],
            worker["n_threads"],
            [ScaledWorker(worker["name"], worker["n_tasks"], worker["idle_s"])],
        )
        for name in ("cpu", "gpu")
        for worker in told["workers"]
        if f"-{name}-" in worker["name"]
    ]
    demands = [Demand(demand["needs"], demand["n_tasks"], 60.0) for demand in told["demands"]]
    assert decide(groups, demands, 0.0) == [Decision("cpu", 1), Decision("gpu", 4)]
