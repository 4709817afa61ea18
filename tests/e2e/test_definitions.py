"""What the API server makes of MLJob's and MLRuntime's definitions: defaults, and refusals that name the key."""

from __future__ import annotations

import json
from typing import Any

import kube
import pytest
import yaml

MLJOB = """
apiVersion: daskyard.dev/v1alpha1
kind: MLJob
metadata:
  name: defined
spec:
  pipeline: kmeans
  params: {n_clusters: 8, n_init: 3}
  input: s3://demo/data/bio
  output: s3://demo/runs
  workers:
    cpu: {min: 1, max: 4}
"""


def created(change: dict[str, Any], *, is_dry: bool = True) -> str:
    """Create the MLJob with some keys of its spec, or its name, changed; return what is said, of success or not."""
    job = yaml.safe_load(MLJOB)
    job["metadata"]["name"] = change.get("name", "defined")
    job["spec"] |= {key: value for key, value in change.items() if key != "name"}
    options = ("--dry-run=server",) if is_dry else ()
    return kube.kubectl("create", *options, "--validate=strict", "--filename", "-", stdin=json.dumps(job), check=False)


def test_a_job_of_eleven_lines_is_taken_and_gets_its_defaults() -> None:
    assert len(MLJOB.strip().splitlines()) == 11
    assert "created" in created({"suspend": True}, is_dry=False)
    try:
        spec = kube.get("mljob", "defined")["spec"]
        assert spec["workers"] == {"cpu": {"min": 1, "max": 4}}
        assert (spec["backoffLimit"], spec["runtime"], spec["pendingDeadlineSeconds"]) == (3, "default", 600)
        patched = kube.kubectl(
            "patch", "mljob", "defined", "--type=merge", "--patch", '{"spec": {"pipeline": "recommender"}}', check=False
        )
        assert "pipeline cannot change; make another MLJob" in patched
        kube.wait("the phase", lambda: (kube.get("mljob", "defined").get("status") or {}).get("phase") == "Suspended")
    finally:
        kube.kubectl("delete", "mljob", "defined")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"pipeline": "kmean"}, "spec.pipeline"),
        ({"output": ""}, "spec.output"),
        ({"workers": {"cpu": {"min": 3, "max": 2}}}, "min must not be above max"),
        ({"workers": {"cpu": {"min": 0}}}, "a group must have a min above 0"),
        ({"workers": {"Big": {}}}, "names of groups are lower case letters"),
        ({"workers": {"default": {}}}, "default is the operator's own group"),
        ({"name": 48 * "a", "workers": {"cpu-and-more": {}}}, "must have at most 58 characters together"),
        ({"workers": {}}, "spec.workers"),
        ({"backoffLimit": 21}, "spec.backoffLimit"),
        ({"image": "mine"}, 'unknown field "spec.image"'),
        ({"name": 50 * "a"}, "metadata.name must have at most 49 characters"),
    ],
)
def test_a_bad_job_is_refused_with_its_key(change: dict[str, Any], named: str) -> None:
    said = created(change)
    assert named in said, said
    assert "created" not in said
