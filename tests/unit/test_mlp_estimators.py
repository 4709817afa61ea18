"""Do the multi-layer perceptrons learn as scikit-learn's do, and the same wherever their rows lie?"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import torch
from distributed import Client, LocalCluster, Semaphore, wait
from numpy.typing import NDArray
from sklearn.datasets import load_digits, make_friedman1
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier as TheirClassifier
from sklearn.neural_network import MLPRegressor as TheirRegressor
from sklearn.preprocessing import StandardScaler

from jobs.errors import WorkersLostError
from jobs.estimators import MLPClassifier, MLPRegressor
from jobs.training import metrics
from jobs.training.driver import GANG
from jobs.training.table_rows import RowsOnWorkers, as_float32

SMALL: dict[str, Any] = {"hidden_layer_sizes": (8,), "max_iter": 4, "batch_size": 64, "micro_batch_size": 16}


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Client(processes=True, n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as client:
        yield client


def table(n: int = 300) -> tuple[NDArray[np.float64], NDArray[Any]]:
    random = np.random.default_rng(7)
    rows = random.normal(size=(n, 5))
    return rows, np.array(["low", "mid", "high"])[np.digitize(rows.sum(axis=1), [-1, 1])]


def assert_same_network(a: Any, b: Any) -> None:
    for left, right in zip(a.coefs_ + a.intercepts_, b.coefs_ + b.intercepts_, strict=True):
        np.testing.assert_array_equal(left, right)
    assert a.loss_curve_ == b.loss_curve_


@pytest.mark.slow
def test_digits_are_read_as_well_as_by_scikit_learn() -> None:
    X, y = load_digits(return_X_y=True)
    train, test, y_train, y_test = train_test_split(X / 16, y, random_state=0)
    ours = MLPClassifier().fit(train, y_train)
    theirs = TheirClassifier((64, 32), learning_rate_init=2e-3, max_iter=500, random_state=0).fit(train, y_train)
    assert ours.score(test, y_test) > theirs.score(test, y_test) - 0.02
    assert ours.score(test, y_test) > 0.95
    np.testing.assert_allclose(ours.predict_proba(test).sum(axis=1), 1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_curved_surface_is_fitted_as_well_as_by_scikit_learn() -> None:
    X, y = make_friedman1(1200, noise=0.5, random_state=0)
    train, test, y_train, y_test = train_test_split(StandardScaler().fit_transform(X), y, random_state=0)
    ours = MLPRegressor().fit(train, y_train)
    theirs = TheirRegressor(hidden_layer_sizes=(64, 32), learning_rate_init=2e-3, max_iter=500, random_state=0)
    assert ours.score(test, y_test) > theirs.fit(train, y_train).score(test, y_test) - 0.02
    assert ours.score(test, y_test) > 0.9


def test_predictions_are_those_of_the_network_in_torch() -> None:
    rows, names = table()
    model = MLPClassifier((8, 4), max_iter=2).fit(rows, names)
    layers: list[torch.nn.Module] = []
    for weights, constants in zip(model.coefs_, model.intercepts_, strict=True):
        layer = torch.nn.Linear(*weights.shape, dtype=torch.float64)
        layer.load_state_dict({"weight": torch.from_numpy(weights.T), "bias": torch.from_numpy(constants)})
        layers += [layer, torch.nn.ReLU()]
    with torch.inference_mode():
        expected = torch.nn.Sequential(*layers[:-1])(torch.from_numpy(rows)).softmax(dim=1).numpy()
    np.testing.assert_allclose(model.predict_proba(rows), expected, rtol=1e-12)
    assert (model.predict(rows) == model.classes_[expected.argmax(axis=1)]).all()
    assert [weights.shape for weights in model.coefs_] == [(5, 8), (8, 4), (4, 3)]
    assert model.n_outputs_ == 3


def test_the_workers_of_a_client_learn_what_this_process_learns(client: Client) -> None:
    rows, _ = table()
    classes = np.digitize(rows.sum(axis=1), [-1, 1]) * 10
    frame = pd.DataFrame(rows, columns=list("abcde"))
    here = MLPClassifier(**SMALL).fit(frame, classes)
    # Partitions of 50 rows, of which 48 are kept, in the fifth none, in the last a few.
    kept = (np.arange(400) // 50 != 4) & (np.arange(400) % 50 < 48)
    whole = pd.DataFrame({name: np.zeros(400) for name in "abcde"}).assign(y=-1, is_kept=kept)
    whole.loc[np.flatnonzero(kept)[:300], [*"abcde"]] = rows
    whole.loc[np.flatnonzero(kept)[:300], "y"] = classes
    whole.loc[np.flatnonzero(kept)[300:], "is_kept"] = False
    cut = dd.from_pandas(whole, npartitions=8)
    cut = cut[cut.is_kept]
    there = MLPClassifier(**SMALL, world_size=2).fit(cut[list("abcde")], cut.y)
    assert_same_network(here, there)
    assert there.classes_.tolist() == [0, 10, 20]
    lazy = there.predict_proba(cut[list("abcde")])
    assert isinstance(lazy, da.Array)
    np.testing.assert_allclose(lazy.compute(), here.predict_proba(frame), rtol=1e-12)

    target = rows @ np.arange(5) * 1e6 + 1e9
    far = MLPRegressor(**SMALL).fit(rows, target)
    assert_same_network(
        far, MLPRegressor(**SMALL).fit(da.from_array(rows, chunks=(70, 2)), da.from_array(target, chunks=50))
    )
    np.testing.assert_allclose(far.predict(rows).mean(), target.mean(), rtol=1e-3)


def test_rows_come_to_a_worker_in_order_and_stay_where_they_were(client: Client) -> None:
    rows, _ = table()
    parts = np.split(rows, [10, 10, 130])
    workers = sorted(client.nthreads())
    blocks = [client.submit(np.array, part, workers=workers[at % 2], pure=False) for at, part in enumerate(parts)]
    targets = [client.submit(np.ravel, part[:, :1], workers=workers[0], pure=False) for part in parts]
    wait(blocks + targets)
    before = client.who_has(blocks)
    keys = tuple((block.key, target.key) for block, target in zip(blocks, targets, strict=True))
    data = RowsOnWorkers(keys, (0, 10, 10, 130), len(rows), 5, as_float32, timeout_s=20)

    def opened(data: RowsOnWorkers) -> Any:
        with data.fetched() as file:
            found = file.open()
            inputs, first = found.batch(np.array([299, 0, 10, 129, 130]), 0)
            return np.array(found.inputs), np.array(found.targets), inputs.numpy(), first.numpy()

    for worker in workers:
        inputs, first, some, some_first = client.submit(opened, data, workers=[worker], pure=False).result()
        np.testing.assert_array_equal(inputs, rows.astype(np.float32))
        np.testing.assert_array_equal(first, rows[:, 0].astype(np.float32))
        np.testing.assert_array_equal(some, inputs[[299, 0, 10, 129, 130]])
        np.testing.assert_array_equal(some_first, some[:, 0])
    assert client.who_has(blocks) == before
    assert not any(client.run(files_of_worker).values())
    blocks[2].cancel(force=True)
    with pytest.raises(WorkersLostError, match="no worker holds this block"):
        client.submit(opened, data, pure=False).result()


def test_fits_at_once_take_turns_and_do_not_mix(client: Client) -> None:
    rows, names = table()
    lazy = da.from_array(rows, chunks=(100, 5))
    expected = [MLPClassifier(**SMALL, random_state=seed).fit(rows, names) for seed in range(4)]
    MLPClassifier(**SMALL).fit(lazy, names)  # from here on it takes the workers less than a second
    models = [MLPClassifier(**SMALL, random_state=seed, world_size=2, timeout_s=50) for seed in range(4)]
    with ThreadPoolExecutor(len(models)) as pool:
        gate = Semaphore(1, GANG)
        assert gate.acquire(timeout=10)
        fits = [pool.submit(model.fit, lazy, names) for model in models]
        time.sleep(3)
        assert not any(fit.done() for fit in fits)
        gate.release()
        gate.refresh_callback.stop()
        for model, fit in zip(expected, fits, strict=True):
            assert_same_network(model, fit.result(timeout=300))


@pytest.mark.parametrize("is_dask", [False, True], ids=["in memory", "dask"])
def test_bad_values_are_refused_by_name(is_dask: bool, client: Client) -> None:
    rows, names = table()
    numbers = rows.sum(axis=1)

    def changed(values: Any, value: Any) -> Any:
        values = values.copy()
        values[-1] = value
        return values

    cases = [
        (MLPRegressor(), changed(rows, np.nan), numbers, "Input X contains NaN"),
        (MLPRegressor(), changed(rows, np.inf), numbers, "Input X contains infinity"),
        (MLPRegressor(), changed(rows, 1e300), numbers, r"too large for dtype\('float32'\)"),
        (MLPRegressor(), rows, changed(numbers, np.nan), "Input y contains NaN"),
        (MLPRegressor(), rows, changed(numbers, 1e300), "Input y contains a value too large"),
        (MLPClassifier(), rows, changed(np.ones(300), np.nan), "Input y contains NaN"),
        (MLPClassifier(), rows, numbers, "Unknown label type: continuous"),
        (MLPClassifier(), rows, np.ones(300), "1 class in all rows"),
        (MLPClassifier(), rows, names[:-1], "299|299"),
        (MLPClassifier(), rows[:, 0], names, "Expected 2D array, got 1D array"),
    ]
    for model, X, y, message in cases:
        if is_dask:
            X, y = da.from_array(X, chunks=100), da.from_array(y, chunks=100)
        with pytest.raises(ValueError, match=message):
            model.set_params(**SMALL).fit(X, y)


def test_parameters_out_of_bounds_are_refused_by_name(client: Client) -> None:
    rows, names = table()
    for parameters, message in (
        ({"hidden_layer_sizes": (8, 0)}, r"hidden_layer_sizes=\(8, 0\) should all be at least 1"),
        ({"max_iter": 0}, "max_iter=0 should be at least 1"),
        ({"batch_size": -1}, "batch_size=-1 should be at least 1"),
        ({"world_size": 3}, "^world_size: 3 ranks need 3 workers, the cluster has 2"),
        ({"learning_rate_init": 1e30}, "^learning_rate_init: the loss became (nan|inf) in epoch 1"),
    ):
        with pytest.raises(ValueError, match=message):
            MLPClassifier(**(SMALL | parameters)).fit(da.from_array(rows, chunks=(100, 5)), names)


def test_torch_is_left_as_it_was() -> None:
    before = torch.get_num_threads(), torch.random.get_rng_state()
    MLPClassifier(**SMALL).fit(*table())
    assert torch.get_num_threads() == before[0]
    assert torch.equal(torch.random.get_rng_state(), before[1])


def test_a_fitted_model_predicts_without_torch(tmp_path: Path) -> None:
    rows, names = table()
    model = MLPClassifier(**SMALL).fit(rows, names)
    (tmp_path / "model.pickle").write_bytes(pickle.dumps((model, rows)))
    command = (
        "import pickle, sys; model, rows = pickle.load(open('model.pickle', 'rb'));"
        "print(*model.predict(rows)); sys.exit('torch' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    told = subprocess.run(
        [sys.executable, "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert told.stdout.split() == model.predict(rows).tolist()


def files_of_worker(dask_worker: Any) -> list[str]:
    return [str(path) for path in Path(dask_worker.local_directory).rglob("*") if path.is_file()]


def generation_of_rank() -> float:
    return float(metrics._generation._value.get())


@pytest.mark.slow
def test_a_lost_worker_changes_nothing_in_the_model_and_leaves_no_file() -> None:
    rows, names = table(3000)
    killed: list[int] = []

    def kill_when_both_train(client: Client) -> None:
        deadline = time.monotonic() + 60
        while not all(client.run(generation_of_rank).values()) and time.monotonic() < deadline:
            time.sleep(0.2)
        killed.append(max(client.run(os.getpid).values()))
        os.kill(killed[0], signal.SIGKILL)

    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=logging.CRITICAL
        ) as cluster,
        Client(cluster) as client,
    ):
        assert not any(client.run(files_of_worker).values())
        killer = threading.Thread(target=kill_when_both_train, args=(client,))
        killer.start()
        model = MLPClassifier(max_iter=100, world_size=2).fit(da.from_array(rows, chunks=(500, 5)), names)
        killer.join()
        assert killed
        deadline = time.monotonic() + 20
        while left := [path for paths in client.run(files_of_worker).values() for path in paths]:
            assert time.monotonic() < deadline, left
            time.sleep(0.2)
    np.testing.assert_array_equal(model.loss_curve_, MLPClassifier(max_iter=100).fit(rows, names).loss_curve_)
