"""What `helm template` makes of the charts: each case once per session, as parsed documents."""

from __future__ import annotations

import subprocess
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHARTS = ("platform", "runtime", "cluster", "daskjob")
EXAMPLES = sorted(ROOT.glob("examples/daskjobs/*.yaml"))

Object = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A chart with values, as somebody would install it."""

    chart: str
    release: str
    namespace: str
    options: tuple[str, ...]


def _with(*files: str) -> tuple[str, ...]:
    return tuple(f"--values={ROOT / file}" for file in files)


_JOB = f"--set-file=job={ROOT / 'examples/california.yaml'}"
_MONITORING = "--api-versions=monitoring.coreos.com/v1"  # what a cluster with the Prometheus operator answers
_EVERYTHING = "charts/{}/ci/everything-values.yaml"

CASES = {
    "platform on kind": Case(
        "platform",
        "daskyard",
        "daskyard-system",
        _with("operator_config/operator.yaml", "operator_config/kind.yaml"),
    ),
    "platform with everything": Case(
        "platform", "daskyard", "daskyard-system", (*_with(_EVERYTHING.format("platform")), _MONITORING)
    ),
    "runtime on kind": Case("runtime", "default", "daskyard", _with("operator_config/kind-runtime.yaml")),
    "runtime with everything": Case("runtime", "default", "daskyard", _with(_EVERYTHING.format("runtime"))),
    "cluster on kind": Case("cluster", "shared", "daskyard", _with("operator_config/kind-jobs.yaml")),
    "cluster with GPUs": Case(
        "cluster", "shared", "daskyard", _with("operator_config/kind-jobs.yaml", "operator_config/gpu.yaml")
    ),
    "cluster with everything": Case("cluster", "shared", "daskyard", _with(_EVERYTHING.format("cluster"))),
    "daskjob on kind": Case("daskjob", "california", "daskyard", (*_with("operator_config/kind-jobs.yaml"), _JOB)),
    "daskjob with everything": Case("daskjob", "california", "daskyard", _with(_EVERYTHING.format("daskjob"))),
}
ALL = (*CASES, *(f"examples/daskjobs/{path.name}" for path in EXAMPLES))


def helm_template(chart: str, release: str, namespace: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run `helm template`; the caller looks at its exit code."""
    command = ["helm", "template", release, str(ROOT / "charts" / chart), f"--namespace={namespace}", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@cache
def render(name: str) -> tuple[Object, ...]:
    """Return the documents of one of ALL: a case, or a manifest of examples/daskjobs."""
    if name not in CASES:
        return parse((ROOT / name).read_text())
    case = CASES[name]
    result = helm_template(case.chart, case.release, case.namespace, *case.options)
    assert result.returncode == 0, f"{name}: {result.stderr}"
    return parse(result.stdout)


def parse(text: str) -> tuple[Object, ...]:
    """Parse a stream of YAML documents, in which a key that is given twice is an error."""
    return tuple(document for document in yaml.load_all(text, Loader=_StrictLoader) if document)


class _StrictLoader(yaml.CSafeLoader):
    """Neither PyYAML nor helm minds a key that is given twice; the API server refuses it."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        assert not twice, f"{node.start_mark}: given twice: {sorted(twice)}"
        return super().construct_mapping(node, deep)
