"""k-means finds what scikit-learn finds, and the same whatever the blocks."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
from distributed import Client
from numpy.typing import NDArray
from sklearn import cluster
from sklearn.datasets import load_digits, make_blobs

from jobs.estimators import kmeans_kernels as kernels
from jobs.estimators.kmeans import KMeans

Array = NDArray[np.float64]


@pytest.fixture(scope="module")
def digits() -> Array:
    return np.asarray(load_digits().data, dtype=np.float64)


def test_the_inertia_is_within_one_percent_of_scikit_learns_best_of_ten(digits: Array) -> None:
    ours = KMeans(10, n_init=5).fit(digits)
    theirs = cluster.KMeans(10, n_init=10, random_state=0).fit(digits)
    assert ours.inertia_ <= 1.01 * theirs.inertia_


def test_the_inertia_is_the_sum_of_squared_distances_to_the_assigned_centres(digits: Array) -> None:
    model = KMeans(10, n_init=1).fit(digits)
    gaps = digits - model.cluster_centers_[model.predict(digits)]
    assert model.inertia_ == pytest.approx((gaps**2).sum(), rel=1e-12)
    assert model.transform(digits).min(axis=1) == pytest.approx(np.sqrt((gaps**2).sum(axis=1)), abs=1e-6)


def test_one_iteration_from_the_same_centres_is_scikit_learns(digits: Array) -> None:
    start = digits[:10]
    found = kernels.assigned(digits, start)
    theirs = cluster.KMeans(10, init=start, n_init=1, max_iter=1).fit(digits)
    np.testing.assert_allclose(found.sums / found.counts[:, None], theirs.cluster_centers_, rtol=1e-9, atol=1e-12)


def test_the_inertia_never_rises(digits: Array) -> None:
    history = KMeans(10, n_init=1, tol=0).fit(digits).history_
    assert len(history) > 3
    assert all(after <= before * (1 + 1e-12) for before, after in zip(history, history[1:], strict=False))


@pytest.mark.parametrize("n_blocks", [2, 4, 16])
def test_the_result_does_not_depend_on_the_blocks(digits: Array, n_blocks: int, client: Client) -> None:
    one = KMeans(10, n_init=2).fit(digits)
    many = KMeans(10, n_init=2).fit(da.from_array(digits, chunks=(-(-len(digits) // n_blocks), 64)))
    np.testing.assert_allclose(many.cluster_centers_, one.cluster_centers_, rtol=1e-9, atol=1e-9)
    assert many.inertia_ == pytest.approx(one.inertia_, rel=1e-9)
    labels = many.predict(da.from_array(digits, chunks=(500, 64))).compute()
    np.testing.assert_array_equal(labels, one.predict(digits))


def test_separate_blobs_are_found_exactly() -> None:
    X, truth = make_blobs(600, centers=6, cluster_std=0.05, center_box=(-20, 20), random_state=1)
    labels = KMeans(6, n_init=2).fit(X).predict(X)
    assert len(set(zip(labels.tolist(), truth.tolist(), strict=True))) == 6


def test_float32_rows_give_nearly_the_same_centres(digits: Array) -> None:
    one = KMeans(10, n_init=1).fit(digits)
    other = KMeans(10, n_init=1).fit(digits.astype(np.float32))
    assert other.inertia_ == pytest.approx(one.inertia_, rel=1e-2)


def test_an_empty_cluster_takes_the_farthest_row() -> None:
    X = np.array([[0.0], [0.1], [0.2], [10.0], [10.1], [50.0]])
    from jobs.estimators.dense_blocks import dense_blocks
    from jobs.estimators.kmeans import _lloyd
    from jobs.estimators.sparse_blocks import runner

    blocks = dense_blocks(X)
    start = np.array([[0.1], [10.0], [1e6]])
    fit = _lloyd(blocks, runner(blocks.rows), start, 20, 0.0)
    np.testing.assert_allclose(np.sort(fit.centres.ravel()), [0.1, 10.05, 50.0])


def test_fewer_distinct_rows_than_clusters_is_no_error() -> None:
    X = np.repeat([[1.0, 2.0], [3.0, 4.0]], 5, axis=0)
    model = KMeans(4).fit(X)
    assert model.inertia_ == 0
    assert np.isfinite(model.cluster_centers_).all()


def test_fewer_rows_than_clusters_and_missing_values_are_refused() -> None:
    with pytest.raises(ValueError, match="n_samples=3 should be >= n_clusters=4"):
        KMeans(4).fit(np.ones((3, 2)))
    with pytest.raises(ValueError, match="NaN or infinity"):
        KMeans(2).fit(np.array([[1.0], [np.nan], [2.0]]))
