"""checkov finds nothing in the rendered charts, nor in what is made of them, but what checkov.yaml excepts.

checkov pins old releases of botocore, so it lives in an environment of its own, .venv-checkov, that make sets up.
"""

from __future__ import annotations

import fnmatch
import json
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from expand import everything
from pods import pods_of
from render import ALL, ROOT, Object

CHECKOV = ROOT / ".venv-checkov/bin/checkov"
EXCEPTIONS = yaml.safe_load((Path(__file__).parent / "checkov.yaml").read_text())
# checkov does not look into these; the custom resources are there in what they become.
UNSEEN = {"DaskJob", "DaskCluster", "DaskWorkerGroup", "DaskAutoscaler", "MLRuntime"}
CHECKS_OF_A_POD = 60

pytestmark = pytest.mark.timeout(300)


def title(name: str, obj: Object) -> str:
    """Name an object as a report and checkov.yaml do: case, kind, namespace, name."""
    return f"{name}: {obj['kind']} {obj['metadata'].get('namespace', 'default')}/{obj['metadata']['name']}"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if not CHECKOV.exists():
        pytest.fail("checkov is not there; run: make charts-test, which sets it up in .venv-checkov")
    folder = tmp_path_factory.mktemp("objects")
    for number, name in enumerate(ALL):
        objects = [obj for obj in everything(name) if obj["kind"] not in UNSEEN]
        (folder / f"{number}.yaml").write_text(yaml.safe_dump_all(objects))
    command = [CHECKOV, "--directory", folder, "--framework", "kubernetes", "--output", "json", "--compact"]
    result = subprocess.run([*command, "--skip-download"], capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode in (0, 1), result.stderr
    return json.loads(result.stdout)


def checks(report: dict[str, Any], outcome: str) -> list[tuple[str, str, str]]:
    """Return check, its name, and the object's title, of each check that passed or failed."""
    found = []
    for entry in report["results"][f"{outcome}_checks"]:
        name = ALL[int(Path(entry["file_path"]).stem)]
        # A pod of a Deployment is reported as Pod.<namespace>.<Deployment's name>.<labels>.
        kind, namespace, owner = entry["resource"].split(".")[:3]
        found.append((entry["check_id"], entry["check_name"], f"{name}: {kind} {namespace}/{owner}"))
    return found


def is_excepted(exception: dict[str, Any], check: str, where: str) -> bool:
    return exception["check"] == check and any(fnmatch.fnmatchcase(where, glob) for glob in exception["objects"])


def test_no_check_fails(report: dict[str, Any]) -> None:
    failed = [
        f"{check} {where}: {what}"
        for check, what, where in checks(report, "failed")
        if not any(is_excepted(exception, check, where) for exception in EXCEPTIONS)
    ]
    assert not failed, "\n".join(sorted(failed))


@pytest.mark.parametrize("exception", EXCEPTIONS, ids=lambda exception: exception["check"])
def test_an_exception_is_needed_and_gives_a_reason(report: dict[str, Any], exception: dict[str, Any]) -> None:
    assert exception.keys() == {"check", "objects", "reason"}
    assert exception["reason"].rstrip().endswith(".")
    failed = checks(report, "failed")
    for glob in exception["objects"]:
        alone = exception | {"objects": [glob]}
        assert any(is_excepted(alone, check, where) for check, _, where in failed), (
            f"{glob}: matches nothing; take it out"
        )


def test_checkov_saw_what_was_written(report: dict[str, Any]) -> None:
    assert report["summary"]["parsing_errors"] == 0
    assert report["summary"]["skipped"] == 0
    objects = [obj for name in ALL for obj in everything(name) if obj["kind"] not in UNSEEN]
    # checkov counts the pod of a Deployment apart from the Deployment.
    templates = [pod for name in ALL for pod in pods_of(name, everything(name)) if pod.kind != "Pod"]
    assert report["summary"]["resource_count"] == len(objects) + len(templates)
    seen = Counter(where for outcome in ("passed", "failed") for _, _, where in checks(report, outcome))
    for name in ALL:
        for pod in pods_of(name, everything(name)):
            assert seen[f"{name}: {pod.kind} {pod.namespace}/{pod.name}"] >= CHECKS_OF_A_POD, f"{pod}: hardly looked at"
