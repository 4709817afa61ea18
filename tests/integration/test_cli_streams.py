"""What cannot be told of a run, on a full or a closed standard error, does not fail it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

ENDS = {"full": "2>/dev/full", "closed": "2>&-", "all closed": "<&- >&- 2>&-", "reader left": "2> >(exec true)"}


RESULTS = {"full": ">/dev/full", "closed": ">&-", "reader left": "> >(exec true)", "both left": "> >(exec true) 2>&1"}


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    frame = pd.DataFrame({"a": np.arange(200.0), "b": np.arange(200.0) % 7})
    frame.to_parquet(tmp_path / "data.parquet")
    job = {"pipeline": "kmeans", "input": f"{tmp_path}/data.parquet", "output": f"{tmp_path}/runs", "run_id": "r"}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump({**job, "params": {"n_clusters": 2}}))
    return tmp_path / "job.yaml"


def call(end: str, *arguments: str) -> int:
    script = f'exec "$@" {end}'
    command = ["bash", "-c", script, "bash", sys.executable, "-m", "jobs.cli", *arguments]
    return subprocess.run(command, stdout=subprocess.DEVNULL, timeout=110, check=False).returncode


@pytest.mark.parametrize("end", ["full", "closed"])
def test_a_run_whose_progress_cannot_be_written_is_committed(end: str, job_file: Path, tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    code = call(ENDS[end], "run", str(job_file), "--workers", "1", "--result", str(result))
    assert (code, json.loads(result.read_text())["outcome"]) == (0, "committed")


@pytest.mark.parametrize("end", RESULTS)
def test_a_run_whose_result_cannot_be_shown_is_committed(end: str, job_file: Path, tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    for form in ((), (), ("--json",)):  # committed, and committed before
        code = call(RESULTS[end], "run", str(job_file), "--workers", "1", "--result", str(result), *form)
        assert (code, json.loads(result.read_text())["outcome"]) == (0, "committed")


@pytest.mark.parametrize("end", ENDS)
def test_an_error_that_cannot_be_told_keeps_its_exit_code(end: str, tmp_path: Path) -> None:
    assert call(ENDS[end], "show", str(tmp_path / "nothing")) == 2
    assert call(ENDS[end], "run", "-", "--debug") == 2
    assert call(ENDS[end], "pipelines") == 0
