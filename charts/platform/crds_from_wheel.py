"""Write the custom resource definitions of the installed dask-kubernetes into the chart, a little stricter, and ours.

``make charts`` runs this. The definitions belong to the version of the operator that is locked, so they are read from
its wheel and never committed. What the operator cannot serve, the API server shall refuse at once, with the reason.
Those of MLJob and MLRuntime lie in operator_config/crds, made from the controller's models.
"""

from __future__ import annotations

import sys
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parent
TARGET = CHART / "files" / "crds"
OURS = CHART.parents[1] / "operator_config" / "crds"
VERSION_ANNOTATION = "daskyard.dev/dask-kubernetes"
IN_THE_WHEEL = ("operator", "deployment", "helm", "dask-kubernetes-operator", "crds")
KINDS = ("daskautoscaler", "daskcluster", "daskjob", "daskworkergroup")

# The scheduler's Service is named <cluster>-scheduler and takes 63 characters. A DaskJob's cluster bears its name.
NAME_RULE = {"rule": "self.metadata.name.size() <= 53", "message": "metadata.name must have at most 53 characters"}
BOUNDS_RULE = {"rule": "self.minimum <= self.maximum", "message": "minimum must not be above maximum"}


def check_version() -> None:
    """Refuse definitions of another version than the chart names."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    wanted = chart["annotations"][VERSION_ANNOTATION]
    try:
        installed = metadata.version("dask-kubernetes")
    except metadata.PackageNotFoundError:
        sys.exit(f"dask-kubernetes: is not installed; pip install dask-kubernetes=={wanted}")
    if installed != wanted:
        sys.exit(
            f"dask-kubernetes: {installed} is installed, charts/platform/Chart.yaml names {wanted}; "
            f"align {VERSION_ANNOTATION} with requirements.lock"
        )


def integers_named(schema: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Return the schemas of all integer properties of that name, at any depth."""
    found = []
    for key, child in schema.get("properties", {}).items():
        if key == name and child.get("type") == "integer":
            found.append(child)
        found += integers_named(child, name)
    return found


def strengthen(definition: dict[str, Any]) -> dict[str, Any]:
    """Add the bounds that the operator relies on but does not declare."""
    kind = definition["spec"]["names"]["kind"]
    for version in definition["spec"]["versions"]:
        root = version["schema"]["openAPIV3Schema"]
        for name in ("replicas", "minimum", "maximum"):
            for schema in integers_named(root, name):
                schema["minimum"] = 0
        if kind in ("DaskCluster", "DaskJob"):
            root["x-kubernetes-validations"] = [NAME_RULE]
        if kind == "DaskAutoscaler":
            root["properties"]["spec"]["x-kubernetes-validations"] = [BOUNDS_RULE]
    return definition


def main() -> None:
    """Write one file a kind."""
    check_version()
    TARGET.mkdir(parents=True, exist_ok=True)
    source = resources.files("dask_kubernetes").joinpath(*IN_THE_WHEEL)
    for kind in KINDS:
        definition = yaml.safe_load(source.joinpath(f"{kind}.yaml").read_text())
        text = yaml.safe_dump(strengthen(definition), width=1000)
        (TARGET / f"{kind}.yaml").write_text(text)
    for path in sorted(OURS.glob("*.yaml")):
        (TARGET / path.name).write_text(path.read_text())


if __name__ == "__main__":
    main()
