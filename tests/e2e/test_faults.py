"""What does the user of a DaskJob see when workers die or storage stops? For MLJobs see test_mljobs.py."""

from __future__ import annotations

import time
from typing import Any

import kube
import pytest
import yaml
from distributed import Client, LocalCluster
from jobs_of import clusters_of_proteins

from jobs import runner, spec, storage
from jobs.artifacts import Manifest, read_manifest

N_INIT = 8
# Counts, on the scheduler, how often each task's result came into being from now on; results that are there count.
COUNT = """
def start(dask_scheduler):
    from collections import Counter
    from distributed.diagnostics.plugin import SchedulerPlugin
    class Count(SchedulerPlugin):
        name = "count"
        computed = Counter(key for key, task in dask_scheduler.tasks.items() if task.state == "memory")
        def transition(self, key, before, after, *args, **kwargs):
            if after == "memory" and before == "processing":
                self.computed[key] += 1
    dask_scheduler.add_plugin(Count())
    return len(Count.computed)
print(json.dumps(client.run_on_scheduler(start)))
"""
READ = """
def read(dask_scheduler):
    computed = dask_scheduler.plugins["count"].computed
    return {"n": len(computed), "again": [str(key) for key, n in computed.items() if n > 1]}
print(json.dumps(client.run_on_scheduler(read)))
"""


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    """Metrics of the job where nothing goes wrong, on this machine."""
    job = spec.parse(_yaml("laptop-faults"))
    storage.remove_tree(storage.join(job.output, job.name))
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        return dict(runner.run(job, client=client).manifest.metrics)


@pytest.fixture
def run_id(request: pytest.FixtureRequest) -> str:
    """A run id of the test's own that was never committed."""
    name = request.node.name.removeprefix("test_").replace("_", "-")[:40].strip("-")
    storage.remove_tree(f"s3://demo/e2e/{name}")
    return name


def test_worker_killed_without_grace_changes_no_metric(run_id: str, expected: dict[str, Any]) -> None:
    with kube.job("killed", clusters_of_proteins(run_id, N_INIT)):
        kube.wait_stage("killed", "3/5 fit")
        time.sleep(3)
        victim = kube.name_of(kube.pods("killed", "worker")[0])
        kube.kubectl("delete", "pod", victim, "--grace-period=0", "--force")
        assert kube.wait_end("killed") == "Successful", kube.log("killed")
    assert _committed(run_id).metrics == pytest.approx(expected)


def test_worker_deleted_with_grace_has_no_result_recomputed(run_id: str, expected: dict[str, Any]) -> None:
    with kube.job("drained", clusters_of_proteins(run_id, N_INIT)):
        kube.wait_stage("drained", "3/5 fit")
        time.sleep(3)
        assert kube.on_scheduler("drained", COUNT) > 0
        victim = kube.name_of(kube.pods("drained", "worker")[0])
        kube.kubectl("delete", "pod", victim, "--wait=true", timeout_s=120)
        time.sleep(3)
        counted = kube.on_scheduler("drained", READ)
        assert counted["n"] > 0
        assert counted["again"] == []
        assert kube.wait_end("drained") == "Successful", kube.log("drained")
        assert "try 1" not in kube.log("drained")
    assert _committed(run_id).metrics == pytest.approx(expected)


def test_storage_stopped_for_30_s_ends_well(run_id: str, expected: dict[str, Any]) -> None:
    with kube.job("dry", clusters_of_proteins(run_id, N_INIT)):
        kube.wait_stage("dry", "dashboard")
        kube.kubectl("scale", "deployment/minio", "--replicas=0", namespace="minio")
        try:
            time.sleep(30)
        finally:
            kube.kubectl("scale", "deployment/minio", "--replicas=1", namespace="minio")
        kube.kubectl("rollout", "status", "deployment/minio", "--timeout=60s", namespace="minio")
        assert kube.wait_end("dry") == "Successful", kube.log("dry")
    assert _committed(run_id).metrics == pytest.approx(expected)


def _yaml(run_id: str) -> Any:
    return yaml.safe_load(clusters_of_proteins(run_id, N_INIT))


def _committed(run_id: str) -> Manifest:
    return read_manifest(f"s3://demo/e2e/{run_id}")
