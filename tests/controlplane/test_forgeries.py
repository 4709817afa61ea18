"""Whoever may make objects in a namespace cannot make a job of somebody else succeed, or take part in it."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest

from controller.api import Object
from tests.controlplane.jobs import NOBODY, WRONG, mljob
from tests.controlplane.kubelet import Kubelet, Life
from tests.controlplane.plane import TEAM, Plane
from tests.e2e.kube import wait

ELSEWHERE = "elsewhere"
FORGED = {"outcome": "committed", "run_url": "s3://demo/runs/bio", "metrics": {"forged": 1.0}}
ENDED = {
    "phase": "Succeeded",
    "containerStatuses": [
        {
            "name": "runner",
            "image": "forged",
            "imageID": "",
            "ready": False,
            "restartCount": 0,
            "state": {"terminated": {"exitCode": 0, "message": json.dumps(FORGED)}},
        }
    ],
}


@pytest.fixture(scope="module", autouse=True)
def _elsewhere(_plane: tuple[Plane, Kubelet]) -> None:
    _plane[0].kubectl("create", "namespace", ELSEWHERE)


@pytest.fixture
def controller(cluster: Plane) -> Iterator[None]:
    with cluster.controller(NOBODY):
        yield


def owner_of(found: Object, api_version: str) -> list[Object]:
    metadata = found["metadata"]
    owner = {"apiVersion": api_version, "kind": found["kind"], "name": metadata["name"], "uid": metadata["uid"]}
    return [{**owner, "controller": True, "blockOwnerDeletion": False}]


def labels_of(job: Object, attempt: int = 1, **more: str) -> dict[str, str]:
    metadata = job["metadata"]
    ours = {"job": metadata["name"], "job-uid": metadata["uid"], "attempt": str(attempt)}
    return {**{f"daskyard.dev/{name}": value for name, value in ours.items()}, **more}


def forged(cluster: Plane, kind: str, name: str, job: Object, namespace: str = TEAM, **content: Any) -> Object:
    """Make an object that bears the job's labels, and names the owners that are given."""
    metadata = {"name": name, "namespace": namespace, "labels": labels_of(job, **content.pop("labels", {}))}
    metadata["ownerReferences"] = content.pop("owners", [])
    versions = {"Pod": "v1", "ConfigMap": "v1", "Job": "batch/v1", "Deployment": "apps/v1"}
    made = {"apiVersion": versions.get(kind, "kubernetes.dask.org/v1"), "kind": kind, "metadata": metadata, **content}
    return cluster.api.create(made)


def forged_pod(cluster: Plane, name: str, job: Object, role: str = "runner", **content: Any) -> Object:
    """Make a pod that has ended as a runner would that committed."""
    content.setdefault("spec", pod_spec())
    labels = {**content.pop("labels", {}), "app.kubernetes.io/component": role}
    made = forged(cluster, "Pod", name, job, labels=labels, **content)
    cluster.api.patch("Pod", made["metadata"]["namespace"], name, {"status": ENDED}, part="status")
    return made


