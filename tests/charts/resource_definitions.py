"""Validates our custom resources as an API server would, by the definitions that the platform chart installs.

They embed a PodSpec of old: what it does not know, the API server prunes without a word. Here that is an error. Keys
that start with x-kubernetes- are Kubernetes' own extensions of JSON Schema.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from jsonschema import Draft202012Validator
from render import Object, render

INSTALLED_BY = "platform on kind"


def problems_of(obj: Object) -> list[str]:
    """Return what is wrong with a custom resource, each with its place."""
    body = {key: value for key, value in obj.items() if key not in ("apiVersion", "kind", "metadata")}
    errors = _validator(obj["apiVersion"], obj["kind"]).iter_errors(body)
    return sorted(f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in errors)


@cache
def _validator(api_version: str, kind: str) -> Draft202012Validator:
    group, version = api_version.split("/")
    for definition in render(INSTALLED_BY):
        spec = definition.get("spec", {})
        if definition["kind"] == "CustomResourceDefinition" and spec["names"]["kind"] == kind:
            assert spec["group"] == group
            schema = next(item["schema"] for item in spec["versions"] if item["name"] == version)
            return Draft202012Validator(_without_pruning(schema["openAPIV3Schema"]))
    raise LookupError(f"no definition of {api_version} {kind}")


def _without_pruning(schema: dict[str, Any]) -> dict[str, Any]:
    """Turn a structural schema into JSON Schema that refuses what would be pruned."""
    closed = dict(schema)
    if "properties" in schema:
        closed["properties"] = {key: _without_pruning(value) for key, value in schema["properties"].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            closed[key] = _without_pruning(schema[key])
    is_open = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if schema.get("type") == "object" and not is_open:
        closed["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string"):
        closed["type"] = ["integer", "string"]
    elif schema.get("nullable"):
        closed["type"] = [schema["type"], "null"]
    return closed
