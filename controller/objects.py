"""The objects of an attempt, made from the MLJob and its runtime: pure functions, the same answer each time.

All bear the MLJob as their owner and names that follow from it, so that whoever makes one again finds it there, and
all go when it goes. They and their pods bear its UID as a label, by which the controller knows its own: a job that was
deleted and made anew is another. The stock operator makes pods of the DaskCluster and the DaskWorkerGroups.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

from controller.resources import CLUSTER, GROUP, VERSION, MLJobSpec, MLRuntimeSpec, PodTemplate

Object = dict[str, Any]

JOB_FILE_FOLDER, JOB_FILE = "/etc/daskyard", "job.yaml"
JOB_LABEL, UID_LABEL, ATTEMPT_LABEL = f"{GROUP}/job", f"{GROUP}/job-uid", f"{GROUP}/attempt"
ROLE_LABEL = "app.kubernetes.io/component"
LOG_FOLDER = "/var/log/daskyard"
RESULT_FILE = "/dev/termination-log"
LOGS_DEADLINE_S = 120
_DASK = "kubernetes.dask.org/v1"
_SCHEDULER_PORT = 8786
# Of quantities of memory, in bytes.
_UNITS = {"": 1, **{f"{letter}i": 1024**n for n, letter in enumerate("KMGT", 1)}}


@dataclass(frozen=True)
class Of:
    """Whose objects these are: the MLJob, and which of its attempts."""

    name: str
    namespace: str
    uid: str
    attempt: int

    @property
    def cluster(self) -> str:
        """Name of the attempt's cluster and runner."""
        return f"{self.name}-{self.attempt}"

    @property
    def logs(self) -> str:
        """Name of what takes the attempt's logs to storage."""
        return f"{self.cluster}-logs"

    @property
    def labels(self) -> dict[str, str]:
        """Labels of all objects and pods of the attempt."""
        return {JOB_LABEL: self.name, UID_LABEL: self.uid, ATTEMPT_LABEL: str(self.attempt)}

    def metadata(self, name: str) -> Object:
        """Metadata of an object of the attempt."""
        owner = {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": "MLJob",
            "name": self.name,
            "uid": self.uid,
            "controller": True,
            "blockOwnerDeletion": True,
        }
        labels = {
            "app.kubernetes.io/managed-by": "daskyard-controller",
            "app.kubernetes.io/part-of": "daskyard",
            **self.labels,
        }
        return {"name": name, "namespace": self.namespace, "labels": labels, "ownerReferences": [owner]}


def job_file(of: Of, spec: MLJobSpec) -> Object:
    """Return the ConfigMap with the job file: what the job is, whatever becomes of the MLJob's spec later.

    Raises
    ------
    SpecError
        When the pipeline's models refuse the spec.
    """
    content = spec.job_spec(of.name).model_dump(mode="json", exclude_unset=True)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": of.metadata(of.cluster),
        "immutable": True,
        "data": {JOB_FILE: json.dumps(content, indent=2)},  # JSON is YAML
    }


def network_policies(of: Of, runtime: MLRuntimeSpec) -> list[Object]:
    """Return what closes the attempt's pods off."""
    return [
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": of.metadata(f"{of.cluster}-{policy.suffix}"),
            "spec": _named(policy.spec, of.cluster),
        }
        for policy in runtime.network_policies
    ]


def cluster(of: Of, spec: MLJobSpec, runtime: MLRuntimeSpec, memory: float = 1.0) -> Object:
    """Return the DaskCluster, without workers of its own: each group is a DaskWorkerGroup, so that all are alike.

    Raises
    ------
    KeyError
        When the runtime lacks a hardware class; see `problems`.
    """
    first = spec.hardware(next(iter(spec.workers)))
    return {
        "apiVersion": _DASK,
        "kind": "DaskCluster",
        "metadata": of.metadata(of.cluster),
        "spec": {
            "scheduler": {
                **_pod(of, runtime.scheduler, "scheduler"),
                "service": _named(runtime.scheduler.service, of.cluster),
            },
            "worker": {"replicas": 0, **_worker(of, runtime, first, memory)},
        },
    }


def worker_groups(of: Of, spec: MLJobSpec, runtime: MLRuntimeSpec, memory: float = 1.0) -> list[Object]:
    """Return the DaskWorkerGroups, each with its fewest workers; scaling changes `replicas` later.

    `memory` is a factor on that of the runtime's workers: more after an attempt that ran out of it.
    """
    return [
        {
            "apiVersion": _DASK,
            "kind": "DaskWorkerGroup",
            "metadata": of.metadata(f"{of.cluster}-{name}"),
            "spec": {
                "cluster": of.cluster,
                "worker": {"replicas": group.min, **_worker(of, runtime, spec.hardware(name), memory)},
            },
        }
        for name, group in spec.workers.items()
    ]


