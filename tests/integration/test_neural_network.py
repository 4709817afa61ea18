"""neural_network on tables that are hard to prepare alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from distributed import Client

from jobs import runner, storage
from jobs.artifacts import Manifest
from jobs.spec import parse


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
