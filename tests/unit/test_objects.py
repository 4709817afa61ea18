"""The objects of an attempt: whose they are, how they are named, and what of the runtime is in them."""

from __future__ import annotations

import json
from typing import Any

import kubernetes_validate
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from controller import objects
from controller.objects import Of, scaled
from controller.resources import NAME_MAX, MLJobSpec, MLRuntimeSpec
from jobs import spec as job_spec

KUBERNETES = "1.34"
OF = Of("bio", "team", "uid-1", 2)


def pod(name: str, memory: str) -> dict[str, Any]:
    resources = {"limits": {"memory": memory, "cpu": "1"}, "requests": {"memory": memory}}
    container = {"name": name, "image": "jobs:1", "resources": resources, "env": [{"name": "A", "value": "$(CLUSTER)"}]}
    return {"spec": {"containers": [container], "volumes": [{"name": "tmp", "emptyDir": {}}]}}


SELECTED = {"matchLabels": {"dask.org/cluster-name": "$(CLUSTER)"}}
RUNTIME = MLRuntimeSpec.model_validate(
    {
        "scheduler": {
            **pod("scheduler", "1Gi"),
            "service": {"selector": SELECTED["matchLabels"], "ports": [{"port": 8786, "targetPort": "tcp-comm"}]},
        },
        "runner": pod("runner", "1Gi"),
        "hardware": {
            "cpu": {**pod("worker", "2Gi"), "metadata": {"labels": {"team": "a"}}},
            "gpu": {**pod("worker", "16Gi"), "offers": {"GPU": 1}},
        },
        "networkPolicies": [{"suffix": "worker", "spec": {"podSelector": SELECTED, "policyTypes": ["Ingress"]}}],
        "maxWorkers": 12,
    }
)
SPEC = MLJobSpec.model_validate(
    {
        "pipeline": "kmeans",
        "params": {"n_clusters": 8},
        "input": "s3://demo/data/bio",
        "output": "s3://demo/runs",
        "workers": {"cpu": {"min": 1, "max": 4}, "fast": {"hardware": "gpu", "min": 0, "max": 2}},
    }
)


def made(of: Of = OF, spec: MLJobSpec = SPEC, memory: float = 1.0) -> list[dict[str, Any]]:
    return [
        objects.job_file(of, spec),
        *objects.network_policies(of, RUNTIME),
        objects.cluster(of, spec, RUNTIME, memory),
        *objects.worker_groups(of, spec, RUNTIME, memory),
        objects.runner(of, spec, RUNTIME, memory),
        objects.log_files(of, {"attempt-2.bio-2-runner.log": "…"}),
        objects.log_job(of, spec, RUNTIME),
    ]


def test_the_same_question_has_the_same_answer_and_leaves_the_runtime_as_it_is() -> None:
    before = RUNTIME.model_dump_json()
    assert made() == made()
    assert RUNTIME.model_dump_json() == before


def test_all_are_owned_by_the_job_and_bear_its_name_and_attempt() -> None:
    for found in made():
        metadata = found["metadata"]
        assert [(o["kind"], o["name"], o["uid"], o["controller"]) for o in metadata["ownerReferences"]] == [
            ("MLJob", "bio", "uid-1", True)
        ]
        assert metadata["name"].startswith("bio-2")
        assert metadata["labels"]["daskyard.dev/attempt"] == "2"
        assert metadata["labels"]["daskyard.dev/job-uid"] == "uid-1"


def test_objects_of_two_attempts_share_no_name() -> None:
    names = [(o["kind"], o["metadata"]["name"]) for n in (1, 2) for o in made(Of("bio", "team", "uid-1", n))]
    assert len(set(names)) == len(names)


@given(st.from_regex(r"[a-z]([-a-z0-9]*[a-z0-9])?", fullmatch=True).filter(lambda name: len(name) <= NAME_MAX))
def test_names_fit_into_what_kubernetes_and_the_operator_make_of_them(name: str) -> None:
    of = Of(name, "team", "uid", 100)
    assert len(f"{of.cluster}-scheduler") <= 63
    assert len(of.cluster) <= 53


@pytest.mark.parametrize("kind", ["ConfigMap", "NetworkPolicy", "Job"])
def test_objects_of_kubernetes_own_kinds_are_valid(kind: str) -> None:
    for found in made(memory=1.5):
        if found["kind"] == kind:
            kubernetes_validate.validate(found, KUBERNETES, strict=True)


