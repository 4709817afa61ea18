"""MLJobs: what becomes of them when pods die, specs are wrong, and the controller goes."""

from __future__ import annotations

import copy
import json
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import kube
import pytest
from jobs_of import clusters_of_proteins, incomes
from mljobs_of import condition, delete, kill, left, mljob, pods, status, submitted, wait_end, wait_reason, wait_stage

from jobs import storage
from jobs.artifacts import read_manifest

SYSTEM = kube.SYSTEM
N_EPOCHS = 60


def fresh(run_id: str) -> str:
    """Return the run id, of which nothing is left in storage."""
    storage.remove_tree(f"s3://demo/e2e/{run_id}")
    return run_id


@contextmanager
def another_runtime(name: str, change: Any) -> Iterator[str]:
    """Make an MLRuntime that differs from the default one."""
    runtime = copy.deepcopy(kube.get("mlruntime", "default"))
    runtime["metadata"] = {"name": name}
    change(runtime["spec"])
    kube.kubectl("apply", "--filename", "-", stdin=json.dumps(runtime))
    try:
        yield name
    finally:
        kube.kubectl("delete", "mlruntime", name)


def ranks(name: str) -> list[str]:
    """Return with how many ranks the first attempt's training has gone on, each time that changed."""
    runner = kube.name_of(pods(name, "runner", 1)[0])
    return re.findall(r"training: (\d+) ranks? from step", kube.kubectl("logs", runner, check=False))


def test_worker_scheduler_and_runner_are_killed_in_turn_and_the_job_commits_once() -> None:
    name = fresh("mlj-killed")
    with submitted(mljob(name, incomes(name, N_EPOCHS))):
        kube.wait("two ranks", lambda: status(name).get("phase") == "Running" and ranks(name) == ["2"], 180)
        kill(pods(name, "worker")[0])
        # The training goes on with the other worker, and with the one that comes in its place.
        kube.wait("one rank", lambda: "1" in ranks(name), 60)
        kube.wait("two ranks again", lambda: ranks(name)[-1] == "2", 120)
        assert [a["number"] for a in status(name)["attempts"]] == [1]
        kill(pods(name, "scheduler", 1)[0])
        kube.wait("a second attempt", lambda: pods(name, "runner", 2), 120)
        wait_stage(name, "fit")
        kill(pods(name, "runner", 2)[0])
        kube.wait("a third attempt", lambda: pods(name, "runner", 3), 120)
        said = wait_end(name)
        assert said["phase"] == "Succeeded", said
        reasons = [a["reason"] for a in said["attempts"]]
        assert reasons[0] in ("SchedulerLost", "Retriable")
        assert reasons[1] in ("RunnerLost", "Retriable")
        assert reasons[2:] == ["Committed"]
        assert [a["logs"] for a in said["attempts"]] == 3 * ["Saved"]
    url = f"s3://demo/e2e/{name}"
    manifest = read_manifest(url)
    found = {file.url: file.size for file in storage.list_files(url)}
    logs = {place.removeprefix(f"{url}/logs/").partition(".")[0] for place in found if place.startswith(f"{url}/logs/")}
    assert logs == {"attempt-1", "attempt-2", "attempt-3"}
    # Of the lost attempts nothing is left that a reader could take for a result.
    rest = {place: size for place, size in found.items() if not place.startswith(f"{url}/logs/")}
    del rest[f"{url}/manifest.json"]
    assert rest == {file.url: file.size for file in manifest.files}
    assert said["metrics"] == pytest.approx(manifest.metrics, nan_ok=True)


