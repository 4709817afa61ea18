"""What is measured and is no number: whatever field it gets into, what is written reads back."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel, ValidationError
from typer.testing import CliRunner

from controller.observe import result_of
from jobs.artifacts import Attempt, Manifest, TrialRecord, TuningRecord, read_manifest
from jobs.cli import outcome
from jobs.cli.app import app
from jobs.errors import SpecError
from jobs.plain import plain_tree
from jobs.report import html
from jobs.spec import parse
from tests.unit.test_artifacts import manifest_of

NO_NUMBERS = [math.nan, math.inf, -math.inf, np.float64("nan"), np.float32("inf"), 1e999]
NOW = datetime(2026, 11, 2, tzinfo=UTC)


def trial(**changes: Any) -> dict[str, Any]:
    made = {"rung": 0, "number": 0, "params": {"a": 1.5}, "resource": 1.0, "metric": "r2", "value": 0.5}
    return {**made, "metrics": {"r2": 0.5}, "seconds": 0.1, "error": None, **changes}


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all numbers in nested dicts and lists."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from leaves(each, (*path, key))
    elif isinstance(value, list):
        for place, each in enumerate(value):
            yield from leaves(each, (*path, place))
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield path


def put(value: Any, path: tuple[Any, ...], what: Any) -> Any:
    if not path:
        return what
    copy = list(value) if isinstance(value, list) else dict(value)
    copy[path[0]] = put(value[path[0]], path[1:], what)
    return copy


TUNING = {"metric": "r2", "is_more_better": True, "params": {"a": [1.5, {"b": 2}]}, "value": 0.5, "n_reused": 0}
MANIFEST = {
    **json.loads(manifest_of(Attempt("memory://r")).model_dump_json()),
    "spec": {"params": {"tol": 0.5, "seeds": [1, 2.5]}},
    "metrics": {"r2": 0.5, "n": 3},
    "workers": [{"address": "a", "limit": 1, "peak": 1, "n_written": 1, "n_read": 1}],
    "stages": [{"name": "fit", "seconds": 0.5}],
    "inputs": [{"url": "a", "size": 1, "etag": "b"}],
    "files": [{"name": "a", "url": "b", "size": 1, "sha256": "c"}],
    "tuning": {**TUNING, "trials": [trial()]},
}
RECORDS: list[tuple[type[BaseModel], dict[str, Any]]] = [
    (Manifest, MANIFEST),
    (TrialRecord, trial()),
    (TuningRecord, {**TUNING, "trials": [trial()]}),
]
FIELDS = [(model, made, path) for model, made in RECORDS for path in leaves(made)]


@pytest.mark.parametrize(
    ("model", "made", "path"), FIELDS, ids=[f"{m.__name__}-{'.'.join(map(str, p))}" for m, _, p in FIELDS]
)
def test_every_number_of_a_record_is_a_number_null_or_refused_when_it_is_made(
    model: type[BaseModel], made: dict[str, Any], path: tuple[Any, ...]
) -> None:
    for value in NO_NUMBERS:
        try:
            record = model.model_validate(put(made, path, value))
        except ValidationError:
            continue  # before anything was written
        text = record.model_dump_json()
        json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} was written"))
        assert model.model_validate_json(text) == record


def test_a_metric_of_numpys_is_a_number_of_pythons() -> None:
    metrics = {"a": np.float32(0.5), "b": np.int64(3), "c": "text", "d": np.float64("nan"), "e": True}
    manifest = Manifest.model_validate({**MANIFEST, "metrics": metrics})
    assert json.loads(manifest.model_dump_json())["metrics"] == {"a": 0.5, "b": 3, "c": "text", "d": None, "e": True}


def test_a_run_with_metrics_that_are_no_numbers_is_committed_shown_and_told(tmp_path: Path) -> None:
    attempt = Attempt(str(tmp_path / "r"))
    attempt.write_bytes("model.json", b"{}")
    metrics = {"inertia": math.nan, "silhouette": -math.inf, "n": 3}
    made = Manifest.model_validate({**manifest_of(attempt).model_dump(), "metrics": metrics})
    attempt.commit(made)
    manifest = read_manifest(str(tmp_path / "r"))
    assert manifest.metrics == {"inertia": None, "silhouette": None, "n": 3}
    shown = CliRunner().invoke(app, ["show", str(tmp_path / "r")])
    assert shown.stdout.count("not a number") == 2
    assert "not a number" in html.render(manifest, [])
    told = json.loads(outcome.encoded(outcome.committed("r", False, manifest)), parse_constant=pytest.fail)
    assert told["metrics"] == manifest.metrics
    assert json.loads(outcome.encoded({"metrics": metrics}), parse_constant=pytest.fail)["metrics"]["inertia"] is None


@pytest.mark.parametrize("text", ["NaN", "-Infinity", "1e999"])
def test_what_an_older_runner_told_of_can_stand_in_a_status(text: str) -> None:
    told = result_of({"message": f'{{"outcome": "committed", "metrics": {{"r2": {text}, "n": 3}}}}'})
    assert told["metrics"] == {"r2": None, "n": 3}


@pytest.mark.parametrize("value", [math.nan, [1.0, math.inf], {"a": math.nan}])
def test_choices_of_a_search_that_are_no_numbers_are_refused(value: Any) -> None:
    tune = {"space": {"tol": {"choices": [0.1, value]}}, "metric": "inertia"}
    with pytest.raises(SpecError, match=r"is no number to compute with"):
        parse({"pipeline": "kmeans", "input": "none", "output": "out", "tune": tune})


def test_containers_of_all_kinds_are_made_plain() -> None:
    assert plain_tree({"a": (1, [math.nan, {"b": np.int8(2)}])}) == {"a": [1, [None, {"b": 2}]]}
