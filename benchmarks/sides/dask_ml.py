"""The cases as dask-ml does them, on two workers of one thread."""

from __future__ import annotations

from pathlib import Path

import dask.array as da
import numpy as np
from dask_ml.cluster import KMeans
from dask_ml.linear_model import LinearRegression
from distributed import Client, LocalCluster, wait

from benchmarks.sides.serve import Work, serve


def kmeans(folder: Path) -> Work:
    start = np.load(folder / "start.npy")
    rows = _on_workers(folder / "rows.npy")
    model = KMeans(len(start), init=start, max_iter=10, tol=0)
    return lambda: model.fit(rows), lambda fit: {
        "labels": np.asarray(fit.labels_),
        "inertia": float(fit.inertia_),
        "n_iter": fit.n_iter_,
    }


def linear_regression(folder: Path) -> Work:
    rows, target = _on_workers(folder / "rows.npy"), _on_workers(folder / "target.npy")
    return lambda: LinearRegression().fit(rows, target), lambda fit: {"coef": fit.coef_, "intercept": fit.intercept_}


def _on_workers(file: Path) -> da.Array:
    array = np.load(file)
    blocks = da.from_array(array, chunks=(len(array) // 8, *array.shape[1:])).persist()
    wait(blocks)
    return blocks


if __name__ == "__main__":
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster):
        serve([kmeans, linear_regression], ["dask-ml", "dask", "scikit-learn"])
