"""The demo on real data reaches what the documentation promises; oracles are computed here, on the same rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.cluster import KMeans
from sklearn.neural_network import MLPClassifier

from jobs import storage
from jobs.artifacts import Manifest, read_manifest
from jobs.local_s3 import LocalS3

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """What `daskyard demo` printed, with its S3 server started again on what it kept."""
    keep = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "jobs.cli", "demo", "--workers", "2", "--keep", str(keep)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=1500, env={**os.environ, "COLUMNS": "120"}, check=False
    )
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout
    with LocalS3(keep / "s3"):
        yield done.stdout


@pytest.fixture(scope="module")
def runs(demo: str, pytestconfig: pytest.Config) -> dict[str, Manifest]:
    """The committed runs by the names of their headlines; kept for the scenarios on kind, which find the same."""
    urls = [line for line in demo.splitlines() if line.startswith("s3://demo/runs/")]
    manifests = [read_manifest(url) for url in urls]
    pytestconfig.cache.set("daskyard/demo", [manifest.model_dump(mode="json") for manifest in manifests])
    return {f"{manifest.pipeline} {manifest.headline}": manifest for manifest in manifests}


def table(manifest: Manifest, folder: str) -> pd.DataFrame:
    urls = [file.url for file in manifest.files if file.name.startswith(f"{folder}/")]
    frames = [pq.read_table(pa.BufferReader(storage.read_bytes(url))).to_pandas() for url in urls]
    return pd.concat(frames, ignore_index=True).sort_values("row", ignore_index=True)


def model(manifest: Manifest) -> Any:
    return json.loads(storage.read_bytes(next(file.url for file in manifest.files if file.name == "model.json")))


def data(manifest: Manifest) -> pd.DataFrame:
    return pq.read_table(pa.BufferReader(storage.read_bytes(manifest.inputs[0].url))).to_pandas()


def test_all_seven_pipelines_are_committed_with_files_that_match_their_hashes(runs: dict[str, Manifest]) -> None:
    assert len(runs) == 8
    assert len({manifest.pipeline for manifest in runs.values()}) == 7
    for manifest in runs.values():
        result = "groups/part-00000.parquet" if manifest.pipeline == "group_by" else "model.json"
        assert {"report.html", "dask-report.html", result} <= {file.name for file in manifest.files}
        assert manifest.inputs
        for file in manifest.files:
            assert len(storage.read_bytes(file.url)) == file.size


def test_one_epoch_of_images_reaches_the_bar_of_its_data_set(runs: dict[str, Manifest]) -> None:
    manifest = runs["image_classification accuracy"]
    bars = {"cifar": 0.55, "fashion": 0.88, "digits": 0.95}
    bar = next(bar for name, bar in bars.items() if name in manifest.inputs[0].url)
    assert manifest.metrics["accuracy"] >= bar


def test_newsgroups_are_told_apart(runs: dict[str, Manifest]) -> None:
    assert runs["text_mining accuracy"].metrics["accuracy"] >= 0.85


def test_ratings_are_predicted_and_films_ranked(runs: dict[str, Manifest]) -> None:
    assert runs["recommender rmse"].metrics["rmse"] <= 0.925
    assert runs["recommender ndcg@10"].metrics["ndcg@10"] >= 0.43


def test_housing_coefficients_are_those_of_lstsq(runs: dict[str, Manifest]) -> None:
    manifest = runs["linear_regression r2"]
    frame, found = data(manifest), model(manifest)
    test = table(manifest, "predictions")["row"]
    rows = frame.drop(index=test)
    names = list(found["coefficients"])
    design = np.column_stack([rows[names].to_numpy(np.float64), np.ones(len(rows))])
    scale = np.abs(design).max(axis=0)
    oracle = np.linalg.lstsq(design / scale, rows[found["target"]].to_numpy(np.float64), rcond=None)[0] / scale
    np.testing.assert_allclose([*found["coefficients"].values(), found["intercept"]], oracle, rtol=1e-9)


def test_clusters_are_as_tight_as_scikit_learns_best_of_ten(runs: dict[str, Manifest]) -> None:
    manifest = runs["kmeans inertia"]
    rows = data(manifest)[[column["name"] for column in model(manifest)["encoding"]["numbers"]]].to_numpy(np.float64)
    spread = rows.std(axis=0)
    scaled = (rows - rows.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    theirs = KMeans(manifest.spec["params"]["n_clusters"], n_init=10, random_state=0).fit(scaled)
    assert manifest.metrics["inertia"] <= 1.01 * theirs.inertia_


def test_the_network_is_within_a_point_of_scikit_learns(runs: dict[str, Manifest]) -> None:
    manifest = runs["neural_network accuracy"]
    frame, found = data(manifest), model(manifest)
    encoded = pd.get_dummies(frame.drop(columns=found["target"]), dtype=np.float64)
    test = np.zeros(len(frame), dtype=bool)
    test[table(manifest, "predictions")["row"]] = True
    numbers = [column["name"] for column in found["encoding"]["numbers"]]
    chosen = encoded.loc[~test, numbers]
    encoded[numbers] = (encoded[numbers] - chosen.mean()) / chosen.std(ddof=0)
    assert encoded.shape[1] == manifest.metrics["n_columns"]
    X, y = encoded.to_numpy(), frame[found["target"]].to_numpy()
    theirs = MLPClassifier(tuple(manifest.spec["params"]["hidden"]), early_stopping=True, random_state=0)
    theirs.fit(X[~test], y[~test])
    assert manifest.metrics["accuracy"] >= theirs.score(X[test], y[test]) - 0.01


def test_groups_are_those_of_pandas(runs: dict[str, Manifest]) -> None:
    manifest = runs["group_by n_groups"]
    [url] = [file.url for file in manifest.files if file.name.startswith("groups/")]
    found = pq.read_table(pa.BufferReader(storage.read_bytes(url))).to_pandas()
    by, aggregates = manifest.spec["params"]["by"], manifest.spec["params"]["aggregates"]
    named = {f"{name}_{each}": (name, each) for name, of in aggregates.items() for each in of}
    groups = data(manifest).groupby(by, dropna=False)
    oracle = groups.agg(**named).reset_index()
    oracle.insert(len(by), "n_rows", groups.size().to_numpy())
    pd.testing.assert_frame_equal(found, oracle, check_dtype=False, rtol=1e-9)
