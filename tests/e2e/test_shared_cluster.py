"""A long-lived cluster with a GPU group: does it grow and shrink by demand, and do GPU tasks stay on the GPU node?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import kube
import pytest
import yaml

from jobs import storage
from jobs.artifacts import read_manifest

GPU = ("--values", str(kube.ROOT / "operator_config/gpu.yaml"), "--set", "gpuImage.tag=0.1.0")
AUTOSCALING = (
    *("--set", "workerGroups.default.replicas=1", "--set", "autoscaling.enabled=true"),
    *("--set", "autoscaling.minimum=1", "--set", "autoscaling.maximum=3"),
)
# Tasks of 4 s each: more than a worker gets done in the time that the autoscaler aims for.
LOAD = """
import time
futures = client.map(time.sleep, [4 + i / 1000 for i in range(N)], pure=False)
client.gather(futures)
print(json.dumps(sorted({worker["name"] for worker in client.scheduler_info(n_workers=-1)["workers"].values()})))
"""
ASK_FOR_GPU = """
def where(i):
    import time
    from distributed import get_worker
    time.sleep(0.05)
    return get_worker().name
futures = client.map(where, range(20), resources={"GPU": 1}, pure=False)
print(json.dumps(sorted(set(client.gather(futures)))))
"""


@pytest.fixture(scope="module")
def shared() -> Iterator[str]:
    with kube.cluster("shared", *GPU, *AUTOSCALING) as name:
        kube.wait("a worker of each group", lambda: len(_names("default")) == 1 and len(_names("gpu")) == 1)
        yield name


def test_gpu_pods_land_on_the_gpu_node_and_no_others_do(shared: str) -> None:
    nodes = {node["metadata"]["name"]: node["metadata"]["labels"] for node in kube.listed("nodes")}
    for pod in (*kube.pods(shared, "worker"), *kube.pods(shared, "scheduler")):
        is_gpu_pod = pod["metadata"]["labels"].get("dask.org/workergroup-name") == "shared-gpu"
        is_gpu_node = nodes[pod["spec"]["nodeName"]].get("daskyard.dev/hardware") == "gpu"
        assert is_gpu_pod == is_gpu_node, kube.name_of(pod)
        limits = pod["spec"]["containers"][0]["resources"]["limits"]
        assert limits.get("nvidia.com/gpu") == ("1" if is_gpu_pod else None)


def test_tasks_that_ask_for_a_gpu_run_on_gpu_workers_only(shared: str) -> None:
    assert kube.on_scheduler(shared, ASK_FOR_GPU) == [_worker_name(name) for name in _names("gpu")]


def test_cluster_grows_under_load_and_goes_back_to_its_minimum_without_touching_gpu_workers(shared: str) -> None:
    gpu = _names("gpu")
    before = _names("default")
    assert len(before) == 1
    workers = kube.on_scheduler(shared, f"N = 24\n{LOAD}", timeout_s=180)
    assert len([name for name in workers if name.startswith("shared-default-")]) >= 2
    kube.wait("the minimum", lambda: len(_names("default")) == 1, timeout_s=150, pause_s=2)
    assert _names("gpu") == gpu
    assert _size("default") == 1


def test_groups_that_say_how_far_grow_for_their_own_tasks_and_go_back(shared: str) -> None:
    kube.kubectl("delete", "daskautoscaler", shared)
    for group, n_min, n_max in (("default", 1, 3), ("gpu", 0, 1)):
        bounds = (f"daskyard.dev/min-workers={n_min}", f"daskyard.dev/max-workers={n_max}")
        kube.kubectl("annotate", "daskworkergroup", f"shared-{group}", *bounds)
    kube.wait("no GPU worker", lambda: (_size("default"), _size("gpu")) == (1, 0), timeout_s=120, pause_s=1)
    assert all(name.startswith("shared-gpu-") for name in kube.on_scheduler(shared, ASK_FOR_GPU))
    assert (_size("default"), _size("gpu")) == (1, 1)
    kube.wait("no GPU worker", lambda: _size("gpu") == 0, timeout_s=120, pause_s=1)
    workers = kube.on_scheduler(shared, f"N = 24\n{LOAD}", timeout_s=180)
    assert len([name for name in workers if name.startswith("shared-default-")]) == 3
    assert _size("gpu") == 0
    kube.wait("the minimum", lambda: (_size("default"), _size("gpu")) == (1, 0), timeout_s=120, pause_s=1)


def test_training_that_asks_for_gpus_runs_on_gpu_workers() -> None:
    job = yaml.safe_load((kube.ROOT / "examples/adult_mlp.yaml").read_text())
    job["run_id"], job["output"] = "on-gpu", "s3://demo/e2e"
    job["params"]["hardware"] = "gpu"
    storage.remove_tree("s3://demo/e2e/on-gpu")
    with kube.job("on-gpu", yaml.safe_dump(job), *GPU):
        assert kube.wait_end("on-gpu") == "Successful", kube.log("on-gpu")
        metrics: dict[str, Any] = dict(read_manifest("s3://demo/e2e/on-gpu").metrics)
    # Two workers without a GPU and one with: had the ranks been anywhere, there would be three.
    assert metrics["world_size"] == 1


def _size(group: str) -> int:
    return int(kube.get("daskworkergroup", f"shared-{group}")["spec"]["worker"]["replicas"])


def _names(group: str) -> list[str]:
    return sorted(
        kube.name_of(pod)
        for pod in kube.pods("shared", "worker")
        if pod["metadata"]["labels"]["dask.org/workergroup-name"] == f"shared-{group}" and kube.is_ready(pod)
    )


def _worker_name(pod: str) -> str:
    """Name of the Dask worker in a pod: that of its Deployment."""
    return pod.rsplit("-", 2)[0]