def pod_spec() -> Object:
    context = {
        "allowPrivilegeEscalation": False,
        "runAsNonRoot": True,
        "runAsUser": 1000,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container = {"name": "runner", "image": "forged", "args": ["forged"], "securityContext": context}
    return {"nodeName": "nowhere", "containers": [container], "restartPolicy": "Never"}


def started(cluster: Plane, name: str) -> Object:
    cluster.apply(mljob(name))
    cluster.wait_for_phase(name, "Running")
    job = cluster.get("MLJob", name)
    assert job is not None
    return {**job, "kind": "MLJob"}


@pytest.mark.usefixtures("controller")
def test_what_bears_a_jobs_labels_is_ignored_and_told(cluster: Plane, pods: Kubelet) -> None:
    job = started(cluster, "many")
    ours = owner_of(job, "daskyard.dev/v1alpha1")
    runner = {**(cluster.get("Job", "many-1") or {}), "kind": "Job"}
    template = {"spec": pod_spec()}
    made = [
        forged_pod(cluster, "labels", job),
        forged_pod(cluster, "owner", job, owners=ours),
        forged_pod(cluster, "elsewhere", job, namespace=ELSEWHERE),
        forged_pod(cluster, "logs-elsewhere", job, "logs", namespace=ELSEWHERE),
        forged_pod(cluster, "logs", job, "logs", owners=ours),
        forged_pod(cluster, "worker", job, "worker"),
        forged_pod(cluster, "scheduler", job, "scheduler", owners=ours),
        forged(cluster, "ConfigMap", "many-1-forged", job, owners=ours, data={"job.yaml": "{}"}),
        forged(cluster, "ConfigMap", "many-1", job, namespace=ELSEWHERE, data={"job.yaml": "{}"}),
        forged(cluster, "Job", "many-1-forged", job, owners=ours, spec={"template": template, "suspend": True}),
        forged(cluster, "Job", "many-1", job, namespace=ELSEWHERE, spec={"template": template, "suspend": True}),
        forged(cluster, "DaskCluster", "forged", job, spec=dask_cluster(cluster), owners=ours),
    ]
    # The garbage collector may take this one first: its owner is in another namespace.
    forged_pod(cluster, "owner-elsewhere", job, namespace=ELSEWHERE, owners=owner_of(runner, "batch/v1"))
    wanted = {f"{item['metadata']['namespace']}/{item['metadata']['name']}" for item in made}

    def missing() -> set[str]:
        return {name for name in wanted if not any(name in message for message in cluster.events("Stranger"))}

    try:
        wait("an Event of each", lambda: not missing(), 60)
    except AssertionError:
        raise AssertionError(f"no Event of {missing()}") from None
    status = cluster.status("many")
    assert (status["phase"], status.get("metrics")) == ("Running", {})
    pods.runners[TEAM, "many"] = [Life(0.0, 2, WRONG)]
    status = cluster.wait_for_phase("many", "Failed")
    assert status["attempts"][-1]["reason"] == "WrongInput"
    assert status.get("metrics") == {}


def dask_cluster(cluster: Plane) -> Object:
    """Return the spec of a DaskCluster that the operator takes, of pods that nobody runs."""
    runtime = cluster.get("MLRuntime", "default") or {}
    service = json.loads(json.dumps(runtime["spec"]["scheduler"]["service"]).replace("$(CLUSTER)", "forged"))
    spec = {key: value for key, value in pod_spec().items() if key != "restartPolicy"}
    return {"scheduler": {"spec": spec, "service": service}, "worker": {"replicas": 0, "spec": spec}}


@pytest.mark.usefixtures("controller")
@pytest.mark.parametrize("is_copy", [False, True], ids=["another", "a copy"])
def test_a_pod_that_names_the_runners_job_as_its_owner_does_not_speak_for_it(
    cluster: Plane, pods: Kubelet, is_copy: bool
) -> None:
    job = started(cluster, name := f"pod-{is_copy}".lower())
    runner = {**(cluster.get("Job", f"{name}-1") or {}), "kind": "Job"}
    labels = dict(runner["spec"]["selector"]["matchLabels"])
    [real] = [p for p in cluster.listed("Pod") if p["metadata"].get("labels", {}).items() >= labels.items()]
    spec = {**copy.deepcopy(real["spec"]), "nodeName": "nowhere"} if is_copy else pod_spec()
    forged_pod(cluster, f"{name}-forged", job, owners=owner_of(runner, "batch/v1"), labels=labels, spec=spec)

    def is_told_or_gone() -> bool:
        """Kubernetes may take it for one too many, and delete it first."""
        return f"{name}-forged" in " ".join(cluster.events("Stranger")) or not cluster.get("Pod", f"{name}-forged")

    wait("its end, or an Event of it", is_told_or_gone, 60)
    status = cluster.status(name)
    assert (status["phase"], status.get("metrics")) == ("Running", {})
    pods.runners[TEAM, name] = [Life(0.0, 2, WRONG)]
    status = cluster.wait_for_phase(name, "Failed", 90)
    assert status.get("metrics") == {}
    assert status["attempts"][-1]["reason"] == "WrongInput"


@pytest.mark.parametrize("kind", ["ConfigMap", "Job", "DaskCluster"])
def test_what_was_there_before_is_not_taken_for_ours(cluster: Plane, pods: Kubelet, kind: str) -> None:
    """Made while no controller was there, with the right name, labels and owner."""
    name = f"early-{kind.lower()}"
    cluster.apply(mljob(name))
    job = {**(cluster.get("MLJob", name) or {}), "kind": "MLJob"}
    content = {
        "ConfigMap": {"data": {"job.yaml": json.dumps({"output": "s3://forged"})}, "immutable": True},
        "Job": {"spec": {"template": {"spec": pod_spec()}}},
        "DaskCluster": {"spec": dask_cluster(cluster)},
    }[kind]
    made = forged(cluster, kind, f"{name}-1", job, owners=owner_of(job, "daskyard.dev/v1alpha1"), **content)
    with cluster.controller(NOBODY):
        wait("why it waits", lambda: reason_of(cluster, name) == "NameTaken", 40)
        cluster.api.delete(kind, made)
        pods.runners[TEAM, name] = [Life(0.0, 2, WRONG)]
        assert cluster.wait_for_phase(name, "Failed")["attempts"][-1]["reason"] == "WrongInput"


def reason_of(cluster: Plane, name: str) -> str | None:
    conditions = cluster.status(name).get("conditions", [])
    return next((str(c["reason"]) for c in conditions if c["type"] == "Complete"), None)