def runner(of: Of, spec: MLJobSpec, runtime: MLRuntimeSpec, memory: float = 1.0) -> Object:
    """Return the runner's Job: its pod runs once; exit 2 and 75 are for the controller to read.

    It is there before any worker is: first it looks whether input and output are in order.
    """
    pod = _pod(of, runtime.runner, "runner", memory)
    file = f"{JOB_FILE_FOLDER}/{JOB_FILE}"
    container = pod["spec"]["containers"][0]
    mounted = _with_volume(pod, "job", {"configMap": {"name": of.cluster, "defaultMode": 0o444}}, JOB_FILE_FOLDER)
    preflight = {**mounted, "name": "preflight", "args": ["daskyard", "preflight", file, "--result", RESULT_FILE]}
    pod["spec"]["initContainers"] = [*pod["spec"].get("initContainers", []), preflight]
    environment = {
        "DASK_SCHEDULER_ADDRESS": f"tcp://{of.cluster}-scheduler:{_SCHEDULER_PORT}",
        "DASK_DASKYARD__START_TIMEOUT": str(spec.pending_deadline_seconds),
        "DASK_DASKYARD__MIN_WORKERS": str(sum(group.min for group in spec.workers.values())),
    }
    container["args"] = ["daskyard", "run", file, "--result", RESULT_FILE]
    container["env"] = [
        *container.get("env", []),
        *({"name": name, "value": value} for name, value in environment.items()),
    ]
    return _job(of, of.cluster, pod)


def log_files(of: Of, files: dict[str, str]) -> Object:
    """Return the ConfigMap that holds what the attempt's pods have logged, on its way to storage."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": of.metadata(of.logs),
        "immutable": True,
        "data": files,
    }


def log_job(of: Of, spec: MLJobSpec, runtime: MLRuntimeSpec) -> Object:
    """Return the Job that writes those files to the run's folder, with the runner's access to storage."""
    pod = _pod(of, runtime.runner, "logs")
    container = _with_volume(pod, "logs", {"configMap": {"name": of.logs, "defaultMode": 0o444}}, LOG_FOLDER)
    container["args"] = ["daskyard", "save-logs", LOG_FOLDER, spec.run_url(of.name)]
    return _job(of, of.logs, pod, deadline_s=LOGS_DEADLINE_S)


def _with_volume(pod: Object, name: str, volume: Object, folder: str) -> Object:
    """Mount a volume into the pod's first container, and return that container."""
    container: Object = pod["spec"]["containers"][0]
    mount = {"name": name, "mountPath": folder, "readOnly": True}
    container["volumeMounts"] = [*container.get("volumeMounts", []), mount]
    pod["spec"]["volumes"] = [*pod["spec"].get("volumes", []), {"name": name, **volume}]
    return container


def _job(of: Of, name: str, pod: Object, deadline_s: int | None = None) -> Object:
    pod["spec"]["restartPolicy"] = "Never"
    for container in (*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]):
        # What dies before it could write its last word is known by the end of its log.
        container["terminationMessagePolicy"] = "FallbackToLogsOnError"
    disruption = {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": of.metadata(name),
        "spec": {
            # Attempts are the controller's: each has a cluster of its own.
            "backoffLimit": 0,
            "podFailurePolicy": {"rules": [disruption]},
            **({"activeDeadlineSeconds": deadline_s} if deadline_s is not None else {}),
            "template": pod,
        },
    }


def problems(spec: MLJobSpec, runtime: MLRuntimeSpec) -> str:
    """Return why the runtime cannot serve the spec, or nothing."""
    for name in spec.workers:
        hardware = spec.hardware(name)
        if hardware not in runtime.hardware:
            known = ", ".join(sorted(runtime.hardware))
            return f"spec.workers.{name}.hardware: the runtime {spec.runtime} has no {hardware!r}; known: {known}"
    n_workers = sum(group.max for group in spec.workers.values())
    if n_workers > runtime.max_workers:
        return (
            f"spec.workers: {n_workers} at most, the runtime {spec.runtime} allows {runtime.max_workers}; lower a max"
        )
    return ""


def _worker(of: Of, runtime: MLRuntimeSpec, hardware: str, memory: float) -> Object:
    return _pod(of, runtime.hardware[hardware], "worker", memory)


def _pod(of: Of, template: PodTemplate, component: str, memory: float = 1.0) -> Object:
    pod = {"metadata": _named(template.metadata, of.cluster), "spec": _named(template.spec, of.cluster)}
    labels = pod["metadata"].setdefault("labels", {})
    labels |= {
        ROLE_LABEL: component,
        "dask.org/cluster-name": of.cluster,
        # By which the network policies know it. Not job-runner: the operator would delete the cluster when it ends.
        "dask.org/component": "mljob-runner" if component in ("runner", "logs") else component,
        **of.labels,
    }
    if memory != 1.0:
        resources = pod["spec"]["containers"][0].get("resources", {})
        for part in (resources.get("requests", {}), resources.get("limits", {})):
            if "memory" in part:
                part["memory"] = scaled(part["memory"], memory)
    return pod


def scaled(quantity: str, factor: float) -> str:
    """Return a quantity of memory times a factor, in whole mebibytes.

    Raises
    ------
    ValueError
        When it is no number with one of the units Ki, Mi, Gi and Ti.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([KMGT]i)?", quantity)
    if match is None:
        raise ValueError(f"{quantity}: no quantity of memory; write it with Mi or Gi")
    return f"{math.ceil(float(match[1]) * _UNITS[match[2] or ''] * factor / 1024**2)}Mi"


def _named(template: Any, name: str) -> Any:
    """Return a copy of the template with the cluster's name put in."""
    if isinstance(template, str):
        return template.replace(CLUSTER, name)
    if isinstance(template, dict):
        return {key: _named(value, name) for key, value in template.items()}
    if isinstance(template, list):
        return [_named(value, name) for value in template]
    return template
