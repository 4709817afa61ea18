"""MLJob and MLRuntime as models: what they take, what they refuse and with which words, and their definitions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from controller import definitions
from controller.resources import MLJobSpec, MLJobStatus, MLRuntimeSpec
from jobs import spec
from jobs.errors import SpecError

ROOT = Path(__file__).parents[2]
JOB = {
    "pipeline": "kmeans",
    "params": {"n_clusters": 8},
    "input": "s3://demo/data/bio",
    "output": "s3://demo/runs",
    "workers": {"cpu": {"min": 1, "max": 4}},
}
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.yaml"))


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_is_the_spec_of_an_mljob_too(name: str) -> None:
    content = yaml.safe_load((ROOT / "examples" / name).read_text())
    run = {"run_id": "a-name"}
    assert MLJobSpec.model_validate(content).job_spec("a-name") == spec.parse({**content, **run})


def test_the_run_is_named_as_the_job_unless_it_says_otherwise() -> None:
    assert MLJobSpec.model_validate(JOB).job_spec("bio").name == "bio"
    assert MLJobSpec.model_validate({**JOB, "runId": "other"}).job_spec("bio").name == "other"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pipeline": "kmean"}, "pipeline"),
        ({"output": ""}, "output"),
        ({"runId": "Not_a_label"}, "runId"),
        ({"workers": {}}, "workers"),
        ({"workers": {"cpu": {"min": 3, "max": 2}}}, "cpu: min 3 is above max 2; lower min or raise max"),
        ({"workers": {"cpu": {"min": 0, "max": 2}}}, "no group has a min above 0"),
        ({"workers": {"Big": {}}}, "Big: no name for a group"),
        ({"workers": {"default": {}}}, "default: the operator has a group of that name"),
        ({"workers": {f"g{n}": {} for n in range(9)}}, "workers"),
        ({"backoffLimit": -1}, "backoffLimit"),
        ({"pendingDeadlineSeconds": 1}, "pendingDeadlineSeconds"),
        ({"image": "mine"}, "image"),
    ],
)
def test_a_bad_spec_is_refused_with_its_key(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        MLJobSpec.model_validate({**JOB, **change})


def test_params_are_held_against_the_pipelines_own_model() -> None:
    with pytest.raises(SpecError, match=r"spec: params\.n_clusters: "):
        MLJobSpec.model_validate({**JOB, "params": {"n_clusters": 0}}).job_spec("bio")


def nodes(schema: Any) -> list[dict[str, Any]]:
    if isinstance(schema, dict):
        return [schema, *(found for value in schema.values() for found in nodes(value))]
    return [found for item in schema for found in nodes(item)] if isinstance(schema, list) else []


@pytest.mark.parametrize("model", [MLJobSpec, MLJobStatus, MLRuntimeSpec])
def test_schemas_are_structural(model: Any) -> None:
    for node in nodes(definitions.schema_of(model)):
        assert not node.keys() & {"$ref", "$defs", "anyOf", "oneOf", "patternProperties", "const"}
        assert "additionalProperties" not in node or "properties" not in node
        if "properties" in node or "items" in node:
            assert node["type"] in ("object", "array")


def test_alternatives_that_kubernetes_cannot_tell_apart_are_an_error() -> None:
    with pytest.raises(ValueError, match="too many values"):
        definitions.structural({"anyOf": [{"type": "string"}, {"type": "integer"}]})


def test_definitions_on_disk_are_those_of_the_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["definitions", str(tmp_path)])
    assert definitions.main() == 0
    for path in tmp_path.iterdir():
        assert path.read_text() == (ROOT / "operator_config/crds" / path.name).read_text(), "run: make schema"
