"""Is what an estimator learns the same for any number of blocks and of workers, to 1e-9?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import dask.array as da
import numpy as np
import pytest
from distributed import Client
from numpy.typing import NDArray
from scipy import sparse
from sklearn.base import clone

from jobs.estimators import (
    NMF,
    ExplicitALS,
    ImplicitALS,
    InteractionBlocks,
    KMeans,
    LinearRegression,
    LinearSVM,
    LogisticRegression,
    MLPClassifier,
    MLPRegressor,
    Ridge,
    TfidfVectorizer,
    als,
)
from tests.threads import threads

N_ROWS = 400
N_BLOCKS = [1, 2, 4, 16]
Fit = Callable[[Any, int, Client], Any]


@cache
def table() -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Rows far from the origin in some columns, a target, and three classes that overlap."""
    random = np.random.default_rng(3)
    rows = random.normal(size=(N_ROWS, 6)) * [1, 10, 0.1, 1, 1, 1] + [0, 100, 0, 0, -5, 0]
    rows += random.integers(0, 3, (N_ROWS, 1))
    target = rows @ random.normal(size=6) + random.normal(size=N_ROWS)
    return rows, target, np.digitize(target + 10 * random.normal(size=N_ROWS), np.quantile(target, [0.3, 0.7]))


@cache
def weights() -> NDArray[np.float64]:
    """Weights of the rows, of which every fifth or so is 0."""
    random = np.random.default_rng(6)
    return random.gamma(0.7, size=N_ROWS) * (random.random(N_ROWS) < 0.8)


@cache
def counts() -> sparse.csr_array:
    random = np.random.default_rng(4)
    dense = random.gamma(0.3, size=(N_ROWS, 5)) @ random.gamma(0.2, size=(5, 60))
    return sparse.csr_array(np.where(random.random(dense.shape) < 0.4, dense + 0.01, 0))


def cut(values: Any, n_blocks: int) -> list[Any]:
    """Cut in blocks of unequal length."""
    ends = np.linspace(0, 1, n_blocks + 1) ** 1.5 * values.shape[0]
    return [values[a:b] for a, b in zip(ends[:-1].astype(int), ends[1:].astype(int), strict=True)]


def scattered(blocks: Sequence[Any], client: Client) -> list[Any]:
    return [client.submit(lambda block=block: block, pure=False) for block in blocks]


def from_table(target: int, is_weighted: bool = False) -> Fit:
    def fit(model: Any, n_blocks: int, client: Client) -> Any:
        columns = {"X": table()[0]}
        columns |= {"y": table()[target]} if target else {}
        columns |= {"sample_weight": weights()} if is_weighted else {}
        return model.fit(
            **{
                name: da.concatenate([da.from_array(block) for block in cut(column, n_blocks)])
                for name, column in columns.items()
            }
        )

    return fit


def from_sparse(model: Any, n_blocks: int, client: Client) -> Any:
    return model.fit(*(scattered(cut(each, n_blocks), client) for each in (counts(), table()[2])))


def from_sparse_weighted(model: Any, n_blocks: int, client: Client) -> Any:
    return model.fit(*(scattered(cut(each, n_blocks), client) for each in (counts(), table()[2], weights())))


def from_counts(model: Any, n_blocks: int, client: Client) -> Any:
    return model.fit(scattered(cut(counts(), n_blocks), client))


def from_interactions(model: Any, n_blocks: int, client: Client) -> Any:
    matrix = sparse.csr_matrix(counts())
    blocks = scattered([matrix[b::n_blocks] for b in range(n_blocks)], client)
    return model.fit(InteractionBlocks.from_user_blocks(blocks, *matrix.shape, client=client), client=client)


def from_documents(model: Any, n_blocks: int, client: Client) -> Any:
    random = np.random.default_rng(5)
    documents = np.array([" ".join(f"w{word}" for word in random.zipf(1.4, 30) % 500) for _ in range(N_ROWS)])
    return model.fit(scattered([block.tolist() for block in cut(documents, n_blocks)], client))


def flat(value: Any) -> NDArray[Any]:
    """One array of an attribute, also where that is a list of arrays of several shapes."""
    return np.concatenate([np.ravel(part) for part in value]) if isinstance(value, list) else np.array(value)


