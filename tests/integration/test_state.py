"""What the scheduler tells an autoscaler, of tasks that need, and workers that offer, different things."""

from __future__ import annotations

import json
import sys
import time
import types
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, Event, LocalCluster, Scheduler, SpecCluster, Worker

from controller.scaling import Decision, Demand, Group, Limits, decide
from controller.scaling import Worker as ScaledWorker
from jobs import runner
from jobs.job import Evaluation, Job
from jobs.listener import Listener
from jobs.pods import state
from jobs.spec import Params, parse
from jobs.spec import job as spec_job


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


def test_tasks_that_are_bound_to_a_worker_call_for_no_other(cluster: SpecCluster) -> None:
    with Client(cluster) as client:
        bound = client.submit(wait_for, "end", 1, workers=["c-gpu-worker-b"])
        free = client.submit(wait_for, "end", 2)
        told = until(cluster, lambda told: sum(worker["n_tasks"] for worker in told["workers"]) == 2)
        assert by_needs(told) == {"": 1}
        Event("end", client=client).set()
        client.gather([bound, free])


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


def test_where_nothing_was_told_progress_is_null(cluster: SpecCluster) -> None:
    assert asked(cluster)["progress"] is None


class Asking(Listener):
    """Asks for the state at each call until it says what the run has told just before."""

    def __init__(self, ask: Callable[[Callable[[Any], bool]], Any]) -> None:
        self.told: list[dict[str, Any]] = []
        self._ask = ask
        self._before: dict[str, Any] = {}

    def stage_started(self, name: str, index: int, n_stages: int) -> None:
        if self._before:
            expected = {**self._before, "percent": 100, "seconds_left": 0.0}
            self.told.append(self._ask(lambda told: told.items() >= expected.items()))
        self._before = {"stage": name, "index": index, "n_stages": n_stages}


def test_a_run_tells_its_stages_its_progress_and_at_last_its_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []

    def fit(job: Job, prepared: Any) -> None:
        for done in range(1, 4):
            time.sleep(1.1)
            job.progress(done, 10, "steps")
            seen.append(ask(lambda told, done=done: told["percent"] == 10 * done))

    module: Any = types.ModuleType("jobs.pipelines.slow")
    module.load = module.prepare = lambda job, *before: None
    module.fit = fit
    module.evaluate = lambda job, *before: Evaluation("r2", {"r2": 0.5}, [])
    module.write = lambda job, *before: None
    monkeypatch.setitem(spec_job.PIPELINES, "slow", Params)
    monkeypatch.setitem(sys.modules, "jobs.pipelines.slow", module)
    spec = parse({"pipeline": "slow", "input": "none", "output": str(tmp_path / "runs")})
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster:
        state.dask_setup(cluster.scheduler)

        def ask(holds: Callable[[Any], bool]) -> dict[str, Any]:
            told = until(cluster, lambda told: told["progress"] is not None and holds(told["progress"]))
            progress: dict[str, Any] = told["progress"]
            return progress

        listener = Asking(ask)
        with Client(cluster) as client:
            runner.run(spec, client=client, listener=listener)
            last = ask(lambda told: told["stage"] == "write" and told["percent"] == 100)
    assert [each["stage"] for each in listener.told] == list(runner.STAGES[:-1])
    assert [each["metrics"] for each in listener.told] == [{}] * 4
    assert all((each["stage"], each["index"], each["n_stages"], each["metrics"]) == ("fit", 2, 5, {}) for each in seen)
    assert seen[0]["seconds_left"] is None
    assert seen[2]["seconds_left"] == pytest.approx(7 * 1.1, rel=0.2)
    assert last == {
        "stage": "write",
        "index": 4,
        "n_stages": 5,
        "percent": 100,
        "seconds_left": 0.0,
        "metrics": {"r2": 0.5},
    }
