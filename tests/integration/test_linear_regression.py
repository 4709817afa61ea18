"""linear_regression on tables with categories, missing values and values out of range."""

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
from jobs.errors import InputError, SpecError
from jobs.spec import parse


def run(client: Client, input: Any, folder: Path, **params: Any) -> Manifest:
    document = {"pipeline": "linear_regression", "input": input, "output": str(folder / "runs")}
    return runner.run(parse({**document, "params": {"target": "y", **params}}), client=client).manifest


def model(manifest: Manifest) -> Any:
    return json.loads(storage.read_bytes(next(file.url for file in manifest.files if file.name == "model.json")))


def test_a_value_called_missing_stands_for_the_missing_ones_too(client: Client, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"c": ["missing", None, "b"] * 40, "a": rng.normal(size=120), "y": rng.normal(size=120)})
    path = tmp_path / "t.parquet"
    frame.to_parquet(path)
    assert model(run(client, str(path), tmp_path))["encoding"]["categories"] == {"c": ["b", "missing"]}


@pytest.mark.parametrize("name", ["a", "y"])
def test_values_too_large_to_square_are_named(name: str, client: Client, tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": np.arange(50.0), "y": np.arange(50.0)})
    frame[name] *= 1e200
    frame.to_parquet(tmp_path / "t.parquet")
    with pytest.raises(InputError, match=f"column '{name}' has values too large to square"):
        run(client, str(tmp_path / "t.parquet"), tmp_path)


def test_a_test_table_is_refused_rather_than_left_unread(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,y\n" + "".join(f"{i},{i * i}\n" for i in range(50)))
    with pytest.raises(SpecError, match=r"input\.test_url: linear_regression reads one table"):
        run(client, {"url": str(path), "test_url": str(path)}, tmp_path)


def test_a_column_that_never_changes_has_no_standard_error_and_takes_none_from_the_others(
    client: Client, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=100), "constant": 0.1, "y": rng.normal(size=100)})
    path = tmp_path / "t.parquet"
    frame.to_parquet(path)
    errors = model(run(client, str(path), tmp_path))["standard_errors"]
    assert errors["constant"] is None
    assert errors["a"] > 0


def test_effects_of_categories_are_told_against_the_first_with_standard_errors(client: Client, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=400), "c": rng.choice(["u", "v", "w"], size=400)})
    frame["y"] = frame["a"] + frame["c"].map({"u": 0.0, "v": 1.0, "w": -2.0}) + 0.1 * rng.normal(size=400)
    path = tmp_path / "t.parquet"
    frame.to_parquet(path)
    manifest = run(client, str(path), tmp_path)
    found = model(manifest)
    urls = [file.url for file in manifest.files if file.name.startswith("predictions/")]
    test = pd.concat([pd.read_parquet(url) for url in urls])["row"]
    train = frame.drop(index=test)
    design = np.column_stack([train["a"], train["c"] == "v", train["c"] == "w", np.ones(len(train))])
    oracle, squares, *_ = np.linalg.lstsq(design, train["y"], rcond=None)
    np.testing.assert_allclose([*found["coefficients"].values(), found["intercept"]], oracle, rtol=1e-9)
    errors = np.sqrt(squares[0] / (len(train) - 4) * np.diag(np.linalg.inv(design.T @ design)))[:3]
    assert list(found["standard_errors"]) == ["a", "c=v", "c=w"]
    np.testing.assert_allclose(list(found["standard_errors"].values()), errors, rtol=1e-9)


def test_categories_of_one_value_alone_are_nothing_to_learn_from(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("c,y\n" + "".join(f"u,{i}\n" for i in range(50)))
    with pytest.raises(InputError, match="every column has one value only"):
        run(client, str(path), tmp_path)
