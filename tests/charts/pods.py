"""The pods that result from objects, whoever makes them: Deployments, Jobs, CronJobs and pods by themselves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from expand import everything
from render import ALL, Object


@dataclass(frozen=True)
class Pod:
    """One pod template, with the namespace that its pods land in."""

    where: str
    kind: str
    name: str
    namespace: str
    labels: dict[str, str]
    spec: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.where}: {self.kind} {self.name}"

    @property
    def component(self) -> str:
        """What the pod is for: scheduler, worker, job-runner; of the platform's pods, what they are."""
        component = self.labels.get("dask.org/component") or self.labels["app.kubernetes.io/name"]
        return component.removeprefix("ml")  # an MLJob's runner is one like a DaskJob's

    @property
    def containers(self) -> list[dict[str, Any]]:
        """All containers, those that only start up as well."""
        return [container for kind in ("initContainers", "containers") for container in self.spec.get(kind, [])]


def pods_of(where: str, objects: Iterable[Object]) -> Iterator[Pod]:
    """Find the pod templates in objects."""
    for obj in objects:
        kind, metadata = obj["kind"], obj["metadata"]
        template = obj if kind == "Pod" else obj.get("spec", {})
        template = template.get("jobTemplate", {}).get("spec", template) if kind == "CronJob" else template
        template = template if kind == "Pod" else template.get("template")
        if template is not None:
            labels = template.get("metadata", {}).get("labels", {})
            yield Pod(where, kind, metadata["name"], metadata["namespace"], labels, template["spec"])


@cache
def all_pods() -> tuple[Pod, ...]:
    """Every pod of every case."""
    return tuple(pod for name in ALL for pod in pods_of(name, everything(name)))
