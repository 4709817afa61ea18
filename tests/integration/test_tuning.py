"""Searches as whole jobs: they find what was planted, look at no test row, and go on where they were killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from distributed import Client

from jobs import runner, storage
from jobs.artifacts import Manifest, TrialRecord, TuningRecord, read_manifest
from jobs.errors import SpecError
from jobs.readers.table_encoding import Split
from jobs.spec import parse
from tests.threads import threads


def run(client: Client, pipeline: str, path: Any, output: Path, params: dict[str, Any], tune: Any) -> Manifest:
    spec = parse({"pipeline": pipeline, "params": params, "input": path, "output": str(output), "tune": tune})
    return runner.run(spec, client=client).manifest


def tuning(manifest: Manifest) -> TuningRecord:
    assert manifest.tuning is not None
    return manifest.tuning


@pytest.fixture
def far_from_zero(tmp_path: Path) -> str:
    """A line with a constant: without one in the model nothing fits."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(600, 3))
    frame = pd.DataFrame(rows, columns=list("abc")).assign(y=rows.sum(axis=1) + 50 + 0.1 * rng.normal(size=600))
    frame.to_csv(tmp_path / "line.csv", index=False)
    return str(tmp_path / "line.csv")


INTERCEPT = {"space": {"fit_intercept": {"choices": [True, False]}}, "n_trials": 8}


def test_a_search_finds_what_was_planted_and_leaves_only_the_run(
    far_from_zero: str, client: Client, tmp_path: Path
) -> None:
    manifest = run(client, "linear_regression", far_from_zero, tmp_path / "runs", {"target": "y"}, INTERCEPT)
    found = tuning(manifest)
    assert found.params == {"fit_intercept": True}
    assert len(found.trials) == 2  # there are no more candidates
    assert (found.metric, found.is_more_better) == ("r2", True)
    assert manifest.metrics["tuning_best"] == found.value > 0.9
    assert [stage.name for stage in manifest.stages] == ["tune", "load", "prepare", "fit", "evaluate", "write"]
    assert manifest.spec["tune"]["n_trials"] == 8
    # The run itself trains on all training rows, those too on which trials were measured.
    assert manifest.metrics["n_train"] > max(trial.metrics["n_train"] for trial in found.trials)
    standing = {file.url.removeprefix("file://") for file in storage.list_files(str(tmp_path / "runs"))}
    assert standing == {*(file.url for file in manifest.files), f"{tmp_path}/runs/{manifest.run_id}/manifest.json"}
    report = next(file.url for file in manifest.files if file.name == "report.html")
    assert "Tuning: 2 trials, r2 on validation rows" in Path(report).read_text()


def test_trials_look_at_no_test_row(far_from_zero: str, client: Client, tmp_path: Path) -> None:
    frame = pd.read_csv(far_from_zero)
    _, is_test = Split(0, 0.2).roles(np.arange(len(frame)))
    frame.loc[is_test, "y"] = -1e6
    frame.loc[is_test, "a"] = 1e6
    frame.to_csv(tmp_path / "poisoned.csv", index=False)
    records = []
    for path in (far_from_zero, str(tmp_path / "poisoned.csv")):
        manifest = run(client, "linear_regression", path, tmp_path / "runs", {"target": "y"}, INTERCEPT)
        records.append([(trial.params, trial.metrics) for trial in tuning(manifest).trials])
    assert records[0] == records[1]


def test_halving_by_rows_gives_more_rows_to_fewer(far_from_zero: str, client: Client, tmp_path: Path) -> None:
    space = {"learning_rate": {"low": 1e-5, "high": 1e-1, "scale": "log"}}
    tune = {"space": space, "strategy": "successive_halving", "n_trials": 9, "metric": "rmse"}
    params = {"target": "y", "hidden": [8], "epochs": 6, "batch_size": 32, "micro_batch_size": 16}
    manifest = run(client, "neural_network", far_from_zero, tmp_path / "runs", params, tune)
    found = tuning(manifest)
    assert not found.is_more_better
    n_rows = {rung: {t.metrics["n_train"] for t in found.trials if t.rung == rung} for rung in range(3)}
    assert [len([t for t in found.trials if t.rung == rung]) for rung in range(3)] == [9, 3, 1]
    assert n_rows[0] < n_rows[1] < n_rows[2] or max(n_rows[0]) < max(n_rows[1]) < max(n_rows[2])
    values = {trial.number: trial.value for trial in found.trials if trial.rung == 0}
    survivors = {trial.number for trial in found.trials if trial.rung == 1}
    assert survivors == set(sorted(values, key=lambda number: values[number] or 0.0)[:3])
    last = [trial for trial in found.trials if trial.rung == 2]
    assert found.params == last[0].params


