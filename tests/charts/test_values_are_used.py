"""Each value that a chart declares is described, set in ci/everything-values.yaml, and changes what is rendered."""

from __future__ import annotations

import copy
import json
import re
import tempfile
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import yaml
from render import CASES, CHARTS, ROOT, helm_template

Values = dict[str, Any]
Keys = tuple[str, ...]

# What ci/everything-values.yaml has to leave at its default, since the other way round renders less.
OTHER = {
    ("networkPolicy", "enabled"): False,
    ("networkPolicy", "operatorNamespace"): "elsewhere",
    ("namespaceDefaults", "denyByDefault"): False,
    ("crds", "install"): False,
    ("controller", "enabled"): False,
    ("image", "pullPolicy"): "Never",
    ("workerGroups", "default", "replicas"): 3,
}
# Helm's own: they are in the schema because subcharts get them, and in nobody's values.
HELMS_OWN = {"global", "common"}


@cache
def values(chart: str, file: str = "values.yaml") -> Values:
    return yaml.safe_load((ROOT / "charts" / chart / file).read_text())


def everything(chart: str) -> Values:
    return copy.deepcopy(values(chart, "ci/everything-values.yaml"))


@cache
def schema(chart: str) -> dict[str, Any]:
    return json.loads((ROOT / "charts" / chart / "values.schema.json").read_text())


def leaves(tree: Values, path: Keys = ()) -> Iterator[Keys]:
    """Yield the paths to all values that hold no others."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key)


def described(chart: str, path: Keys) -> dict[str, Any] | None:
    """Return what the schema says about a path; the keys of a free map share what it says of the map."""
    node = schema(chart)
    for key in path:
        named = node.get("properties", {}).get(key)
        free = node.get("additionalProperties") or next(iter(node.get("patternProperties", {}).values()), None)
        if not named and not free:
            return None
        above, node = node, _resolved(chart, named or free)
        if not named:
            node = {"description": above["description"], **node}
    return node


def _resolved(chart: str, node: dict[str, Any]) -> dict[str, Any]:
    definition = schema(chart)["definitions"].get(node.get("$ref", "").removeprefix("#/definitions/"), {})
    return definition | node


def declared() -> list[tuple[str, Keys]]:
    return [(chart, path) for chart in CHARTS for path in leaves(values(chart))]


def title(value: object) -> str | None:
    return ".".join(value) if isinstance(value, tuple) else None


def path_in_everything(chart: str, path: Keys) -> Keys | None:
    """Return where a value is set when everything is; what one group or class may have, any may have."""
    groups = everything(chart)[path[0]] if path[0] in ("workerGroups", "hardware") else []
    for candidate in (path, *((path[0], group, *path[2:]) for group in groups)):
        if candidate[-1] in node_at(everything(chart), candidate[:-1]):
            return candidate
    return None


def node_at(tree: Values, path: Keys) -> Values:
    """Return the map at a path, an empty one if there is none."""
    for key in path:
        tree = tree.get(key, {})
    return tree


@cache
def output(chart: str, given: str) -> str:
    """Render a chart with values as JSON; a refusal is an answer as well."""
    case = CASES[f"{chart} with everything"]
    options = [option for option in case.options if not option.startswith("--values")]
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(given)
        file.flush()
        result = helm_template(chart, case.release, case.namespace, f"--values={file.name}", *options)
    return result.stdout if result.returncode == 0 else result.stderr


@pytest.mark.parametrize(("chart", "path"), declared(), ids=title)
def test_a_value_is_described(chart: str, path: Keys) -> None:
    for depth in range(1, len(path) + 1):
        node = described(chart, path[:depth])
        assert node, f"{'.'.join(path[:depth])} is not in values.schema.json"
        assert node["description"].endswith("."), ".".join(path[:depth])


@pytest.mark.parametrize(("chart", "path"), declared(), ids=title)
def test_a_value_is_read(chart: str, path: Keys) -> None:
    place = path_in_everything(chart, path)
    assert place, "is not in ci/everything-values.yaml"
    one = everything(chart)
    if path[-1] == "tag":
        del node_at(one, path[:-1])["digest"]  # it wins over the tag
    other = copy.deepcopy(one)
    if path in OTHER and node_at(one, place[:-1])[place[-1]] == node_at(values(chart), path[:-1])[path[-1]]:
        node_at(other, place[:-1])[place[-1]] = OTHER[path]
    else:
        del node_at(other, place[:-1])[place[-1]]
    assert output(chart, json.dumps(one)) != output(chart, json.dumps(other)), "changes nothing"


@pytest.mark.parametrize("chart", CHARTS)
def test_the_schema_describes_no_value_that_is_not_there(chart: str) -> None:
    assert set(schema(chart)["properties"]) - HELMS_OWN == set(values(chart))
    definitions = set(schema(chart)["definitions"])
    used = set(re.findall(r'"#/definitions/(\w+)"', json.dumps(schema(chart))))
    assert definitions == used


@pytest.mark.parametrize("chart", CHARTS)
def test_the_schema_takes_no_unknown_key(chart: str) -> None:
    def open_objects(node: Any, path: str) -> Iterator[str]:
        if isinstance(node, dict):
            if "properties" in node and node.get("additionalProperties", True) is True:
                yield path
            for key, child in node.items():
                yield from open_objects(child, f"{path}/{key}")

    assert not list(open_objects(schema(chart), ""))


def test_every_named_template_is_used_and_every_used_one_is_there() -> None:
    text = "\n".join(
        path.read_text()
        for path in (ROOT / "charts").glob("*/templates/**/*")
        if path.is_file() and path.suffix in (".tpl", ".yaml", ".txt")
    )
    names = re.findall(r'define "([^"]+)"', text)
    assert len(names) == len(set(names)), "a name that is given twice: the last one wins"
    # A name is included as it stands, chosen from several, or made with printf.
    made = {re.escape(name).replace("%s", r"\w+") for name in re.findall(r'printf "(daskyard\.[\w.%]+)"', text)}
    mentioned = set(re.findall(r'(?<!define )"(daskyard\.[\w.]+)"', text))
    unused = {name for name in names if name not in mentioned and not any(re.fullmatch(way, name) for way in made)}
    assert not unused
    assert not mentioned - set(names)
