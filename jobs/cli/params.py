"""What a pipeline takes, read off its params model: name, type, default, meaning."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel


@dataclass(frozen=True)
class Param:
    """One param as a person reads it."""

    name: str
    type: str
    default: Any
    is_required: bool
    meaning: str


def params(model: type[BaseModel]) -> list[Param]:
    """Return the params of a model, its own before those that it inherits."""
    schema = model.model_json_schema()
    required = schema.get("required", ())
    definitions = schema.get("$defs", {})
    depth = {name: i for i, base in enumerate(model.__mro__) for name in inspect.get_annotations(base)}
    found = [
        Param(
            name,
            type_text(content, definitions),
            content.get("default"),
            name in required,
            content.get("description", ""),
        )
        for name, content in schema["properties"].items()
    ]
    return sorted(found, key=lambda param: depth[param.name])


def summary(model: type[BaseModel]) -> str:
    """First line of a model's docstring."""
    return (model.__doc__ or "").strip().split("\n", 1)[0]


def type_text(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """A JSON Schema as text, such as ``int, 1 to 100`` or ``"a" | "b"``."""
    if "$ref" in schema:
        return type_text(definitions[schema["$ref"].rsplit("/", 1)[1]], definitions)
    if "anyOf" in schema:
        return " | ".join(type_text(each, definitions) for each in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(str(value) for value in schema["enum"])
    if "const" in schema:
        return str(schema["const"])
    kind = schema.get("type")
    if kind == "array":
        items = schema.get("items")
        return f"list of {type_text(items, definitions)}" if items else "list"
    if kind == "object":
        return "mapping"
    names = {"integer": "int", "number": "float", "string": "text", "boolean": "bool", "null": "none"}
    return names.get(str(kind), "any") + _bounds(schema)


def _bounds(schema: Mapping[str, Any]) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        return f", {_number(low)} to {_number(high)}"
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    return "".join(f", {sign} {_number(schema[key])}" for key, sign in signs.items() if key in schema)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
