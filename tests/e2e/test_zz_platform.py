"""The platform while jobs run: is it upgraded under them, what does the API server refuse, and what stays when it goes?

Named to run last: the last scenario takes the platform away and puts it back.
"""

from __future__ import annotations

import json
from typing import Any

import kube
import pytest
import yaml
from jobs_of import clusters_of_proteins

from jobs import storage
from jobs.artifacts import read_manifest

RELEASE = "daskyard"
CRDS = {f"{name}.kubernetes.dask.org" for name in ("daskclusters", "daskworkergroups", "daskjobs", "daskautoscalers")}


def _manifest(kind: str) -> Any:
    documents = yaml.safe_load_all((kube.ROOT / "examples/daskjobs/california.yaml").read_text())
    return next(document for document in documents if document["kind"] == kind)


def _set(content: Any, path: str, value: Any) -> None:
    *parents, last = (int(key) if key.isdigit() else key for key in path.split("."))
    for key in parents:
        content = content[key]
    content[last] = value


BAD_JOBS = {
    "metadata.name": ("Too_Long", "metadata.name"),
    "spec.job.spec.containers": ("none", "spec.job.spec.containers"),
    "spec.job.spec.containers.0.image": (7, "containers[0].image"),
    "spec.job.spec.containers.0.resources.limits": (["1Gi"], "containers[0].resources.limits"),
    "spec.job.spec.containers.0.volumeMounts.0.mountPath": (1, "volumeMounts[0].mountPath"),
    "spec.cluster.spec.worker.replicas": ("two", "spec.cluster.spec.worker.replicas"),
    "spec.cluster.spec.scheduler.service.ports.0.port": ("8786", "service.ports[0].port"),
    "spec.cluster.spec.worker.spec.terminationGracePeriodSeconds": ("long", "terminationGracePeriodSeconds"),
    "spec.cluster.spec.worker.spec.automountServiceAccountToken": ("no", "automountServiceAccountToken"),
    "spec.cluster.spec": ({}, "spec.cluster.spec"),
}


@pytest.mark.parametrize("path", BAD_JOBS)
def test_api_server_refuses_a_bad_daskjob_and_names_the_key(path: str) -> None:
    value, named = BAD_JOBS[path]
    job = _manifest("DaskJob")
    _set(job, path, value)
    said = kube.kubectl(
        "create", "--dry-run=server", "--validate=strict", "--filename", "-", stdin=json.dumps(job), check=False
    )
    assert named in said, said
    assert "created" not in said


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hostNetwork": True}, "hostNetwork"),
        ({"automountServiceAccountToken": False, "securityContext": {"runAsUser": 0}}, "runAsNonRoot"),
        ({"volumes": [{"name": "host", "hostPath": {"path": "/"}}]}, "hostPath"),
    ],
)
def test_namespace_refuses_a_pod_that_is_not_restricted(change: dict[str, Any], named: str) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "loose"},
        "spec": {"containers": [{"name": "loose", "image": "localhost:5001/daskyard/jobs:0.1.0"}], **change},
    }
    said = kube.kubectl("create", "--dry-run=server", "--filename", "-", stdin=json.dumps(pod), check=False)
    assert "violates PodSecurity" in said
    assert named in said


def test_operator_was_refused_nothing_that_it_asked_of_the_api_server() -> None:
    said = kube.kubectl("logs", "deployment/daskyard-operator", "--tail=-1", namespace=kube.SYSTEM)
    assert "Job succeeded, deleting Dask cluster." in said
    assert "forbidden" not in said.lower()


def test_platform_is_upgraded_under_a_running_job(request: pytest.FixtureRequest) -> None:
    storage.remove_tree("s3://demo/e2e/upgraded")
    with kube.job("upgraded", clusters_of_proteins("upgraded", 6)):
        kube.wait_stage("upgraded", "3/5 fit")
        before = _operator()
        _upgrade("--set", "operator.podAnnotations.upgraded=yes")
        assert _operator() != before
        assert kube.wait_end("upgraded") == "Successful", kube.log("upgraded")
        kube.wait("the cluster's end", lambda: not kube.listed("daskclusters"))
    assert read_manifest("s3://demo/e2e/upgraded").run_id == "upgraded"
    _upgrade()


def test_uninstalling_leaves_definitions_namespaces_and_data_and_nothing_hangs() -> None:
    with kube.cluster("left"):
        kept = storage.list_files("s3://demo/data")
        kube.helm("uninstall", RELEASE, "--wait", "--timeout", "3m", namespace=kube.SYSTEM, timeout_s=240)
        try:
            found = kube.listed("customresourcedefinitions")
            assert {kube.name_of(crd) for crd in found} >= CRDS
            assert kube.get("namespace", kube.NAMESPACE)
            assert storage.list_files("s3://demo/data") == kept
            assert all(map(kube.is_ready, kube.pods("left", "worker")))
            assert not kube.listed("deployments", namespace=kube.SYSTEM)
            roles = kube.listed(
                "clusterroles,clusterrolebindings", "--selector", f"app.kubernetes.io/instance={RELEASE}"
            )
            assert roles == []
            assert kube.listed("resourcequotas,limitranges") == []
            policies = {kube.name_of(policy) for policy in kube.listed("networkpolicies")}
            assert policies == {"left-scheduler", "left-worker"}
            # Nobody is there to take finalizers off: the deletion must not wait for the operator.
            kube.kubectl("delete", "daskcluster", "left", "--wait=true", "--timeout=60s", timeout_s=90)
            kube.wait("the end of the cluster's pods", lambda: kube.is_gone("left"), timeout_s=150)
        finally:
            kube.run("make", "--no-print-directory", "-C", str(kube.ROOT), "deploy", timeout_s=300)


def _operator() -> str:
    pods = kube.listed("pods", "--selector", "app.kubernetes.io/name=daskyard-operator", namespace=kube.SYSTEM)
    return kube.name_of(pods[0])


def _upgrade(*options: str) -> None:
    chart = str(kube.ROOT / "charts/platform")
    kube.helm("upgrade", RELEASE, chart, "--reuse-values", *options, "--wait", namespace=kube.SYSTEM, timeout_s=240)
