"""linear_regression, kmeans and neural_network as whole jobs: against oracles, over partitions, on bad input."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from distributed import Client
from sklearn import cluster, datasets, neural_network

from jobs import runner, storage
from jobs.artifacts import Manifest
from jobs.errors import DaskyardError, InputError, SpecError
from jobs.spec import parse
from tests.conftest import files_below
from tests.threads import threads


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """Numbers of several scales, some missing, two columns of categories, a target of numbers and one of classes."""
    rng = np.random.default_rng(0)
    n = 1200
    frame = pd.DataFrame({"small": rng.normal(size=n) * 1e-3, "large": rng.normal(size=n) * 1e4 + 1e5})
    frame["colour"] = rng.choice(["red", "green", "blue"], size=n)
    frame["flag"] = rng.choice([True, False], size=n)
    effect = frame["colour"].map({"red": 1.0, "green": -1.0, "blue": 0.0})
    frame["y"] = 500 * frame["small"] + 1e-4 * frame["large"] + effect + 0.1 * rng.normal(size=n)
    frame["kind"] = np.where(frame["y"] > frame["y"].median(), "high", "low")
    frame.loc[frame.index % 50 == 0, "small"] = np.nan
    frame.loc[frame.index % 60 == 0, "colour"] = None
    return frame


@pytest.fixture
def one_worker() -> Iterator[Client]:
    with threads(1) as client:
        yield client


@pytest.fixture
def four_workers() -> Iterator[Client]:
    with threads(4) as client:
        yield client


def run(client: Client, pipeline: str, path: Path, **params: Any) -> tuple[str, Manifest]:
    output = path.parent / "runs"
    spec = parse({"pipeline": pipeline, "params": params, "input": str(path), "output": str(output)})
    result = runner.run(spec, client=client)
    return result.run_url, result.manifest


def file(manifest: Manifest, name: str) -> bytes:
    return storage.read_bytes(next(each.url for each in manifest.files if each.name == name))


def rows(manifest: Manifest, folder: str) -> pd.DataFrame:
    parts = [pq.read_table(each.url).to_pandas() for each in manifest.files if each.name.startswith(f"{folder}/")]
    return pd.concat(parts, ignore_index=True).sort_values("row", ignore_index=True)


def close(one: Manifest, other: Manifest, rel: float, but: tuple[str, ...] = ()) -> None:
    assert set(one.metrics) == set(other.metrics)
    for name, value in one.metrics.items():
        if name not in but:
            assert other.metrics[name] == pytest.approx(value, rel=rel), name


def test_coefficients_of_a_whole_job_are_those_of_lstsq(client: Client, tmp_path: Path) -> None:
    X, y = datasets.load_diabetes(return_X_y=True, as_frame=True, scaled=False)
    path = tmp_path / "diabetes.parquet"
    X.assign(y=y).to_parquet(path, row_group_size=100)
    _, manifest = run(client, "linear_regression", path, target="y", blocksize_mb=0.001)
    model = json.loads(file(manifest, "model.json"))
    predictions = rows(manifest, "predictions")
    train = np.setdiff1d(np.arange(len(X)), predictions["row"])
    assert len(train) == manifest.metrics["n_train"]
    design = np.column_stack([X.to_numpy(), np.ones(len(X))])[train]
    scale = np.abs(design).max(axis=0)
    oracle = np.linalg.lstsq(design / scale, y.to_numpy()[train], rcond=None)[0] / scale
    found = [*model["coefficients"].values(), model["intercept"]]
    np.testing.assert_allclose(found, oracle, rtol=1e-9)
    test = predictions["row"]
    np.testing.assert_allclose(predictions["prediction"], X.to_numpy()[test] @ oracle[:-1] + oracle[-1], rtol=1e-9)
    residuals = y[test] - predictions["prediction"].to_numpy()
    assert manifest.metrics["rmse"] == pytest.approx(np.sqrt((residuals**2).mean()), rel=1e-9)


def test_clusters_of_a_whole_job_are_as_good_as_scikit_learns(client: Client, tmp_path: Path) -> None:
    frame = datasets.load_wine(as_frame=True).data
    path = tmp_path / "wine.csv"
    frame.to_csv(path, index=False)
    _, manifest = run(client, "kmeans", path, n_clusters=3, blocksize_mb=0.002)
    scaled = ((frame - frame.mean()) / frame.std(ddof=0)).to_numpy()
    theirs = cluster.KMeans(3, n_init=10, random_state=0).fit(scaled)
    assert manifest.metrics["inertia"] <= theirs.inertia_ * 1.01
    found = rows(manifest, "assignments")
    assert found["row"].tolist() == list(range(len(frame)))
    centres = pq.read_table(next(f.url for f in manifest.files if f.name == "centres.parquet")).to_pandas()
    for number, group in frame.groupby(found["cluster"].to_numpy()):
        np.testing.assert_allclose(centres.iloc[number, 1:].astype(float), group.mean(), rtol=1e-9)
    assert float((found["distance"] ** 2).sum()) == pytest.approx(manifest.metrics["inertia"])


def test_a_network_is_as_good_as_scikit_learns(client: Client, tmp_path: Path) -> None:
    digits = datasets.load_digits(as_frame=True)
    path = tmp_path / "digits.parquet"
    digits.data.assign(label=digits.target).to_parquet(path, row_group_size=500)
    params = {"target": "label", "hidden": [64], "epochs": 30, "batch_size": 64, "micro_batch_size": 32}
    _, manifest = run(client, "neural_network", path, **params)
    test = rows(manifest, "predictions")["row"].to_numpy()
    train = np.setdiff1d(np.arange(len(digits.data)), test)
    data = digits.data.to_numpy()
    scale = np.where(data[train].std(axis=0) > 0, data[train].std(axis=0), 1)
    scaled = (data - data[train].mean(axis=0)) / scale
    theirs = neural_network.MLPClassifier((64,), max_iter=300, random_state=0)
    theirs.fit(scaled[train], digits.target[train])
    assert manifest.metrics["accuracy"] >= theirs.score(scaled[test], digits.target[test]) - 0.01
    predictions = rows(manifest, "predictions")
    accuracy = (predictions["target"] == predictions["prediction"]).mean()
    assert manifest.metrics["accuracy"] == pytest.approx(accuracy)
    assert not [each for each in storage.list_files(str(tmp_path / "runs")) if "shards" in each.url]


CASES = {
    "linear_regression": ({"target": "y", "drop": ["kind"]}, 1e-9),
    "kmeans": ({"n_clusters": 3, "drop": ["kind", "y"]}, 1e-9),
    "neural_network": ({"target": "kind", "drop": ["y"], "epochs": 2, "hidden": [8]}, 1e-5),
}
TIMINGS = ("rows_per_s", "goodput", "world_size")


@pytest.mark.parametrize("pipeline", CASES)
def test_the_result_is_the_same_for_any_workers_and_partitions(
    pipeline: str, table: pd.DataFrame, client: Client, one_worker: Client, four_workers: Client, tmp_path: Path
) -> None:
    params, rel = CASES[pipeline]
    paths = []
    for name, size in (("one", 1 << 20), ("many", 137)):
        (tmp_path / name).mkdir()
        paths.append(tmp_path / name / "t.parquet")
        table.to_parquet(paths[-1], row_group_size=size)
    table.to_csv(tmp_path / "t.csv", index=False)
    small = {"blocksize_mb": 0.001}
    _, reference = run(client, pipeline, paths[0], **params)
    runs = ((client, paths[1]), (one_worker, paths[1]), (four_workers, paths[1]), (client, tmp_path / "t.csv"))
    for user, path in runs:
        _, other = run(user, pipeline, path, **params, **small)
        close(reference, other, rel, TIMINGS)


def test_a_network_gives_the_same_for_every_world_size(
    table: pd.DataFrame, four_workers: Client, tmp_path: Path
) -> None:
    path = tmp_path / "t.parquet"
    table.to_parquet(path)
    found = []
    for world_size in (1, 2, 4):
        params = {"target": "y", "drop": ["kind"], "epochs": 3, "world_size": world_size, "batch_size": 128}
        found.append(run(four_workers, "neural_network", path, **params, micro_batch_size=16)[1])
        assert found[-1].metrics["world_size"] == world_size
    for other in found[1:]:
        close(found[0], other, 1e-5, TIMINGS)
    assert found[0].headline == "r2"


def test_what_is_missing_is_imputed_dropped_and_counted(client: Client, tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": [1.0, np.nan, np.inf, 4.0] * 25, "c": ["a", None, "b", "b"] * 25, "y": range(100)})
    frame["y"] = frame["y"].astype(float)
    frame.loc[:4, "y"] = [np.nan, np.inf, -np.inf, np.nan, 1.0]
    frame.to_parquet(tmp_path / "t.parquet")
    _, manifest = run(client, "linear_regression", tmp_path / "t.parquet", target="y")
    assert manifest.metrics["n_dropped"] == 4
    assert manifest.metrics["n_infinite"] == 25
    assert manifest.metrics["n_imputed"] == 48
    encoding = json.loads(file(manifest, "model.json"))["encoding"]
    assert encoding["categories"] == {"c": ["a", "b", "missing"]}
    assert manifest.n_rows == 100


BAD = {
    "no target": ("linear_regression", {}, GOOD := "x,y\n1,2\n2,3\n", SpecError, "target: missing"),
    "unknown target": ("linear_regression", {"target": "z"}, GOOD, InputError, "no column 'z'.*correct params.target"),
    "unknown feature": ("kmeans", {"features": ["xx"]}, GOOD, InputError, "no column 'xx'.*params.features"),
    "unknown drop": ("kmeans", {"drop": ["w"]}, GOOD, InputError, "no column 'w'.*params.drop"),
    "nothing left": ("kmeans", {"drop": ["x", "y"]}, GOOD, InputError, "no columns are left"),
    "header only": ("kmeans", {}, "x,y\n", InputError, "no rows below the header"),
    "text target": ("linear_regression", {"target": "y"}, "x,y\n1,a\n2,b\n", InputError, "of text such as 'a'"),
    "mixed target": ("linear_regression", {"target": "y"}, "x,y\n1,1\n2,b\n", InputError, "mixes 1 numbers with text"),
    "mixed feature": ("kmeans", {}, "x,y\n1,1\nb,2\n", InputError, "column 'x' mixes 1 numbers with text such as 'b'"),
    "no finite target": ("linear_regression", {"target": "y"}, "x,y\n1,\n2,inf\n", InputError, "no finite value"),
    "empty column": ("kmeans", {}, "x,y\n1,\n2,\n", InputError, "column 'y' has no values"),
    "infinite column": (
        "kmeans",
        {"n_clusters": 1},
        "x,y\n1,inf\n2,inf\n",
        InputError,
        "column 'y' has no finite value",
    ),
    "one class": ("neural_network", {"target": "y"}, "x,y\n1,a\n2,a\n", InputError, "one class only .'a'."),
    "too many classes": (
        "neural_network",
        {"target": "y", "task": "classification"},
        "x,y\n" + "".join(f"{i},v{i}\n" for i in range(1200)),
        InputError,
        "more than 1000 values",
    ),
    "too many categories": (
        "kmeans",
        {"max_categories": 3},
        "x,y\n" + "".join(f"{i},v{i}\n" for i in range(9)),
        InputError,
        "column 'y' has more than 3 distinct values",
    ),
    "k larger than the rows": (
        "kmeans",
        {"n_clusters": 9},
        GOOD,
        InputError,
        "2 rows are fewer than params.n_clusters",
    ),
    "no test row": ("linear_regression", {"target": "y", "test_fraction": 1e-9}, GOOD, InputError, "0 test rows"),
    "too many ranks": (
        "neural_network",
        {"target": "y", "world_size": 99},
        GOOD,
        SpecError,
        "99 ranks need 99 workers",
    ),
    "loss that explodes": (
        "neural_network",
        {"target": "y", "learning_rate": 1e30, "epochs": 20, "task": "regression"},
        "x,y\n" + "".join(f"{i},{i * i}\n" for i in range(50)),
        SpecError,
        "params.learning_rate: the loss became",
    ),
}


@pytest.mark.parametrize(("pipeline", "params", "content", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_named_and_leaves_no_run(
    pipeline: str,
    params: dict[str, Any],
    content: str,
    error: type[DaskyardError],
    message: str,
    client: Client,
    tmp_path: Path,
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(content)
    with pytest.raises(error, match=message) as caught:
        run(client, pipeline, path, **params)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert not files_below(tmp_path / "runs")


@pytest.mark.parametrize("column", ["x", "y"])
@pytest.mark.parametrize("pipeline", ["linear_regression", "neural_network"])
def test_a_value_too_large_to_square_is_refused_in_whatever_row(
    pipeline: str, column: str, client: Client, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    table = pd.DataFrame({"x": random.normal(size=50), "y": random.normal(size=50)})
    table["x"] += table["y"]
    for row, value in [(row, 1e200) for row in range(10)] + [(1, -1e120), (1, 1e160), (1, -1.7e308)]:
        spoilt = table.copy()
        spoilt.loc[row, column] = value
        spoilt.to_csv(tmp_path / "t.csv", index=False)
        with pytest.raises(InputError, match=rf"t\.csv: column '{column}' has values too large to square.*; scale it"):
            run(client, pipeline, tmp_path / "t.csv", target="y")