def test_each_group_of_a_mixed_job_grows_for_its_own_tasks_and_goes_back() -> None:
    name = fresh("mlj-mixed")
    load = """
def work(i):
    import time
    time.sleep({seconds})
    return i
futures = client.map(work, range({n}), pure=False, resources={needs}, retries=0)
print(json.dumps(sorted(client.gather(futures)) == list(range({n}))))
"""
    # In all, less than what a second worker is worth (5 s), also where the scheduler takes tasks that run for twice as
    # long as they have run.
    short_on_gpus = load.format(n=2, seconds=0.2, needs={"GPU": 1})
    long_on_any = load.format(n=60, seconds=2, needs=None)
    workers = {"cpu": {"min": 1, "max": 4}, "gpu": {"min": 0, "max": 2}}
    with submitted(mljob(name, incomes(name, 4000, world_size=1), workers=workers)):
        wait_stage(name, "fit")
        cluster = f"{name}-1"

        def sizes() -> dict[str, int]:
            groups = kube.listed("daskworkergroups", "--selector", f"daskyard.dev/job={name}")
            found = {kube.name_of(g).removeprefix(f"{cluster}-"): g["spec"]["worker"]["replicas"] for g in groups}
            return {group: found[group] for group in ("cpu", "gpu")}

        assert sizes() == {"cpu": 1, "gpu": 0}
        assert kube.on_scheduler(cluster, short_on_gpus, 240) is True
        assert sizes() == {"cpu": 1, "gpu": 1}
        assert kube.on_scheduler(cluster, long_on_any, 240) is True
        assert sizes()["cpu"] == 4
        assert sizes()["gpu"] <= 1  # of two that it may have
        kube.wait("one worker", lambda: sizes() == {"cpu": 1, "gpu": 0}, 120, 1)
        assert [a["number"] for a in status(name)["attempts"]] == [1]
        # The training went on all the while.
        assert status(name)["phase"] == "Running"
        assert condition(name, "SchedulerReached")["status"] == "True"


def _imageless(spec: Any) -> None:
    spec["runner"]["spec"]["containers"][0]["image"] = "localhost:5001/daskyard/jobs:none"


def _too_large(resource: str, amount: str) -> Any:
    def change(spec: Any) -> None:
        resources = spec["hardware"]["cpu"]["spec"]["containers"][0]["resources"]
        for part in ("requests", "limits"):
            resources[part][resource] = amount

    return change


def _denied(spec: Any) -> None:
    for volume in spec["runner"]["spec"]["volumes"]:
        if "secret" in volume:
            volume["secret"]["secretName"] = "mlj-wrong"


# What is wrong, in the spec or the runtime; the reason that is said, and a part of its message.
WRONG: dict[str, tuple[Any, str, str]] = {
    "params": ({"params": {"n_clusters": 0}}, "WrongSpec", "n_clusters"),
    "input": ({"input": "s3://demo/data/none"}, "StorageMissing", "s3://demo/data/none"),
    "bucket": ({"output": "s3://nobodys-bucket/runs"}, "StorageMissing", "nobodys-bucket"),
    "hardware": ({"workers": {"tpu": {}}}, "WrongSpec", "the runtime default has no 'tpu'"),
    "image": (_imageless, "ImagePull", "jobs:none"),
    "keys": (_denied, "StorageDenied", "s3://demo"),
    "node": (_too_large("nvidia.com/gpu", "64"), "Unschedulable", "Insufficient nvidia.com/gpu"),
    "quota": (_too_large("memory", "64Gi"), "QuotaExceeded", "exceeded quota"),
}


@pytest.fixture(scope="module")
def said_of_wrong_jobs() -> Iterator[dict[str, str]]:
    """All of them, made at once: what each said, with the reason that it is to say, within a minute."""
    keys = "[default]\naws_access_key_id = nobody\naws_secret_access_key = nothing-at-all\n"
    kube.kubectl("create", "secret", "generic", "mlj-wrong", f"--from-literal=credentials={keys}")
    with ExitStack() as stack:
        stack.callback(kube.kubectl, "delete", "secret", "mlj-wrong")
        runtimes = {
            case: stack.enter_context(another_runtime(f"wrong-{case}", change))
            for case, (change, _, _) in WRONG.items()
            if callable(change)
        }
        for case, (change, _, _) in WRONG.items():
            name = f"mlj-wrong-{case}"
            more = {"runtime": runtimes[case], "pendingDeadlineSeconds": 60} if case in runtimes else change
            stack.enter_context(submitted(mljob(name, clusters_of_proteins(fresh(name), 1), **more)))
        said: dict[str, str] = {}
        deadline = time.monotonic() + 60
        while len(said) < len(WRONG) and time.monotonic() < deadline:
            for case in WRONG.keys() - said.keys():
                told = condition(f"mlj-wrong-{case}")
                if told.get("reason") == WRONG[case][1]:
                    said[case] = told["message"]
            time.sleep(0.5)
        yield said
    assert [found for case in WRONG for found in left(f"mlj-wrong-{case}")] == []


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_within_a_minute(case: str, said_of_wrong_jobs: dict[str, str]) -> None:
    _, reason, said = WRONG[case]
    name = f"mlj-wrong-{case}"
    assert said in said_of_wrong_jobs.get(case, f"not in time: {condition(name)}")
    kube.wait("the end", lambda: status(name).get("phase") == "Failed", 90)
    assert condition(name, "Failed")["reason"] == reason
    if case in ("input", "bucket", "keys"):
        assert condition(name, "InputReady")["status"] == "False"
        made = kube.listed("daskworkergroups", "--selector", f"daskyard.dev/job={name}")
        assert [kube.name_of(group) for group in made if not kube.name_of(group).endswith("-default")] == []
    wait_end(name)
    if case == "image":
        # The Job that would save them has the runner's image.
        assert "jobs:none" in condition(name, "LogsSaved")["message"]
    kube.wait("no cluster", lambda: not kube.listed("daskclusters", "--selector", f"daskyard.dev/job={name}"), 60)