def test_the_number_of_clusters_is_found_with_any_number_of_workers(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(3, 2))[rng.integers(0, 3, 300)] * 20 + rng.normal(size=(300, 2))
    pd.DataFrame(rows, columns=["a", "b"]).to_csv(tmp_path / "t.csv", index=False)
    tune = {"space": {"n_clusters": {"choices": [2, 3, 5, 400]}}, "metric": "silhouette", "n_trials": 12}
    records = []
    for n_workers in (1, 2):
        with threads(n_workers) as client:
            output = tmp_path / f"runs{n_workers}"
            found = tuning(run(client, "kmeans", str(tmp_path / "t.csv"), output, {}, tune))
        assert found.params == {"n_clusters": 3}
        [failed] = [trial for trial in found.trials if trial.error]
        assert failed.params == {"n_clusters": 400}
        assert "300" in str(failed.error)
        records.append([(trial.params, trial.metrics) for trial in found.trials])
    for (params, metrics), (other_params, other_metrics) in zip(*records, strict=True):
        assert params == other_params
        assert metrics == pytest.approx(other_metrics, rel=1e-9)


def test_when_all_trials_fail_the_first_ones_error_is_told(far_from_zero: str, client: Client, tmp_path: Path) -> None:
    tune = {"space": {"n_clusters": {"choices": [700, 800]}}, "metric": "silhouette"}
    with pytest.raises(SpecError, match=r"all 2 trials failed, the first with: .*600 rows are fewer than"):
        run(client, "kmeans", far_from_zero, tmp_path / "runs", {}, tune)
    bad = {**INTERCEPT, "metric": "r3", "mode": "max"}
    with pytest.raises(SpecError, match=r"no metric 'r3'; there are r2, rmse"):
        run(client, "linear_regression", far_from_zero, tmp_path / "runs", {"target": "y"}, bad)


