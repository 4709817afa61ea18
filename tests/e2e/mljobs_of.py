"""MLJobs of the scenarios: made, waited for, and gone afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import kube
import yaml

LEFT = "mljobs,jobs,configmaps,daskclusters,daskworkergroups,deployments,services,pods,networkpolicies"


def mljob(name: str, job_file: str, **more: Any) -> dict[str, Any]:
    """Return an MLJob of a job file, with further keys of its spec."""
    spec = yaml.safe_load(job_file)
    spec["runId"] = spec.pop("run_id", name)
    return {
        "apiVersion": "daskyard.dev/v1alpha1",
        "kind": "MLJob",
        "metadata": {"name": name},
        "spec": {"workers": {"cpu": {"min": 2, "max": 2}}, **spec, **more},
    }


@contextmanager
def submitted(job: dict[str, Any]) -> Iterator[str]:
    """Make an MLJob; it and all that was made of it is gone afterwards."""
    name = job["metadata"]["name"]
    kube.kubectl("create", "--filename", "-", stdin=json.dumps(job))
    try:
        yield name
    finally:
        delete(name)


def delete(name: str) -> None:
    """Delete an MLJob, and wait until nothing of it is left."""
    kube.kubectl("delete", "mljob", name, "--ignore-not-found", "--wait=true", "--timeout=60s", timeout_s=90)
    kube.wait(f"the end of all of {name}", lambda: not left(name), timeout_s=150, pause_s=1)


def left(name: str) -> list[str]:
    """Return what there is of an MLJob."""
    return kube.kubectl("get", LEFT, "--selector", f"daskyard.dev/job={name}", "--output", "name").split()


def status(name: str) -> dict[str, Any]:
    """Return an MLJob's status."""
    return dict((kube.get("mljob", name) or {}).get("status") or {})


def condition(name: str, kind: str = "Complete") -> dict[str, Any]:
    """Return a condition; an empty one where it was never said."""
    return next((c for c in status(name).get("conditions", []) if c["type"] == kind), {})


def wait_reason(name: str, reason: str, timeout_s: float = 60) -> str:
    """Wait until the job says a reason, and return its message."""
    kube.wait(f"{name}: {reason}", lambda: condition(name).get("reason") == reason, timeout_s)
    return str(condition(name)["message"])


def wait_end(name: str, timeout_s: float = 900) -> dict[str, Any]:
    """Wait until the job has ended and its cluster and logs are taken care of; return its status."""
    kube.wait(f"the end of {name}", lambda: status(name).get("completionTime"), timeout_s, 1)
    kube.wait(
        f"{name}'s logs", lambda: not status(name)["attempts"] or status(name)["attempts"][-1].get("logs"), 150, 1
    )
    return status(name)


def wait_stage(name: str, stage: str, timeout_s: float = 240) -> None:
    """Wait until the job's status names a stage."""

    def is_there() -> bool:
        said = status(name)
        assert not said.get("completionTime"), f"{name} ended before {stage}: {said}"
        return said.get("stage") == stage

    kube.wait(f"{name}: stage {stage}", is_there, timeout_s, 0.5)


def pods(name: str, role: str, attempt: int | None = None) -> list[Any]:
    """Return a job's pods in a role that are not on their way out."""
    selector = f"daskyard.dev/job={name},app.kubernetes.io/component={role}"
    selector += f",daskyard.dev/attempt={attempt}" if attempt is not None else ""
    return [pod for pod in kube.listed("pods", "--selector", selector) if "deletionTimestamp" not in pod["metadata"]]


def kill(pod: Any) -> None:
    """Delete a pod without grace."""
    kube.kubectl("delete", "pod", kube.name_of(pod), "--grace-period=0", "--force")
