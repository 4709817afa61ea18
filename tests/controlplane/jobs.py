"""MLJobs for the scenarios."""

from __future__ import annotations

from typing import Any

from controller.api import Object
from tests.controlplane.plane import TEAM

NOBODY = "http://127.0.0.1:1/{namespace}/{service}"
WRONG = {"outcome": "failed", "error": "InputError", "exit_code": 2, "message": "a.csv: no column y"}


def mljob(name: str, namespace: str = TEAM, **changes: Any) -> Object:
    """Return an MLJob of one worker."""
    spec = {
        "pipeline": "kmeans",
        "params": {"n_clusters": 8},
        "input": "s3://demo/data/bio",
        "output": "s3://demo/runs",
        "workers": {"cpu": {"min": 1, "max": 2}},
        **changes,
    }
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "daskyard.dev/v1alpha1", "kind": "MLJob", "metadata": metadata, "spec": spec}