RECORD_DAMAGE = {
    "empty": lambda data, other: b"",
    "truncated": lambda data, other: data[: len(data) // 2],
    "garbage": lambda data, other: b"\xff" * 40,
    "another's": lambda data, other: other,
    "other params": lambda data, other: data.replace(b'"fit_intercept": ', b'"x": '),
    "a value that its metrics do not have": lambda data, other: re.sub(rb'"value": [^,]*', b'"value": 7', data),
    "NaN": lambda data, other: re.sub(rb'"seconds": [^,]*', b'"seconds": NaN', data),
}


@pytest.mark.parametrize("damage", RECORD_DAMAGE)
def test_a_trial_whose_record_is_damaged_is_made_again_and_the_others_are_not(
    damage: str, far_from_zero: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with threads(1) as client:
        with monkeypatch.context() as patch:
            patch.setattr(runner, "remove_records", lambda run_url: None)
            first = run(client, "linear_regression", far_from_zero, tmp_path / "runs", {"target": "y"}, INTERCEPT)
        run_url = tmp_path / "runs" / first.run_id
        records = sorted(run_url.glob("trials/*/records/*.json"))
        assert len(records) == 2
        records[0].write_bytes(RECORD_DAMAGE[damage](records[0].read_bytes(), records[1].read_bytes()))
        (run_url / "manifest.json").unlink()
        second = run(client, "linear_regression", far_from_zero, tmp_path / "runs", {"target": "y"}, INTERCEPT)
    assert tuning(second).n_reused == 1
    assert [(t.params, t.metrics) for t in tuning(second).trials] == [
        (t.params, t.metrics) for t in tuning(first).trials
    ]
    assert not list(run_url.glob("trials/**/*.json"))


def texts(folder: Path) -> Any:
    rng = np.random.default_rng(2)
    words = {"x": ["apple", "pear", "plum"], "y": ["iron", "zinc", "lead"]}
    labels = rng.choice(["x", "y"], 120)
    rows = [" ".join(rng.choice([*words[label], "and", "the", "of"], 8)) for label in labels]
    for name in ("train", "test"):
        pd.DataFrame({"text": rows, "label": labels}).to_parquet(folder / f"{name}.parquet")
    return {"url": str(folder / "train.parquet"), "test_url": str(folder / "test.parquet")}


def ratings(folder: Path) -> Any:
    rng = np.random.default_rng(3)
    pairs = np.argwhere(rng.random((60, 30)) < 0.4)
    values = 3 + np.sin(pairs[:, 0]) + np.cos(pairs[:, 1]) + 0.1 * rng.normal(size=len(pairs))
    frame = pd.DataFrame({"user_id": pairs[:, 0], "item_id": pairs[:, 1], "rating": values})
    frame.to_csv(folder / "ratings.csv", index=False)
    return str(folder / "ratings.csv")


def pictures(folder: Path) -> Any:
    import gzip
    import struct

    rng = np.random.default_rng(4)
    for part, n in (("train", 96), ("t10k", 32)):
        labels = rng.integers(0, 2, n).astype(np.uint8)
        images = rng.integers(0, 80, (n, 8, 8)).astype(np.uint8)
        images[labels == 1, :, :4] += 120
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            (folder / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
    return str(folder)


CASES: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "text_mining": (texts, {}, {"space": {"C": {"low": 0.01, "high": 10, "scale": "log"}}, "n_trials": 2}),
    "recommender": (
        ratings,
        {"rank": 4, "k": 5, "top_n": 5},
        {"space": {"rank": {"low": 1, "high": 4}}, "n_trials": 2},
    ),
    "image_classification": (
        pictures,
        {"epochs": 1, "width": 4, "batch_size": 32, "micro_batch_size": 16},
        {"space": {"learning_rate": {"low": 0.5, "high": 20}}, "n_trials": 2},
    ),
}


@pytest.mark.parametrize("pipeline", CASES)
def test_every_other_pipeline_can_be_tuned(pipeline: str, client: Client, tmp_path: Path) -> None:
    make, params, tune = CASES[pipeline]
    folder = tmp_path / "data"
    folder.mkdir()
    manifest = run(client, pipeline, make(folder), tmp_path / "runs", params, tune)
    found = tuning(manifest)
    assert len(found.trials) == 2
    assert all(trial.value is not None for trial in found.trials)
    better = max if found.is_more_better else min
    assert found.value == better(trial.value for trial in found.trials if trial.value is not None)
    names = {"text_mining": "n_train_documents", "recommender": "n_train"}
    if pipeline in names:
        n = names[pipeline]
        assert found.trials[0].metrics[n] < manifest.metrics[n]  # type: ignore[operator]
    left = [file.url for file in storage.list_files(f"{tmp_path}/runs/{manifest.run_id}") if "/trials/" in file.url]
    assert left == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_search_goes_on_and_ends_like_one_that_was_not(
    far_from_zero: str, client: Client, tmp_path: Path
) -> None:
    params = {"target": "y", "hidden": [8], "epochs": 4, "batch_size": 32, "micro_batch_size": 16}
    tune = {"space": {"learning_rate": {"low": 1e-4, "high": 1e-1, "scale": "log"}}, "n_trials": 8}
    job = {"pipeline": "neural_network", "params": params, "input": far_from_zero, "tune": tune}
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump({**job, "output": str(tmp_path / "killed")}))
    environment = {**os.environ, "DASK_SCHEDULER_ADDRESS": client.scheduler.address}
    command = [sys.executable, "-m", "jobs.cli", "run", str(file), "--run-id", "again"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(done := list((tmp_path / "killed").glob("again/trials/*/records/*.json"))) < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = {path.name: TrialRecord.model_validate(json.loads(path.read_text())) for path in done}
    subprocess.run(command, env=environment, check=True, timeout=120, capture_output=True)
    manifest = read_manifest(str(tmp_path / "killed" / "again"))
    found = tuning(manifest)
    assert 3 <= found.n_reused < 8
    # What had been made was not made again: its seconds are those of then.
    assert {trial.seconds for trial in found.trials} >= {record.seconds for record in before.values()}
    undisturbed = run(client, "neural_network", far_from_zero, tmp_path / "whole", params, tune)
    assert [(t.params, t.value) for t in found.trials] == [(t.params, t.value) for t in tuning(undisturbed).trials]
    theirs, ours = (
        {name: value for name, value in metrics.items() if name not in ("rows_per_s", "goodput")}
        for metrics in (undisturbed.metrics, manifest.metrics)
    )
    assert ours == theirs
    assert not list((tmp_path / "killed").glob("again/trials/**/*"))