def test_a_job_that_is_deleted_in_mid_creation_and_made_again_at_once_commits() -> None:
    name = fresh("mlj-again")
    job = mljob(name, clusters_of_proteins(name, 1))
    kube.kubectl("create", "--filename", "-", stdin=json.dumps(job))
    kube.wait("its cluster", lambda: kube.get("daskcluster", f"{name}-1"))
    kube.kubectl("delete", "mljob", name)
    with submitted(job):
        said = wait_end(name, 240)
        assert said["phase"] == "Succeeded", said
        uid = kube.get("mljob", name)["metadata"]["uid"]
        for kind in ("jobs", "configmaps"):
            for found in kube.listed(kind, "--selector", f"daskyard.dev/job={name}"):
                assert found["metadata"]["labels"]["daskyard.dev/job-uid"] == uid
    assert left(name) == []


def test_a_cluster_of_somebody_else_is_not_adopted_and_not_deleted() -> None:
    """The stock operator takes a DaskCluster of the job's name for the job's own, and deletes it at the job's end."""
    name = fresh("mlj-taken")
    with kube.cluster(f"{name}-1", "--set", "workerGroups.default.replicas=1"):
        before = kube.get("daskcluster", f"{name}-1")["metadata"]["uid"]
        with submitted(mljob(name, clusters_of_proteins(name, 1))):
            wait_reason(name, "NameTaken")
            assert pods(name, "runner") == []
        assert kube.get("daskcluster", f"{name}-1")["metadata"]["uid"] == before
        assert left(name) == []


def leader() -> str:
    """Return the pod that leads."""
    lease = kube.get("lease", "daskyard-controller", namespace=SYSTEM)
    return str(lease["spec"]["holderIdentity"]).rpartition("-")[0]


def test_the_other_replica_leads_within_30_s_and_the_job_goes_on() -> None:
    name = fresh("mlj-failover")
    with submitted(mljob(name, clusters_of_proteins(name, 4))):
        wait_reason(name, "Preflight")
        gone = leader()
        start = time.monotonic()
        kube.kubectl("delete", "pod", gone, "--grace-period=0", "--force", namespace=SYSTEM)
        kube.wait("another leader", lambda: leader() not in ("", gone), 30)
        print(f"failover: {time.monotonic() - start:.1f} s")
        said = wait_end(name)
        assert said["phase"] == "Succeeded", said
        assert [a["number"] for a in said["attempts"]] == [1]
    delete(name)


def test_controller_was_refused_nothing_that_it_asked_of_the_api_server() -> None:
    said = kube.kubectl(
        "logs", "--selector", "app.kubernetes.io/name=daskyard-controller", "--tail=-1", "--prefix", namespace=SYSTEM
    )
    assert "leads" in said
    assert "is forbidden: User" not in said
    read = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8080/metrics', timeout=10).read().decode())"
    metrics = kube.kubectl("exec", leader(), "--", "python", "-c", read, namespace=SYSTEM)
    assert 'daskyard_api_calls_total{kind="MLJob",outcome="ok",verb="list"}' in metrics
    refused = [
        line for line in metrics.splitlines() if line.startswith("daskyard_api_calls_total") and "Refused" in line
    ]
    assert refused == []
