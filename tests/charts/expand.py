"""What operator and controller make of custom resources.

Linters and Pod Security do not look into a DaskCluster; a bad pod template passes them all and then fails in silence.
So the resources are expanded with the operator's own builders and with kopf's own `adopt` and `label`, in the order in
which the operator's handlers call them. Of a group's workers, which differ in their names only, one is made.

Nor do they look into an MLRuntime: the controller's own functions make an attempt of it, of a job that takes a group of
each hardware class, and what comes of that is expanded like the rest.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache

import kopf
from dask_kubernetes.operator.controller import controller as operator
from render import Object, render

from controller import objects as controller
from controller.resources import MLJobSpec, MLRuntimeSpec

DASK = "kubernetes.dask.org/v1"
OURS = "daskyard.dev/v1alpha1"
_SUFFIX = "0123456789"  # the operator draws ten hexadecimal digits for each worker


@cache
def expand(name: str) -> tuple[Object, ...]:
    """Return what operator and controller make of one of render.ALL."""
    return tuple(expand_objects(render(name)))


@cache
def everything(name: str) -> tuple[Object, ...]:
    """Return what is rendered and what is made of it."""
    return (*render(name), *expand(name))


def expand_objects(objects: Iterable[Object]) -> list[Object]:
    """Follow the controller through an attempt, and the operator's handlers of creation."""
    objects = list(objects)
    made = [part for obj in objects if obj["kind"] == "MLRuntime" for part in _attempt(obj)]
    clusters: dict[str, Object] = {}
    ours = [obj for obj in (*objects, *made) if obj["apiVersion"] == DASK]
    for job in (obj for obj in ours if obj["kind"] == "DaskJob"):
        cluster, pod = _job(job)
        made += [cluster, pod]
        ours.append(cluster)
    for cluster in (obj for obj in ours if obj["kind"] == "DaskCluster"):
        clusters[cluster["metadata"]["name"]] = cluster
        *scheduler, group = _cluster(cluster)
        made += [*scheduler, group]
        ours.append(group)
    for group in (obj for obj in ours if obj["kind"] == "DaskWorkerGroup"):
        made.append(_worker(group, clusters[group["spec"]["cluster"]]))
    return [json.loads(json.dumps(obj)) for obj in made]  # the builders share parts between objects


def _attempt(runtime: Object) -> list[Object]:
    content = {
        "pipeline": "kmeans",
        "input": "s3://demo/data/bio",
        "output": "s3://demo/runs",
        "params": {"n_clusters": 8},
        "runtime": runtime["metadata"]["name"],
        "workers": {name: {} for name in runtime["spec"]["hardware"]},
    }
    spec, template = MLJobSpec.model_validate(content), MLRuntimeSpec.model_validate(runtime["spec"])
    whose = controller.Of("demo", runtime["metadata"]["namespace"], "00000000-0000-0000-0000-000000000001", 1)
    assert not controller.problems(spec, template)
    return [
        *controller.network_policies(whose, template),
        controller.job_file(whose, spec),
        controller.runner(whose, spec, template),
        controller.cluster(whose, spec, template),
        *controller.worker_groups(whose, spec, template),
        controller.log_files(whose, {"runner.log": ""}),
        controller.log_job(whose, spec, template),
    ]


def _job(job: Object) -> tuple[Object, Object]:
    name, spec = job["metadata"]["name"], job["spec"]
    cluster = operator.build_cluster_spec(
        name, spec["cluster"]["spec"]["worker"], spec["cluster"]["spec"]["scheduler"], **_inherited(job)
    )
    pod = operator.build_job_pod_spec(
        name, name, job["metadata"]["namespace"], spec["job"]["spec"], **_inherited(job, spec["job"])
    )
    return _adopt(cluster, job), _adopt(pod, job)


def _cluster(cluster: Object) -> tuple[Object, Object, Object]:
    name, scheduler, worker = cluster["metadata"]["name"], cluster["spec"]["scheduler"], cluster["spec"]["worker"]
    meta = _inherited(cluster, scheduler)
    deployment = _adopt(operator.build_scheduler_deployment_spec(name, scheduler["spec"], **meta), cluster)
    service = _adopt(
        operator.build_scheduler_service_spec(name, scheduler["service"], **_inherited(cluster, scheduler)), cluster
    )
    group = operator.build_default_worker_group_spec(name, worker, **_inherited(cluster, worker))
    group["metadata"]["namespace"] = cluster["metadata"]["namespace"]
    return deployment, service, group


def _worker(group: Object, cluster: Object) -> Object:
    deployment = operator.build_worker_deployment_spec(
        group["metadata"]["name"],
        group["metadata"]["namespace"],
        cluster["metadata"]["name"],
        _SUFFIX,
        group["spec"]["worker"]["spec"],
        **_inherited(group, group["spec"]["worker"]),
    )
    _adopt(deployment, group)
    kopf.label(deployment, labels=cluster["metadata"]["labels"])
    return deployment


def _inherited(owner: Object, part: Object | None = None) -> dict[str, dict[str, str]]:
    """Labels and annotations that a thing gets from the object it is made from and from the part that describes it."""
    meta = kopf.Body(owner).metadata
    own = (part or {}).get("metadata", {})
    return {
        "annotations": operator._get_annotations(meta) | own.get("annotations", {}),
        "labels": operator._get_labels(meta) | own.get("labels", {}),
    }


def _adopt(obj: Object, owner: Object) -> Object:
    metadata = owner["metadata"] | {"uid": "00000000-0000-0000-0000-000000000000"}
    kopf.adopt(obj, owner=kopf.Body(owner | {"metadata": metadata}))
    return obj
