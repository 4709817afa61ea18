"""The cases as Daskyard does them. Data lies on the workers before the clock starts, as it lies in a peer's memory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from dask import delayed
from distributed import Client, wait
from scipy import sparse

from benchmarks.sides.serve import Work, serve
from jobs.cluster import connected
from jobs.estimators.als import ExplicitALS, ImplicitALS
from jobs.estimators.als_blocks import InteractionBlocks
from jobs.estimators.kmeans import KMeans
from jobs.estimators.linear_regression import LinearRegression
from jobs.estimators.logistic_regression import LogisticRegression
from jobs.estimators.tfidf import TfidfVectorizer
from jobs.training.mlp_estimators import MLPRegressor

# Clusters, until the process ends.
_OPEN = ExitStack()
# Blocks that tables and texts are cut into: four a worker, as the readers make them.
_N_BLOCKS = 8


def kmeans(folder: Path) -> Work:
    start = np.load(folder / "start.npy")
    rows = _on_workers(folder / "rows.npy")
    model = KMeans(len(start), init=start, n_init=1, max_iter=10, tol=0)
    return lambda: model.fit(rows), lambda fit: {
        "labels": fit.predict(rows).compute(),
        "inertia": fit.inertia_,
        "n_iter": fit.n_iter_,
    }


def kmeans_own_start(folder: Path) -> Work:
    rows = _on_workers(folder / "rows.npy")
    return lambda: KMeans(16).fit(rows), lambda fit: {"inertia": fit.inertia_}


def linear_regression(folder: Path) -> Work:
    rows, target = _on_workers(folder / "rows.npy"), _on_workers(folder / "target.npy")
    return lambda: LinearRegression().fit(rows, target), lambda fit: {"coef": fit.coef_, "intercept": fit.intercept_}


def logistic_regression(folder: Path, tol: float) -> Work:
    model = LogisticRegression(tol=tol)
    if (folder / "rows.npy").exists():
        rows, target = _on_workers(folder / "rows.npy"), _on_workers(folder / "target.npy")
    else:
        matrix, classes = sparse.load_npz(folder / "rows.npz"), np.load(folder / "target.npy")
        cuts = np.linspace(0, len(classes), _N_BLOCKS + 1).astype(int)
        cut = [slice(*pair) for pair in pairwise(cuts)]
        rows, target = (_scattered([values[part] for part in cut]) for values in (sparse.csr_array(matrix), classes))
    return lambda: model.fit(rows, target), lambda fit: {"coef": fit.coef_, "intercept": fit.intercept_}


def tfidf(folder: Path, n_workers: int) -> Work:
    """Without workers in this process, on one thread; else on that many workers."""
    pa.set_cpu_count(1)
    documents = pa.array(json.loads((folder / "documents.json").read_text()), pa.large_string())
    # Equal shares of the text, as a reader cuts files.
    sizes = np.cumsum(pc.binary_length(documents))
    cuts = np.searchsorted(sizes, np.linspace(0, sizes[-1], _N_BLOCKS + 1))
    cuts[-1] = len(documents)
    # A slice would take all of the array with it when it travels.
    blocks = [pa.concat_arrays([documents[a:b]]) for a, b in pairwise(cuts)]
    if n_workers:
        _client(n_workers).run(pa.set_cpu_count, 1)
        blocks = _scattered(blocks, n_workers)

    def work() -> Any:
        found = TfidfVectorizer("hashed", n_hashed=2**18).fit_transform(blocks)
        if n_workers:
            wait(found)
        return found

    def described(found: Any) -> dict[str, Any]:
        rows = _client(n_workers).gather(found) if n_workers else found
        return {"n_stored": sum(each.nnz for each in rows), "sums": np.concatenate([each.sum(axis=1) for each in rows])}

    return work, described


def implicit_als(folder: Path, rank: int, regularization: float, alpha: float, n_iterations: int) -> Work:
    # In float32, as both peers compute.
    blocks = _spread(InteractionBlocks.of(sparse.load_npz(folder / "interactions.npz").astype("float32"), 2))
    model = ImplicitALS(rank, regularization=regularization, alpha=alpha, n_iterations=n_iterations)

    def fit() -> ImplicitALS:
        fitted = model.fit(blocks, client=_client(2))
        wait(fitted.item_vectors_)
        return fitted

    return fit, lambda fitted: {"users": fitted.user_factors_, "items": fitted.item_factors_}


def explicit_als(folder: Path) -> Work:
    ratings = pd.read_csv(folder / "ratings.csv")
    shape = ratings.user.max() + 1, ratings.item.max() + 1

    def folds() -> list[float]:
        errors = []
        for fold in sorted(ratings.fold.unique()):
            train, test = ratings[ratings.fold != fold], ratings[ratings.fold == fold]
            matrix = sparse.csr_matrix((train.rating.to_numpy(float), (train.user, train.item)), shape=shape)
            found = ExplicitALS().fit(matrix).predict_pairs(test.user.to_numpy(), test.item.to_numpy())
            errors.append(float(np.mean((np.clip(found, 1, 5) - test.rating) ** 2)))
        return errors

    return folds, lambda errors: {"rmse": float(np.sqrt(np.mean(errors)))}


def mlp(folder: Path) -> Work:
    rows, target = _on_workers(folder / "rows.npy"), _on_workers(folder / "target.npy")
    model = MLPRegressor(max_iter=2)
    return lambda: model.fit(rows, target), lambda fit: {"coef": fit.coefs_[0], "loss": fit.loss_curve_}


@cache
def _client(n_workers: int) -> Client:
    return _OPEN.enter_context(connected(n_workers))


def _scattered(values: Sequence[Any], n_workers: int = 2) -> list[Any]:
    client = _client(n_workers)
    addresses = sorted(client.nthreads())
    return [
        client.scatter(value, workers=[addresses[place % n_workers]], hash=False) for place, value in enumerate(values)
    ]


def _spread(blocks: InteractionBlocks) -> InteractionBlocks:
    return replace(blocks, by_user=_scattered(blocks.by_user), by_item=_scattered(blocks.by_item))


def _on_workers(file: Path) -> da.Array:
    array = np.load(file)
    blocks = _scattered(np.array_split(array, _N_BLOCKS))
    shapes = [(len(part), *array.shape[1:]) for part in np.array_split(array, _N_BLOCKS)]
    parts = [da.from_delayed(delayed(block), shape, array.dtype) for block, shape in zip(blocks, shapes, strict=True)]
    rows = da.concatenate(parts).persist()
    wait(rows)
    return rows


def main() -> None:
    with _OPEN:
        serve(
            [
                kmeans,
                kmeans_own_start,
                linear_regression,
                logistic_regression,
                tfidf,
                implicit_als,
                explicit_als,
                mlp,
            ],
            ["daskyard", "dask", "distributed", "numpy", "scipy", "numba"],
        )


if __name__ == "__main__":
    main()
