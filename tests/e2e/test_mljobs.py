"""MLJobs: what becomes of them when pods die, specs are wrong, and the controller goes."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
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


def test_worker_scheduler_and_runner_are_killed_in_turn_and_the_job_commits_once() -> None:
    name = fresh("mlj-killed")
    with submitted(mljob(name, incomes(name, N_EPOCHS))):
        wait_stage(name, "fit")
        kill(pods(name, "worker")[0])
        time.sleep(10)
        assert [a["number"] for a in status(name)["attempts"]] == [1]  # the others went on
        kill(pods(name, "scheduler")[0])
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
    manifest = read_manifest(f"s3://demo/e2e/{name}")
    found = {file.url.removeprefix(f"s3://demo/e2e/{name}/") for file in storage.list_files(f"s3://demo/e2e/{name}")}
    assert [url for url in found if url.endswith("manifest.json")] == ["manifest.json"]
    logs = {url.removeprefix("logs/").partition(".")[0] for url in found if url.startswith("logs/")}
    assert logs == {"attempt-1", "attempt-2", "attempt-3"}
    assert any("scheduler" in url for url in found if url.startswith("logs/attempt-3"))
    assert manifest.metrics == pytest.approx(said["metrics"], nan_ok=True)


def test_each_group_of_a_mixed_job_grows_for_its_own_tasks_and_goes_back() -> None:
    name = fresh("mlj-mixed")
    load = """
def work(i):
    import time
    time.sleep(2)
    return i
futures = client.map(work, range(N), pure=False, resources=RESOURCES, retries=0)
print(json.dumps(sorted(client.gather(futures)) == list(range(N))))
"""
    workers = {"cpu": {"min": 1, "max": 3}, "gpu": {"min": 0, "max": 2}}
    with submitted(mljob(name, incomes(name, 4000, world_size=1), workers=workers)):
        wait_stage(name, "fit")
        cluster = f"{name}-1"

        def sizes() -> dict[str, int]:
            groups = kube.listed("daskworkergroups", "--selector", f"daskyard.dev/job={name}")
            found = {kube.name_of(g).removeprefix(f"{cluster}-"): g["spec"]["worker"]["replicas"] for g in groups}
            return {group: found[group] for group in ("cpu", "gpu")}

        assert sizes() == {"cpu": 1, "gpu": 0}
        assert kube.on_scheduler(cluster, load.replace("N", "40").replace("RESOURCES", "{'GPU': 1}"), 240) is True
        assert sizes()["gpu"] == 2
        assert sizes()["cpu"] == 1
        kube.wait("no GPU worker", lambda: sizes() == {"cpu": 1, "gpu": 0}, 120, 1)
        assert kube.on_scheduler(cluster, load.replace("N", "90").replace("RESOURCES", "None"), 240) is True
        assert sizes()["cpu"] == 3
        assert sizes()["gpu"] == 0
        kube.wait("one worker", lambda: sizes() == {"cpu": 1, "gpu": 0}, 120, 1)
        assert [a["number"] for a in status(name)["attempts"]] == [1]
        # The training went on all the while.
        assert status(name)["phase"] == "Running"
        assert condition(name, "SchedulerReached")["status"] == "True"


WRONG = {
    "params": ({"params": {"n_clusters": 0}}, "WrongSpec", "n_clusters"),
    "input": ({"input": "s3://demo/data/none"}, "StorageMissing", "s3://demo/data/none"),
    "bucket": ({"output": "s3://nobodys-bucket/runs"}, "StorageMissing", "nobodys-bucket"),
    "hardware": ({"workers": {"tpu": {}}}, "WrongSpec", "the runtime default has no 'tpu'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_within_a_minute_and_asks_for_no_worker(case: str) -> None:
    change, reason, said = WRONG[case]
    name = f"mlj-wrong-{case}"
    with submitted(mljob(name, clusters_of_proteins(fresh(name), 1), **change)):
        assert said in wait_reason(name, reason)
        assert status(name)["phase"] == "Failed"
        assert kube.listed("daskworkergroups", "--selector", f"daskyard.dev/job={name}") == []
        wait_end(name)
        kube.wait("no cluster", lambda: not kube.listed("daskclusters", "--selector", f"daskyard.dev/job={name}"), 60)
    assert left(name) == []


def test_an_image_that_is_not_there_is_said_within_a_minute() -> None:
    def change(spec: Any) -> None:
        spec["runner"]["spec"]["containers"][0]["image"] = "localhost:5001/daskyard/jobs:none"

    name = "mlj-image"
    with another_runtime("imageless", change) as runtime:
        with submitted(mljob(name, clusters_of_proteins(name, 1), runtime=runtime)):
            assert "jobs:none" in wait_reason(name, "ImagePull")
            kube.wait("the end", lambda: status(name).get("phase") == "Failed", 60)
        assert left(name) == []


def test_resources_that_no_node_has_are_said_within_a_minute() -> None:
    def change(spec: Any) -> None:
        resources = spec["hardware"]["cpu"]["spec"]["containers"][0]["resources"]
        for part in ("requests", "limits"):
            resources[part]["nvidia.com/gpu"] = "64"

    name = "mlj-large"
    with another_runtime("large", change) as runtime:
        with submitted(mljob(name, clusters_of_proteins(name, 1), runtime=runtime, pendingDeadlineSeconds=60)):
            assert "Insufficient nvidia.com/gpu" in wait_reason(name, "Unschedulable")
            kube.wait("the end", lambda: status(name).get("phase") == "Failed", 90)
            assert condition(name, "Failed")["reason"] == "Unschedulable"
        assert left(name) == []


def test_a_quota_that_is_used_up_is_said_within_a_minute() -> None:
    def change(spec: Any) -> None:
        resources = spec["hardware"]["cpu"]["spec"]["containers"][0]["resources"]
        for part in ("requests", "limits"):
            resources[part]["memory"] = "64Gi"

    name = "mlj-quota"
    with another_runtime("greedy", change) as runtime:
        with submitted(mljob(name, clusters_of_proteins(name, 1), runtime=runtime)):
            assert "exceeded quota" in wait_reason(name, "QuotaExceeded")
        assert left(name) == []


def test_wrong_credentials_are_said_within_a_minute() -> None:
    kube.kubectl("create", "secret", "generic", "mlj-wrong", "--from-literal=credentials=[default]\n"
                 "aws_access_key_id = nobody\naws_secret_access_key = nothing-at-all\n")  # fmt: skip

    def change(spec: Any) -> None:
        for pod in (spec["runner"], *spec["hardware"].values()):
            for volume in pod["spec"]["volumes"]:
                if "secret" in volume:
                    volume["secret"]["secretName"] = "mlj-wrong"

    name = "mlj-denied"
    try:
        with another_runtime("stranger", change) as runtime:
            with submitted(mljob(name, clusters_of_proteins(name, 1), runtime=runtime)):
                assert "s3://demo" in wait_reason(name, "StorageDenied")
                assert condition(name, "InputReady")["status"] == "False"
                said = wait_end(name)
                assert said["attempts"][-1]["logs"].startswith("not saved")
            assert left(name) == []
    finally:
        kube.kubectl("delete", "secret", "mlj-wrong")


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
    assert 'daskyard_api_calls_total{kind="DaskCluster",outcome="ok",verb="create"}' in metrics
    refused = [
        line for line in metrics.splitlines() if line.startswith("daskyard_api_calls_total") and "Refused" in line
    ]
    assert refused == []
