"""The controller against an API server in memory, with a world that stands in for operator, kubelet and Job controller.

The real ones are in tests/e2e; here each of the controller's calls can be its last, which takes many lives.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from kubernetes.client import ApiClient
from prometheus_client import generate_latest

from controller.api import Api, Object
from controller.controller import Controller
from controller.schedulers import Unreachable
from tests.api_server import Store, api_server

TEAM = "team"
WRITES = ("create", "patch", "delete")


def container(name: str) -> Object:
    return {"name": name, "image": "jobs:1", "resources": {"limits": {"memory": "1Gi"}}}


def runtime(name: str = "default") -> Object:
    pod = {"spec": {"containers": [container("main")]}}
    return {
        "metadata": {"name": name, "namespace": TEAM},
        "spec": {
            "scheduler": {**pod, "service": {"selector": {"dask.org/cluster-name": "$(CLUSTER)"}}},
            "runner": pod,
            "hardware": {"cpu": pod, "gpu": {**pod, "offers": {"GPU": 1}}},
            "networkPolicies": [{"suffix": "worker", "spec": {"podSelector": {}}}],
        },
    }


def mljob(name: str = "bio", **changes: Any) -> Object:
    spec = {
        "pipeline": "kmeans",
        "params": {"n_clusters": 8},
        "input": "s3://demo/data/bio",
        "output": "s3://demo/runs",
        "workers": {"cpu": {"min": 1, "max": 4}},
        "runtime": "default",
        **changes,
    }
    return {
        "apiVersion": "daskyard.dev/v1alpha1",
        "kind": "MLJob",
        "metadata": {"name": name, "namespace": TEAM},
        "spec": spec,
    }


# --- the world ------------------------------------------------------------------------------------------------------


class World:
    """Makes of objects what a cluster would: pods that become ready, runners that end as a script says.

    `ends` has for each attempt what the runner's container says as its last word, and its exit code.
    """

    def __init__(self, store: Store, ends: list[tuple[int, Object]]) -> None:
        self.store, self.ends = store, ends
        self.is_stopped = threading.Event()
        self.holds_runner = threading.Event()
        self.replicas: dict[str, int] = {}
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self.is_stopped.wait(0.01):
            for group in self.store.of("DaskWorkerGroup"):
                self._make_workers(group)
            for cluster in self.store.of("DaskCluster"):
                if "daskyard.dev/job" in cluster["metadata"]["labels"]:
                    self._make_scheduler(cluster)
            for job in self.store.of("Job"):
                self._run_job(job)

    def _make_scheduler(self, cluster: Object) -> None:
        name = f"{cluster['metadata']['name']}-scheduler"
        labels = {**cluster["metadata"]["labels"], "dask.org/cluster-name": cluster["metadata"]["name"]}
        metadata = {"name": name, "namespace": TEAM, "labels": labels, "ownerReferences": _owner(cluster)}
        self._make({"kind": "Deployment", "metadata": metadata, "status": {}})
        deployment = self.store.get("Deployment", name)
        if deployment is not None:
            self._make_pod(deployment, name, "scheduler")

    def _make_workers(self, group: Object) -> None:
        """Make what is missing when `replicas` has changed, as the operator does, and not else."""
        name, replicas = group["metadata"]["name"], group["spec"]["worker"]["replicas"]
        if self.replicas.get(group["metadata"]["uid"]) == replicas:
            return
        self.replicas[group["metadata"]["uid"]] = replicas
        labels = {**group["metadata"]["labels"], "dask.org/workergroup-name": name, "dask.org/cluster-name": "c"}
        there = [
            d for d in self.store.of("Deployment") if d["metadata"]["labels"].get("dask.org/workergroup-name") == name
        ]
        assert len(there) <= replicas, f"{name}: the operator would have to choose"
        for _ in range(replicas - len(there)):
            worker = f"{name}-worker-{self.store.n_version}"
            metadata = {"name": worker, "namespace": TEAM, "labels": labels, "ownerReferences": _owner(group)}
            made = self._make({"kind": "Deployment", "metadata": metadata, "status": {}})
            if made is not None:
                self._make_pod(made, worker, "worker")

    def _make_pod(self, owner: Object, name: str, role: str, status: Object | None = None) -> None:
        if self.store.get("Pod", name) is not None:
            return
        labels = {**owner["metadata"]["labels"], "app.kubernetes.io/component": role}
        owners = _owner(owner)
        if owner["kind"] == "Deployment":  # a ReplicaSet stands between them
            labels["pod-template-hash"] = "1"
            owners = [{**owners[0], "kind": "ReplicaSet", "name": f"{owner['metadata']['name']}-1"}]
        metadata = {"name": name, "namespace": TEAM, "labels": labels, "ownerReferences": owners}
        ready = {"conditions": [{"type": "Ready", "status": "True"}]}
        spec = owner["spec"]["template"]["spec"] if owner["kind"] == "Job" else {}
        self._make({"kind": "Pod", "metadata": metadata, "spec": spec, "status": status or ready})

    def _make(self, made: Object) -> Object | None:
        try:
            return self.store.create(made["kind"], made)
        except KeyError:
            return None

    def _run_job(self, job: Object) -> None:
        if job.get("status", {}).get("conditions"):
            return
        name, labels = job["metadata"]["name"], job["metadata"]["labels"]
        attempt = int(labels["daskyard.dev/attempt"])
        is_log_job = name.endswith("-logs")
        started = {"initContainerStatuses": [{"name": "preflight", "state": {"terminated": {"exitCode": 0}}}]}
        self._make_pod(job, f"{name}-x", "logs" if is_log_job else "runner", {} if is_log_job else started)
        if not is_log_job and (self.holds_runner.is_set() or self._lacks_workers(attempt)):
            return
        code, said = (0, {}) if is_log_job else self.ends[min(attempt, len(self.ends)) - 1]
        ended = {"name": "main", "state": {"terminated": {"exitCode": code, "message": json.dumps(said)}}}
        condition = {"type": "Failed" if code else "Complete", "status": "True"}
        try:
            self.store.patch("Pod", TEAM, f"{name}-x", {"status": {"containerStatuses": [ended]}})
            self.store.patch("Job", TEAM, name, {"status": {"conditions": [condition]}})
        except KeyError:
            pass  # deleted in the meantime

    def _lacks_workers(self, attempt: int) -> bool:
        pods = [pod["metadata"]["labels"] for pod in self.store.of("Pod")]
        of_attempt = [labels for labels in pods if labels["daskyard.dev/attempt"] == str(attempt)]
        return not any(labels["app.kubernetes.io/component"] == "worker" for labels in of_attempt)


def _owner(found: Object) -> list[Object]:
    metadata = found["metadata"]
    return [{"uid": metadata["uid"], "name": metadata["name"], "kind": found["kind"], "controller": True}]


COMMITTED = (0, {"outcome": "committed", "run_url": "s3://demo/runs/bio", "metrics": {"inertia": 7.5}})
LOST = (75, {"outcome": "failed", "error": "WorkersLostError", "message": "one was lost"})
WRONG = (2, {"outcome": "failed", "error": "InputError", "message": "a.csv: no column y"})


@contextmanager
def world(*ends: tuple[int, Object]) -> Iterator[tuple[Store, ApiClient, World]]:
    with api_server() as (store, client):
        store.create("MLRuntime", runtime())
        made = World(store, list(ends))
        made.thread.start()
        try:
            yield store, client, made
        finally:
            made.is_stopped.set()
            made.thread.join(5)


def nobody(namespace: str, service: str) -> Object:
    raise Unreachable("nobody is there")


@contextmanager
def controller(client: ApiClient, ask: Any = nobody, api: Api | None = None, **options: Any) -> Iterator[Controller]:
    made = Controller(api or Api(client), ask=ask, **options)
    made.start_mirrors()
    made.lead()
    try:
        yield made
    finally:
        made.stop()


def wait(what: str, condition: Callable[[], Any], timeout_s: float = 20) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s"
        time.sleep(0.01)
    return found


def status(store: Store, name: str = "bio") -> Object:
    return dict((store.get("MLJob", name) or {}).get("status") or {})


def is_settled(store: Store, phase: str, name: str = "bio") -> bool:
    """Whether the job has ended so, and only its runner and its file are left."""
    said = status(store, name)
    attempts = said.get("attempts", [])
    is_logged = bool(attempts) and bool(attempts[-1].get("logs"))
    kinds = {kind for kind, _, n in store.objects if n.startswith(f"{name}-")}
    return (
        said.get("phase") == phase
        and is_logged
        and kinds <= {"Job", "Pod", "ConfigMap", "NetworkPolicy"}
        and not [n for kind, _, n in store.objects if n.endswith("-logs")]
    )


def conditions(store: Store, name: str = "bio") -> dict[str, tuple[str, str]]:
    return {c["type"]: (c["status"], c["reason"]) for c in status(store, name)["conditions"]}


def rest(store: Store) -> dict[str, list[str]]:
    kinds = ("ConfigMap", "DaskCluster", "DaskWorkerGroup", "Job", "NetworkPolicy", "Deployment")
    return {kind: sorted(o["metadata"]["name"] for o in store.of(kind)) for kind in kinds}


# --- lives ----------------------------------------------------------------------------------------------------------


def test_a_job_goes_from_its_file_to_its_commit_and_its_cluster_goes() -> None:
    with world(COMMITTED) as (store, client, around), controller(client) as made:
        around.holds_runner.set()
        store.create("MLJob", mljob())
        wait("its cluster", lambda: status(store).get("phase") == "Running")
        around.holds_runner.clear()
        wait("the end", lambda: is_settled(store, "Succeeded"))
        figures = generate_latest(made.metrics.registry).decode()
        assert 'daskyard_mljobs{namespace="team",phase="Succeeded",reason="Committed"} 1.0' in figures
        assert "daskyard_queue_to_ready_seconds_count 1.0" in figures
        said = status(store)
        assert said["metrics"] == {"inertia": 7.5}
        assert said["runUrl"] == "s3://demo/runs/bio"
        assert [(a["number"], a["reason"], a["logs"]) for a in said["attempts"]] == [(1, "Committed", "Saved")]
        assert conditions(store) == {
            "Complete": ("True", "Committed"),
            "Failed": ("False", "Committed"),
            "InputReady": ("True", "PreflightPassed"),
            "ClusterReady": ("False", "Finished"),
            "LogsSaved": ("True", "Saved"),
            **({"SchedulerReached": c} if (c := conditions(store).get("SchedulerReached")) else {}),
        }
        assert rest(store) == {
            "ConfigMap": ["bio-1"],
            "DaskCluster": [],
            "DaskWorkerGroup": [],
            "Job": ["bio-1"],
            "NetworkPolicy": ["bio-1-worker"],
            "Deployment": [],
        }
        reasons = [e["reason"] for e in store.of("Event")]
        assert sorted(reasons) == sorted(set(reasons))
        assert {"AttemptStarted", "Succeeded"} <= set(reasons)


def test_an_attempt_that_lost_its_workers_is_followed_by_another_with_a_cluster_of_its_own() -> None:
    with world(LOST, COMMITTED) as (store, client, _), controller(client):
        store.create("MLJob", mljob())
        wait("the end", lambda: is_settled(store, "Succeeded"), 40)
        assert [(a["number"], a["reason"]) for a in status(store)["attempts"]] == [(1, "Retriable"), (2, "Committed")]
        assert status(store)["attempts"][0]["message"] == "one was lost"
        assert rest(store)["Job"] == ["bio-2"]
        assert Counter(store.created)["DaskCluster", "bio-2"] == 1


def test_wrong_input_fails_at_once_and_says_why() -> None:
    with world(WRONG) as (store, client, _), controller(client):
        store.create("MLJob", mljob())
        wait("the end", lambda: is_settled(store, "Failed"))
        failed = next(c for c in status(store)["conditions"] if c["type"] == "Failed")
        assert (failed["status"], failed["reason"], failed["message"]) == ("True", "WrongInput", "a.csv: no column y")
        assert len(status(store)["attempts"]) == 1


@pytest.mark.parametrize(
    ("change", "reason", "said"),
    [
        ({"params": {"n_clusters": 0}}, "WrongSpec", "n_clusters"),
        ({"workers": {"tpu": {}}}, "WrongSpec", "the runtime default has no 'tpu'; known: cpu, gpu"),
        ({"workers": {"cpu": {"max": 101}}}, "WrongSpec", "101 at most, the runtime default allows 100"),
        ({"runtime": "none", "pendingDeadlineSeconds": 10}, "RuntimeMissing", "there is no such MLRuntime"),
    ],
)
def test_what_can_never_run_makes_nothing(change: Object, reason: str, said: str) -> None:
    with world(COMMITTED) as (store, client, _), controller(client):
        store.create("MLJob", mljob(**change))

        def is_said() -> bool:
            return any(c["reason"] == reason and said in c["message"] for c in status(store).get("conditions", []))

        wait("the reason", is_said)
        assert rest(store) == {kind: [] for kind in rest(store)}


class _Killed(BaseException):
    """The process ends here."""


class _Mortal(Api):
    """Calls, the last of which is the `n_left`-th write; whether that is done before the end, `is_done` says."""

    n_left = 1
    is_done = True

    def __init__(self, client: ApiClient) -> None:
        super().__init__(client)
        self.is_dead = threading.Event()

    def _call(self, verb: str, *arguments: Any, **options: Any) -> Any:
        if self.is_dead.is_set():
            raise _Killed
        if verb not in WRITES or "dryRun" in (options.get("query") or {}):
            return super()._call(verb, *arguments, **options)
        self.n_left -= 1
        if self.n_left > 0:
            return super()._call(verb, *arguments, **options)
        self.is_dead.set()
        if self.is_done:
            super()._call(verb, *arguments, **options)
        raise _Killed


@pytest.mark.parametrize("ends", [(COMMITTED,), (LOST, COMMITTED), (WRONG,)], ids=["commits", "again", "fails"])
@pytest.mark.parametrize("is_done", [True, False], ids=["after", "before"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_controller_that_is_killed_at_each_of_its_writes_converges(
    ends: tuple[tuple[int, Object], ...], is_done: bool
) -> None:
    """Each process does one write (or is killed before its second one is done), for a whole job's life."""
    phase = "Failed" if ends[-1] is WRONG else "Succeeded"
    with world(*ends) as (store, client, _):
        store.create("MLJob", mljob())
        n_lives = 0
        while not is_settled(store, phase):
            n_lives += 1
            assert n_lives < 120, f"no end: {status(store)}"
            api = _Mortal(client)
            api.is_done, api.n_left = is_done, 1 if is_done else 2
            with controller(client, api=api):
                wait("its end", lambda api=api: api.is_dead.is_set() or is_settled(store, phase), 30)
        assert n_lives >= 10
        twice = {
            made: n for made, n in Counter(store.created).items() if n > 1 and made[0] not in ("Deployment", "Pod")
        }
        assert not twice
        number = len(ends)
        assert rest(store)["Job"] == [f"bio-{number}"]
        assert rest(store)["ConfigMap"] == [f"bio-{n}" for n in range(1, number + 1)]
        assert [a["number"] for a in status(store)["attempts"]] == list(range(1, number + 1))