# A step has micro-batches for four ranks.
STEPS: dict[str, Any] = {"max_iter": 3, "batch_size": 64, "micro_batch_size": 16}
CASES: dict[str, tuple[Any, Fit, list[str]]] = {
    "LinearRegression": (LinearRegression(), from_table(1), ["coef_", "intercept_", "standard_errors_", "r2_"]),
    "Ridge": (Ridge(3.0), from_table(1), ["coef_", "intercept_"]),
    "LogisticRegression": (LogisticRegression(tol=1e-11), from_table(2), ["coef_", "intercept_", "objective_"]),
    "LogisticRegression, sparse": (LogisticRegression(tol=1e-11), from_sparse, ["coef_", "intercept_", "objective_"]),
    "LogisticRegression, weighted": (
        LogisticRegression(tol=1e-11, class_weight="balanced"),
        from_table(2, is_weighted=True),
        ["classes_", "coef_", "intercept_", "objective_"],
    ),
    "LogisticRegression, sparse and weighted": (
        LogisticRegression(tol=1e-11),
        from_sparse_weighted,
        ["coef_", "intercept_", "objective_"],
    ),
    "LinearSVM": (LinearSVM(tol=1e-11), from_table(2), ["coef_", "intercept_", "objective_"]),
    "LinearSVM, sparse": (LinearSVM(tol=1e-11), from_sparse, ["coef_", "intercept_", "objective_"]),
    "LinearSVM, weighted": (
        LinearSVM(tol=1e-11),
        from_table(2, is_weighted=True),
        ["coef_", "intercept_", "objective_"],
    ),
    "LinearSVM, sparse and weighted": (
        LinearSVM(tol=1e-11),
        from_sparse_weighted,
        ["coef_", "intercept_", "objective_"],
    ),
    "MLPClassifier": (MLPClassifier((8, 4), **STEPS), from_table(2), ["coefs_", "intercepts_", "loss_curve_"]),
    "MLPRegressor": (MLPRegressor((8, 4), **STEPS), from_table(1), ["coefs_", "intercepts_", "loss_curve_"]),
    "KMeans": (KMeans(5), from_table(0), ["cluster_centers_", "inertia_", "n_iter_", "history_"]),
    "KMeans, weighted": (
        KMeans(5),
        from_table(0, is_weighted=True),
        ["cluster_centers_", "inertia_", "n_iter_", "history_"],
    ),
    "NMF": (NMF(4, max_iter=60), from_counts, ["components_", "reconstruction_err_", "n_iter_"]),
    "ExplicitALS": (ExplicitALS(6), from_interactions, ["user_factors_", "item_factors_", "mean_", "objective_"]),
    "ImplicitALS": (ImplicitALS(6), from_interactions, ["user_factors_", "item_factors_", "objective_"]),
    "TfidfVectorizer": (TfidfVectorizer(), from_documents, ["idf_", "document_frequency_", "n_documents_"]),
    "TfidfVectorizer, hashed": (TfidfVectorizer("hashed", n_hashed=256), from_documents, ["idf_", "n_documents_"]),
}


@pytest.fixture(scope="module", params=[1, 2, 4], ids=lambda n: f"{n} workers")
def client(request: pytest.FixtureRequest) -> Iterator[Client]:
    with threads(request.param) as client:
        yield client


_found: dict[str, dict[str, Any]] = {}


@pytest.mark.parametrize("n_blocks", N_BLOCKS, ids=lambda n: f"{n} blocks")
@pytest.mark.parametrize("name", CASES)
def test_the_result_does_not_depend_on_blocks_and_workers(
    name: str, n_blocks: int, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(als, "_SMALL", 0)  # else one worker alone would do it
    model, fit, attributes = CASES[name]
    fitted = fit(clone(model), n_blocks, client)
    found = {attribute: flat(getattr(fitted, attribute)) for attribute in attributes}
    # The first combination that ran is what all others are compared with.
    for attribute, expected in _found.setdefault(name, found).items():
        scale = max(float(np.abs(expected).max()), 1e-300)
        np.testing.assert_allclose(found[attribute] / scale, expected / scale, rtol=0, atol=1e-9, err_msg=attribute)
