"""The cases as scikit-learn does them, on arrays in its memory."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.linear_model import LinearRegression, LogisticRegression

from benchmarks.sides.serve import Work, serve

# Ten iterations are what was asked for.
warnings.simplefilter("ignore", ConvergenceWarning)


def kmeans(folder: Path) -> Work:
    rows, start = np.load(folder / "rows.npy"), np.load(folder / "start.npy")
    model = KMeans(len(start), init=start, n_init=1, max_iter=10, tol=0)
    return lambda: model.fit(rows), lambda fit: {"labels": fit.labels_, "inertia": fit.inertia_, "n_iter": fit.n_iter_}


def kmeans_own_start(folder: Path) -> Work:
    rows = np.load(folder / "rows.npy")
    model = KMeans(16, n_init=10, random_state=0)
    return lambda: model.fit(rows), lambda fit: {"inertia": fit.inertia_}


def linear_regression(folder: Path) -> Work:
    rows, target = np.load(folder / "rows.npy"), np.load(folder / "target.npy")
    return lambda: LinearRegression().fit(rows, target), lambda fit: {"coef": fit.coef_, "intercept": fit.intercept_}


def logistic_regression(folder: Path, tol: float) -> Work:
    is_sparse = (folder / "rows.npz").exists()
    rows: Any = sparse.load_npz(folder / "rows.npz") if is_sparse else np.load(folder / "rows.npy")
    target = np.load(folder / "target.npy")
    model = LogisticRegression(tol=tol, max_iter=10_000)
    return lambda: model.fit(rows, target), lambda fit: {"coef": fit.coef_, "intercept": fit.intercept_}


def tfidf(folder: Path) -> Work:
    documents = json.loads((folder / "documents.json").read_text())
    hashing = HashingVectorizer(n_features=2**18, alternate_sign=False, norm=None)
    return lambda: TfidfTransformer().fit_transform(hashing.transform(documents)), lambda found: {
        "n_stored": found.nnz,
        "sums": np.asarray(found.sum(axis=1)).ravel(),
    }


if __name__ == "__main__":
    serve([kmeans, kmeans_own_start, linear_regression, logistic_regression, tfidf], ["scikit-learn", "numpy", "scipy"])