def test_a_cluster_of_somebody_else_is_waited_for_and_not_touched() -> None:
    with world(COMMITTED) as (store, client, _), controller(client):
        foreign = {"kind": "DaskCluster", "metadata": {"name": "bio-1", "namespace": TEAM, "labels": {}}, "spec": {}}
        store.create("DaskCluster", foreign)
        version = (store.get("DaskCluster", "bio-1") or {})["metadata"]["resourceVersion"]
        store.create("MLJob", mljob())
        wait("the reason", lambda: status(store) and conditions(store).get("Complete") == ("False", "NameTaken"))
        assert store.of("Job") == []  # a runner would take that cluster for its own
        store.delete("MLJob", TEAM, "bio")
        time.sleep(0.3)
        assert (store.get("DaskCluster", "bio-1") or {})["metadata"]["resourceVersion"] == version


def test_a_job_that_is_deleted_and_made_anew_at_once_is_another_job() -> None:
    with world(COMMITTED) as (store, client, made), controller(client):
        made.holds_runner.set()
        store.create("MLJob", mljob())
        wait("its runner", lambda: status(store).get("phase") == "Running")
        store.delete("MLJob", TEAM, "bio")
        again = store.create("MLJob", mljob())
        made.holds_runner.clear()
        wait("the end", lambda: is_settled(store, "Succeeded"))
        uids = {o["metadata"]["labels"]["daskyard.dev/job-uid"] for k in ("Job", "ConfigMap") for o in store.of(k)}
        assert uids == {again["metadata"]["uid"]}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_job_that_is_deleted_in_mid_creation_leaves_nothing() -> None:
    with world(COMMITTED) as (store, client, made):
        made.holds_runner.set()
        for n_writes in range(1, 9):
            store.create("MLJob", mljob())
            api = _Mortal(client)
            api.n_left = n_writes
            with controller(client, api=api):
                wait("so many writes", lambda api=api: api.is_dead.is_set())
            store.delete("MLJob", TEAM, "bio")
            with controller(client):
                wait("nothing to be left", lambda: not any(rest(store).values()))


