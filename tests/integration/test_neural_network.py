"""neural_network on tables that are hard to prepare alike."""

from __future__ import annotations

import getpass
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from distributed import Client

from jobs import runner, storage
from jobs.artifacts import Manifest
from jobs.errors import SpecError, StoppedError
from jobs.listener import Listener
from jobs.spec import parse
from tests.conftest import files_below


def run(client: Client, path: Path, **params: Any) -> Manifest:
    document = {"pipeline": "neural_network", "input": str(path), "output": str(path.parent / "runs")}
    return runner.run(parse({**document, "params": {"epochs": 2, "hidden": [8], **params}}), client=client).manifest


def model(manifest: Manifest) -> Any:
    return json.loads(storage.read_bytes(next(file.url for file in manifest.files if file.name == "model.json")))


def test_a_constant_column_changes_nothing_whatever_the_partitions(client: Client, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=300), "constant": 0.1, "y": rng.normal(size=300)})
    path = tmp_path / "t.parquet"
    frame.to_parquet(path, row_group_size=7)
    whole, cut = (run(client, path, target="y", blocksize_mb=size) for size in (32, 1e-5))
    for name in ("r2", "rmse", "mae"):
        assert cut.metrics[name] == pytest.approx(whole.metrics[name], rel=1e-5)


def test_rows_with_an_infinite_class_are_dropped_and_counted(client: Client, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=200), "y": [0.0, 1.0, np.inf, np.nan] * 50})
    frame.to_parquet(tmp_path / "t.parquet")
    manifest = run(client, tmp_path / "t.parquet", target="y")
    assert model(manifest)["classes"] == ["0", "1"]
    assert manifest.metrics["n_dropped"] == 100


def test_a_class_that_occurs_once_is_fine(client: Client, tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": np.arange(100.0), "y": ["once"] + ["one", "other", "one"] * 33})
    frame.to_parquet(tmp_path / "t.parquet")
    manifest = run(client, tmp_path / "t.parquet", target="y")
    assert model(manifest)["classes"] == ["once", "one", "other"]
    assert manifest.metrics["n_train"] + manifest.metrics["n_test"] == 100


def test_a_training_takes_no_name_in_the_folder_for_temporary_files_that_others_can_take_first(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pd.DataFrame(rng.normal(size=(300, 3)), columns=["a", "b", "y"]).to_csv(tmp_path / "t.csv", index=False)
    params = {"target": "y", "epochs": 1, "hidden": [8], "world_size": 1}
    job = {"pipeline": "neural_network", "input": "t.csv", "output": "runs", "params": params}
    (tmp_path / "job.yaml").write_text(json.dumps(job))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    theirs = temporary / f"torchinductor_{getpass.getuser()}"
    theirs.write_text("a file of somebody else's")
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", "run", "job.yaml", "--workers", "1"],
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=140,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in temporary.iterdir() if "shards" not in path.name] == [theirs.name]


class StopsInMidTraining(Listener):
    def progress(self, stage: str, done: float, total: float, unit: str) -> None:
        if stage == "fit" and unit == "rows" and done > 0.6 * total:
            raise StoppedError("told to stop")


def test_a_run_that_was_stopped_goes_on_in_mid_training_and_ends_as_if_it_had_not_been(
    client: Client, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(2000, 4)), columns=list("abcd"))
    frame["y"] = frame.a * frame.b + frame.c
    frame.to_parquet(tmp_path / "t.parquet")
    params = {"target": "y", "hidden": [8], "epochs": 40, "batch_size": 64, "checkpoint_every_s": 0.1}
    document = {"pipeline": "neural_network", "input": str(tmp_path / "t.parquet"), "params": params}
    spec, undisturbed = (parse({**document, "output": str(tmp_path / name)}) for name in ("runs", "undisturbed"))
    run_url = f"{tmp_path}/runs/{spec.name}"
    with pytest.raises(StoppedError):
        runner.run(spec, client=client, listener=StopsInMidTraining())
    assert storage.list_files(f"{run_url}/checkpoints")
    manifest = runner.run(spec, client=client).manifest
    report = storage.read_bytes(next(file.url for file in manifest.files if file.name == "report.html")).decode()
    [kept] = re.findall(
        r"formed.*?<td[^>]*>all</td>(?:\s*<td[^>]*>[^<]*</td>){2}\s*<td[^>]*>([^<]*)</td>", report, re.S
    )
    assert int(kept.replace(",", "")) > 100
    assert not storage.exists(f"{run_url}/checkpoints")
    expected = runner.run(undisturbed, client=client).manifest
    for name in ("r2", "rmse", "mae"):
        assert manifest.metrics[name] == expected.metrics[name]


def test_a_run_that_cannot_succeed_leaves_no_checkpoints(client: Client, tmp_path: Path) -> None:
    pd.DataFrame({"a": np.arange(500.0), "y": np.arange(500.0) % 37}).to_parquet(tmp_path / "t.parquet")
    params = {"target": "y", "hidden": [8], "epochs": 40, "learning_rate": 1e30, "checkpoint_every_s": 0.01}
    document = {"pipeline": "neural_network", "input": str(tmp_path / "t.parquet"), "output": str(tmp_path / "runs")}
    with pytest.raises(SpecError, match="the loss became"):
        runner.run(parse({**document, "params": params}), client=client)
    assert not files_below(tmp_path / "runs")
