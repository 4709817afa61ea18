"""`python -m controller.definitions`: write operator_config/crds, the definitions of our custom resources.

They are made from the models of `controller.resources`. Kubernetes takes a part of JSON Schema only (structural
schemas), so what pydantic writes otherwise is said in its way; rules over several values are CEL.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from controller.resources import (
    GROUP,
    GROUP_NAME_MAX,
    JOB_AND_GROUP_MAX,
    LABEL,
    NAME_MAX,
    OPERATORS_GROUP,
    VERSION,
    MLJobSpec,
    MLJobStatus,
    MLRuntimeSpec,
    Resource,
)

TARGET = Path(__file__).parent.parent / "operator_config" / "crds"
# Not part of a structural schema, or of no use to those who read one.
_DROPPED = {"title", "additionalProperties", "$defs"}
_RULES = "x-kubernetes-validations"

Schema = dict[str, Any]


def structural(schema: Schema, definitions: Schema | None = None) -> Schema:
    """Return pydantic's schema as a structural one.

    Raises
    ------
    ValueError
        When it has alternatives that Kubernetes cannot tell apart.
    """
    definitions = schema.get("$defs", {}) if definitions is None else definitions
    if "$ref" in schema:
        target = definitions[schema["$ref"].rpartition("/")[2]]
        return structural({**target, **{k: v for k, v in schema.items() if k != "$ref"}}, definitions)
    if "anyOf" in schema:
        [one] = [choice for choice in schema["anyOf"] if choice != {"type": "null"}]
        rest = {key: value for key, value in schema.items() if key not in ("anyOf", "default")}
        return structural({**one, **rest}, definitions)
    made = {key: value for key, value in schema.items() if key not in _DROPPED}
    if "default" in made:
        made["default"] = _without_nulls(made["default"])
    if "properties" in schema:
        made["properties"] = {name: structural(value, definitions) for name, value in schema["properties"].items()}
    elif isinstance(schema.get("additionalProperties"), dict):
        made["additionalProperties"] = structural(schema["additionalProperties"], definitions)
    if "items" in schema:
        made["items"] = structural(schema["items"], definitions)
    return made


def _without_nulls(default: Any) -> Any:
    """Return a default without the keys that have none: null is of no type here."""
    if isinstance(default, dict):
        return {key: _without_nulls(value) for key, value in default.items() if value is not None}
    return default


def schema_of(model: type[Resource]) -> Schema:
    """Return the structural schema of a model, keys in camelCase."""
    return structural(model.model_json_schema(by_alias=True))


def definition(
    kind: str, short_name: str, spec: Schema, status: Schema | None, columns: list[dict[str, str]], rules: list[Schema]
) -> dict[str, Any]:
    """Return a CustomResourceDefinition of one version."""
    plural = f"{kind.lower()}s"
    properties = {"spec": spec, **({"status": status} if status is not None else {})}
    metadata = {"name": {"type": "string"}}
    root = {
        "type": "object",
        "required": ["spec"],
        "properties": {"metadata": {"type": "object", "properties": metadata}, **properties},
        _RULES: rules,
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
                "shortNames": [short_name],
                "categories": ["daskyard"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": root},
                    "subresources": {"status": {}} if status is not None else {},
                    "additionalPrinterColumns": columns,
                }
            ],
        },
    }


def mljob() -> dict[str, Any]:
    """Return the definition of MLJob."""
    spec = schema_of(MLJobSpec)
    group = spec["properties"]["workers"]["additionalProperties"]
    group[_RULES] = [{"rule": "self.min <= self.max", "message": "min must not be above max"}]
    workers = spec["properties"]["workers"]
    workers[_RULES] = [
        {"rule": "self.exists(name, self[name].min > 0)", "message": "a group must have a min above 0"},
        {
            "rule": f"self.all(name, name.matches('{LABEL}'))",
            "message": f"names of groups are lower case letters, digits and -, {GROUP_NAME_MAX} at most",
        },
        {
            "rule": f"self.all(name, name != '{OPERATORS_GROUP}')",
            "message": f"{OPERATORS_GROUP} is the operator's own group; take another name, such as cpu",
        },
    ]
    spec[_RULES] = [
        {"rule": f"self.{key} == oldSelf.{key}", "message": f"{key} cannot change; make another MLJob"}
        for key in ("pipeline", "output", "runtime")
    ]
    return definition(
        "MLJob",
        "mlj",
        spec,
        schema_of(MLJobStatus),
        [
            _column("Phase", ".status.phase"),
            _column("Stage", ".status.stage"),
            _column("Progress", ".status.progress", "integer"),
            _column("Attempt", ".status.attempt", "integer"),
            _column("Reason", '.status.conditions[?(@.type=="Complete")].reason'),
            _column("Age", ".metadata.creationTimestamp", "date"),
        ],
        [
            {
                "rule": f"self.metadata.name.size() <= {NAME_MAX}",
                "message": f"metadata.name must have at most {NAME_MAX} characters",
            },
            {
                "rule": "self.spec.workers.all(group, "
                f"self.metadata.name.size() + group.size() <= {JOB_AND_GROUP_MAX})",
                "message": f"metadata.name and the name of a worker group must have at most {JOB_AND_GROUP_MAX} "
                "characters together",
            },
        ],
    )


def mlruntime() -> dict[str, Any]:
    """Return the definition of MLRuntime."""
    columns = [_column("Workers", ".spec.maxWorkers", "integer"), _column("Age", ".metadata.creationTimestamp", "date")]
    return definition("MLRuntime", "mlr", schema_of(MLRuntimeSpec), None, columns, [])


def _column(name: str, path: str, kind: str = "string") -> dict[str, str]:
    return {"name": name, "type": kind, "jsonPath": path}


def main() -> int:
    """Write one file a kind into the folder given, or into operator_config/crds."""
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET
    target.mkdir(parents=True, exist_ok=True)
    for made in (mljob(), mlruntime()):
        name = made["spec"]["names"]["singular"]
        (target / f"{name}.yaml").write_text(yaml.safe_dump(made, sort_keys=False, width=1000))
    return 0


if __name__ == "__main__":
    sys.exit(main())