def test_suspending_takes_the_pods_away_and_resuming_runs_to_the_end() -> None:
    with world(COMMITTED) as (store, client, made), controller(client):
        made.holds_runner.set()
        store.create("MLJob", mljob())
        wait("running", lambda: status(store).get("phase") == "Running")
        store.patch("MLJob", TEAM, "bio", {"spec": {"suspend": True}})
        wait("no pods", lambda: status(store).get("phase") == "Suspended" and not rest(store)["DaskCluster"])
        wait("no runner", lambda: not rest(store)["Job"])
        made.holds_runner.clear()
        store.patch("MLJob", TEAM, "bio", {"spec": {"suspend": False}})
        wait("the end", lambda: is_settled(store, "Succeeded"))
        assert [a["reason"] for a in status(store)["attempts"]] == ["Suspended", "Committed"]


def test_a_finished_job_goes_after_its_time_to_live() -> None:
    with world(COMMITTED) as (store, client, _), controller(client):
        store.create("MLJob", mljob(ttlSecondsAfterFinished=1))
        wait("its end", lambda: not store.of("MLJob"))
        wait("nothing to be left", lambda: not any(rest(store).values()))


def test_a_watch_that_has_gone_silent_fails_the_liveness_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.mirror.WATCH_S", 1)
    monkeypatch.setattr("controller.controller.STALL_S", 4.0)
    with world(COMMITTED) as (store, client, _), controller(client) as made:
        for _ in range(60):  # nothing happens, but watches end and begin
            assert made.problem == ""
            time.sleep(0.1)
        store.is_silent = True
        assert "nothing heard of" in wait("the problem", lambda: made.problem)


