"""How a run ended, as it is told to whoever started it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from jobs.cli import outcome
from jobs.cli.app import app
from jobs.errors import StoppedError, StorageDeniedError, WorkersLostError

COMMITTED = {"outcome": "committed", "run_url": "s3://demo/runs/a", "was_committed": False}


def test_an_error_is_told_with_its_class_its_exit_code_and_one_line() -> None:
    told = outcome.failure(StorageDeniedError("s3://demo/a:\n  access denied"))
    assert told == {
        "outcome": "failed",
        "error": "StorageDeniedError",
        "exit_code": 2,
        "message": "s3://demo/a: access denied",
    }
    assert outcome.failure(KeyError("x"))["exit_code"] == 1
    assert outcome.failure(KeyboardInterrupt())["exit_code"] == 130


def test_a_stop_that_a_library_took_for_a_failure_is_told_as_a_stop() -> None:
    error = ImportError("initialization failed")
    error.__cause__ = StoppedError("told to stop")
    told = {"outcome": "failed", "error": "StoppedError", "exit_code": 75, "message": "told to stop"}
    assert outcome.failure(error) == told
    assert outcome.exit_code(error) == 75


@pytest.mark.parametrize("n", [0, 3, 500])
def test_a_document_is_never_longer_than_kubernetes_keeps(n: int) -> None:
    metrics = {f"metric_ü_{i}": i / 7 for i in range(n)}
    data = outcome.encoded({**COMMITTED, "metrics": metrics})
    assert len(data) <= outcome.MAX_BYTES
    told = json.loads(data)
    assert told.items() >= COMMITTED.items()
    assert list(told["metrics"]) == list(metrics)[: len(told["metrics"])]
    assert len(told["metrics"]) == n or n == 500


def test_an_error_with_a_long_message_fits_too() -> None:
    assert len(outcome.encoded(outcome.failure(WorkersLostError("ü" * 9000)))) <= outcome.MAX_BYTES


def test_a_run_that_fails_leaves_why_and_one_before_it_leaves_nothing(tmp_path: Path) -> None:
    job, file = tmp_path / "job.yaml", tmp_path / "result.json"
    file.write_text("of an earlier run")
    content: dict[str, Any] = {"pipeline": "kmeans", "input": "memory://in", "output": "memory://out"}
    job.write_text(yaml.safe_dump(content))
    called = CliRunner().invoke(app, ["run", str(job), "--result", str(file)])
    assert called.exit_code == 2
    told = json.loads(file.read_text())
    assert (told["outcome"], told["error"], told["exit_code"]) == ("failed", "SpecError", 2)
    assert "input.url: memory://in is the memory of one process" in told["message"]


def test_a_file_that_cannot_be_written_is_told_before_anything_runs(tmp_path: Path) -> None:
    called = CliRunner().invoke(app, ["run", "-", "--result", str(tmp_path / "missing" / "file")])
    assert called.exit_code == 2
    assert "--result: " in called.output
    assert "cannot be written (No such file or directory); name another file" in " ".join(called.output.split())