def test_the_cluster_has_its_name_in_selectors_and_environment_and_no_worker_of_its_own() -> None:
    cluster = objects.cluster(OF, SPEC, RUNTIME)
    assert cluster["spec"]["scheduler"]["service"]["selector"] == {"dask.org/cluster-name": "bio-2"}
    assert cluster["spec"]["scheduler"]["spec"]["containers"][0]["env"] == [{"name": "A", "value": "bio-2"}]
    assert cluster["spec"]["worker"]["replicas"] == 0
    assert "$(CLUSTER)" not in json.dumps(made())


def test_the_operator_is_asked_neither_to_scale_nor_to_end_a_cluster() -> None:
    """With an idleTimeout it would set schedulers to close after 300 s; its DaskAutoscaler chooses who goes."""
    cluster = objects.cluster(OF, SPEC, RUNTIME)
    assert cluster["spec"].keys() == {"scheduler", "worker"}
    assert {found["kind"] for found in made()} == {
        "ConfigMap",
        "NetworkPolicy",
        "DaskCluster",
        "DaskWorkerGroup",
        "Job",
    }


def test_each_group_is_of_its_hardware_and_begins_with_its_fewest_workers() -> None:
    cpu, fast = objects.worker_groups(OF, SPEC, RUNTIME)
    assert [g["metadata"]["name"] for g in (cpu, fast)] == ["bio-2-cpu", "bio-2-fast"]
    assert [g["spec"]["worker"]["replicas"] for g in (cpu, fast)] == [1, 0]
    assert cpu["spec"]["worker"]["metadata"]["labels"]["team"] == "a"
    memory = [g["spec"]["worker"]["spec"]["containers"][0]["resources"]["limits"]["memory"] for g in (cpu, fast)]
    assert memory == ["2Gi", "16Gi"]


def test_the_runner_reads_the_job_file_of_its_attempt_and_finds_its_scheduler() -> None:
    runner, file = objects.runner(OF, SPEC, RUNTIME), objects.job_file(OF, SPEC)
    spec = runner["spec"]["template"]["spec"]
    [container], [first] = spec["containers"], spec["initContainers"]
    assert container["args"] == ["daskyard", "run", "/etc/daskyard/job.yaml", "--result", "/dev/termination-log"]
    assert first["args"] == ["daskyard", "preflight", "/etc/daskyard/job.yaml", "--result", "/dev/termination-log"]
    assert first["volumeMounts"] == container["volumeMounts"]
    assert {"name": "DASK_SCHEDULER_ADDRESS", "value": "tcp://bio-2-scheduler:8786"} in container["env"]
    assert {"name": "job", "configMap": {"name": file["metadata"]["name"], "defaultMode": 0o444}} in spec["volumes"]
    read = job_spec.parse(yaml.safe_load(file["data"]["job.yaml"]))
    assert read == SPEC.job_spec("bio")
    assert read.name == "bio"


def test_memory_grows_in_workers_and_runner_after_it_ran_out() -> None:
    group = objects.worker_groups(OF, SPEC, RUNTIME, 1.5)[0]
    resources = group["spec"]["worker"]["spec"]["containers"][0]["resources"]
    assert (resources["limits"]["memory"], resources["requests"]["memory"]) == ("3072Mi", "3072Mi")
    assert objects.runner(OF, SPEC, RUNTIME, 1.5)["spec"]["template"]["spec"]["containers"][0]["resources"][
        "limits"
    ] == {
        "memory": "1536Mi",
        "cpu": "1",
    }


@pytest.mark.parametrize(("quantity", "expected"), [("1Gi", "1536Mi"), ("1.5Ti", "2359296Mi"), ("1048576", "2Mi")])
def test_quantities_of_memory_are_scaled(quantity: str, expected: str) -> None:
    assert scaled(quantity, 1.5) == expected


def test_a_quantity_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="2GB: no quantity of memory"):
        scaled("2GB", 1.5)


def test_a_runtime_that_cannot_serve_the_job_says_what_it_could() -> None:
    def spec(**workers: Any) -> MLJobSpec:
        return MLJobSpec.model_validate({**SPEC.model_dump(by_alias=True, exclude={"workers"}), "workers": workers})

    assert objects.problems(SPEC, RUNTIME) == ""
    assert objects.problems(spec(a={"hardware": "tpu"}), RUNTIME) == (
        "spec.workers.a.hardware: the runtime default has no 'tpu'; known: cpu, gpu"
    )
    assert objects.problems(spec(cpu={"max": 10}, gpu={"max": 3}), RUNTIME) == (
        "spec.workers: 13 at most, the runtime default allows 12; lower a max"
    )