# --- autoscaling ----------------------------------------------------------------------------------------------------


class Scheduler:
    """Tells what a test says; workers are the Deployments that there are, all idle but the busy ones."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.demands: list[Object] = []
        self.busy: set[str] = set()
        self.is_down = False

    def __call__(self, namespace: str, service: str) -> Object:
        if self.is_down:
            raise Unreachable("down")
        names = [d["metadata"]["name"] for d in self.store.of("Deployment")]
        workers = [
            {"name": n, "n_tasks": int(n in self.busy), "idle_s": 9.0, "offers": {}, "n_threads": 1} for n in names
        ]
        return {"demands": self.demands, "workers": workers, "progress": {"stage": "fit", "percent": 42}}


def members(store: Store) -> list[Object]:
    return [d for d in store.of("Deployment") if "dask.org/workergroup-name" in d["metadata"]["labels"]]


def sizes(store: Store) -> dict[str, int]:
    return {g["metadata"]["name"]: g["spec"]["worker"]["replicas"] for g in store.of("DaskWorkerGroup")}


@pytest.fixture
def fast_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.reconcile.POLL_S", 0.05)


@pytest.mark.usefixtures("fast_polls")
def test_each_group_follows_its_own_demand_and_busy_workers_stay() -> None:
    with world(COMMITTED) as (store, client, made):
        scheduler = Scheduler(store)
        with controller(client, scheduler, quiet_s=0.3):
            made.holds_runner.set()
            workers = {"cpu": {"min": 1, "max": 4}, "gpu": {"min": 0, "max": 2}}
            store.create("MLJob", mljob(workers=workers))
            wait("running", lambda: status(store).get("phase") == "Running")
            assert sizes(store) == {"bio-1-cpu": 1, "bio-1-gpu": 0}
            scheduler.demands = [{"needs": {"GPU": 1.0}, "n_tasks": 9, "seconds": 900.0}]
            wait("GPU workers", lambda: sizes(store) == {"bio-1-cpu": 1, "bio-1-gpu": 2})
            scheduler.demands = [{"needs": {}, "n_tasks": 9, "seconds": 900.0}]
            wait("CPU workers", lambda: sizes(store) == {"bio-1-cpu": 4, "bio-1-gpu": 0})
            wait("their Deployments", lambda: len(members(store)) == 4)
            assert status(store)["stage"] == "fit"
            assert status(store)["progress"] == 42
            busy = sorted(d["metadata"]["name"] for d in members(store))[2]
            scheduler.busy, scheduler.demands = {busy}, []
            wait("one worker", lambda: sizes(store) == {"bio-1-cpu": 1, "bio-1-gpu": 0})
            assert [d["metadata"]["name"] for d in members(store)] == [busy]
            # What went was chosen by the controller: the Deployments first, then their number.
            verbs = [(v, k) for v, k, n in store.writes if k in ("Deployment", "DaskWorkerGroup") and v != "create"]
            assert verbs[verbs.index(("delete", "Deployment")) - 1] == ("patch", "DaskWorkerGroup")
            assert verbs[-1] == ("patch", "DaskWorkerGroup")


@pytest.mark.usefixtures("fast_polls")
def test_nothing_is_guessed_while_the_scheduler_cannot_be_asked() -> None:
    with world(COMMITTED) as (store, client, made):
        scheduler = Scheduler(store)
        scheduler.demands = [{"needs": {}, "n_tasks": 9, "seconds": 900.0}]
        scheduler.is_down = True
        with controller(client, scheduler, quiet_s=0.1):
            made.holds_runner.set()
            store.create("MLJob", mljob())
            wait(
                "the condition",
                lambda: status(store) and conditions(store).get("SchedulerReached") == ("False", "Silent"),
            )
            time.sleep(0.5)
            assert sizes(store) == {"bio-1-cpu": 1}
            scheduler.is_down = False
            wait("four workers", lambda: sizes(store) == {"bio-1-cpu": 4})
            scheduler.is_down, scheduler.demands = True, []
            time.sleep(0.5)
            assert sizes(store) == {"bio-1-cpu": 4}


@pytest.mark.usefixtures("fast_polls")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_controller_that_is_killed_while_a_group_shrinks_takes_away_no_more_than_it_meant() -> None:
    with world(COMMITTED) as (store, client, made):
        scheduler = Scheduler(store)
        scheduler.demands = [{"needs": {}, "n_tasks": 9, "seconds": 900.0}]
        made.holds_runner.set()
        with controller(client, scheduler):
            store.create("MLJob", mljob())
            wait("four workers", lambda: len(members(store)) == 4 and sizes(store) == {"bio-1-cpu": 4})
        scheduler.demands = [{"needs": {}, "n_tasks": 2, "seconds": 900.0}]
        n_made = Counter(kind for kind, _ in store.created)["Deployment"]
        while sizes(store) != {"bio-1-cpu": 2}:
            api = _Mortal(client)
            with controller(client, scheduler, api=api, quiet_s=0.0):
                wait("its end", lambda api=api: api.is_dead.is_set() or sizes(store) == {"bio-1-cpu": 2})
        assert len(members(store)) == 2
        assert Counter(kind for kind, _ in store.created)["Deployment"] == n_made


@pytest.mark.usefixtures("fast_polls")
def test_a_cluster_of_somebody_else_is_scaled_where_its_groups_say_so() -> None:
    with world(COMMITTED) as (store, client, _):
        scheduler = Scheduler(store)
        with controller(client, scheduler):
            for name, annotations in (("a", {"daskyard.dev/max-workers": "3"}), ("b", {})):
                labels = {"dask.org/cluster-name": "shared"}
                metadata = {"name": f"shared-{name}", "namespace": TEAM, "labels": labels, "annotations": annotations}
                worker = {"replicas": 1, "spec": {"containers": [{"args": ["dask", "worker", "--nthreads", "1"]}]}}
                spec = {"cluster": "shared", "worker": worker}
                store.create("DaskWorkerGroup", {"kind": "DaskWorkerGroup", "metadata": metadata, "spec": spec})
            scheduler.demands = [{"needs": {}, "n_tasks": 9, "seconds": 900.0}]
            wait("three workers", lambda: sizes(store) == {"shared-a": 3, "shared-b": 1})


def test_no_thread_is_left() -> None:
    """Hundreds of watches that look for events would take all of the time of the tests that come after."""

    def left() -> list[str]:
        names = [thread.name for thread in threading.enumerate()]
        return [name for name in names if "process_request_thread" in name or name.startswith("mirror")]

    wait("their end", lambda: not left())
