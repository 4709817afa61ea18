"""k-means finds what scikit-learn finds, and the same whatever the blocks."""

from __future__ import annotations

from itertools import pairwise

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from distributed import Client
from numpy.typing import NDArray
from sklearn import cluster
from sklearn.base import clone
from sklearn.datasets import load_digits, make_blobs
from sklearn.exceptions import NotFittedError

from jobs.estimators import kmeans_kernels as kernels
from jobs.estimators.blocks import InProcess
from jobs.estimators.inputs import checked_blocks
from jobs.estimators.kmeans import KMeans, _lloyd, _Table
from jobs.estimators.kmeans_start import start_centres
from tests.threads import threads

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
    found = kernels.assigned([digits[:500], digits[500:]], np.stack([digits[10:20], start]))
    theirs = cluster.KMeans(10, init=start, n_init=1, max_iter=1).fit(digits)
    np.testing.assert_allclose(found.sums[1] / found.counts[1][:, None], theirs.cluster_centers_, rtol=1e-9, atol=1e-12)


def test_the_inertia_never_rises(digits: Array) -> None:
    history = KMeans(10, n_init=1, tol=0).fit(digits).history_
    assert len(history) > 3
    assert all(after <= before * (1 + 1e-12) for before, after in pairwise(history))


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


@pytest.mark.parametrize("n_workers", [1, 4])
def test_the_result_does_not_depend_on_the_number_of_workers(digits: Array, n_workers: int) -> None:
    one = KMeans(10, n_init=2).fit(digits)
    with threads(n_workers) as client:
        rows = client.persist(da.from_array(digits, chunks=(150, 64)))
        many = KMeans(10, n_init=2).fit(rows)
    np.testing.assert_allclose(many.cluster_centers_, one.cluster_centers_, rtol=1e-9, atol=1e-9)
    assert many.inertia_ == pytest.approx(one.inertia_, rel=1e-9)


def test_partitions_without_rows_change_nothing(digits: Array, client: Client) -> None:
    rows = da.concatenate([da.from_array(digits[:0]), da.from_array(digits[:900]), da.from_array(digits[900:])])
    many = KMeans(10, n_init=1).fit(rows)
    np.testing.assert_allclose(many.cluster_centers_, KMeans(10, n_init=1).fit(digits).cluster_centers_, rtol=1e-9)


def test_integers_and_dataframes_are_taken_as_floats(digits: Array, client: Client) -> None:
    one = KMeans(10, n_init=1).fit(digits)
    integers = digits.astype(np.int64)
    frame = dd.from_pandas(pd.DataFrame(integers).assign(extra=0.5), npartitions=3)
    for X in (integers, da.from_array(integers, chunks=(700, 64)), frame.drop(columns="extra")):
        assert KMeans(10, n_init=1).fit(X).inertia_ == pytest.approx(one.inertia_, rel=1e-9)
        assert np.array_equal(np.asarray(one.predict(X)), one.predict(digits))


@pytest.mark.parametrize(("dtype", "offset"), [(np.float32, 2.0**12), (np.float64, 2.0**40)])
def test_rows_far_from_the_origin_are_told_apart(dtype: type, offset: float) -> None:
    # Multiples of 1/64 within ±8: they and their sums with the offset are exact.
    near = np.round(make_blobs(900, centers=4, center_box=(-6, 6), random_state=2)[0] * 64) / 64
    far = (near + offset).astype(dtype)
    start = near[::225]
    np.testing.assert_array_equal(kernels.nearest(far, start + offset), kernels.nearest(near, start))
    gaps = np.linalg.norm(near[:, None] - start, axis=2)
    np.testing.assert_allclose(kernels.distances(far, start + offset), gaps, rtol=1e-12)
    assert KMeans(4).fit(far).inertia_ == pytest.approx(KMeans(4).fit(near).inertia_, rel=1e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_nearest_centre_of_a_row_does_not_depend_on_the_rows_beside_it(dtype: type) -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(-3, 4, size=(1500, 5)).astype(dtype)  # full of rows halfway between two centres
    centres = rng.integers(-3, 4, size=(12, 5)) + rng.integers(0, 2, size=(12, 5)) * 1e-7
    squares = ((rows.astype(np.float64)[:, None] - centres) ** 2).sum(axis=2)
    labels = kernels.nearest(rows, centres)
    np.testing.assert_array_equal(squares[np.arange(1500), labels], squares.min(axis=1))
    for size in (1, 7, 1023):
        cut = [kernels.nearest(rows[start : start + size], centres) for start in range(0, 1500, size)]
        np.testing.assert_array_equal(np.concatenate(cut), labels)


@pytest.mark.parametrize("scale", [1e-120, 1e-25, 1.0, 1e25, 1e100])
@pytest.mark.parametrize("outlier", [0.0, 1e30, 1e45])
def test_scores_in_single_precision_choose_as_distances_in_double_would(scale: float, outlier: float) -> None:
    rng = np.random.default_rng(1)
    rows, centres = rng.normal(size=(3000, 7)), rng.normal(size=(20, 7))
    # Pairs of centres that single precision takes for one, and rows between them.
    centres[10:] = centres[:10] * (1 + 1e-9 * rng.normal(size=(10, 7)))
    rows[:1000] = centres[rng.integers(0, 20, 1000)]
    rows[::100] += outlier
    squares = ((rows[:, None] - centres) ** 2).sum(axis=2)
    labels = kernels.nearest(rows * scale, centres * scale)
    np.testing.assert_allclose(squares[np.arange(len(rows)), labels], squares.min(axis=1), rtol=1e-13, atol=1e-28)
    np.testing.assert_array_equal(labels[:1000], squares[:1000].argmin(axis=1))


def test_moments_of_a_block_are_those_of_its_columns() -> None:
    rng = np.random.default_rng(2)
    rows = rng.normal(1e6, 1, size=(5000, 3))
    rows[0] = 1e9  # the first row is no place to look from
    weights = rng.integers(0, 3, 5000).astype(float)
    for given in (None, weights):
        used = np.ones(5000) if given is None else given
        found = kernels.moments(rows, given)
        means = np.average(rows, axis=0, weights=used)
        assert (found.n, found.weight) == (np.count_nonzero(used), used.sum())
        np.testing.assert_allclose(found.means, means, rtol=1e-12)
        np.testing.assert_allclose(found.products, (used[:, None] * (rows - means) ** 2).sum(axis=0), rtol=1e-9)
    assert kernels.moments(rows[:0], None).n == 0


def test_an_empty_cluster_takes_the_farthest_row() -> None:
    X = np.array([[0.0], [0.1], [0.2], [10.0], [10.1], [50.0]])
    table = _Table(checked_blocks(KMeans(), X))
    starts = np.array([[[0.1], [10.0], [1e6]], [[0.1], [10.0], [50.0]]])
    for fit in _lloyd(table, starts, 20, 0.0):
        np.testing.assert_allclose(np.sort(fit.centres.ravel()), [0.1, 10.05, 50.0])


def test_a_start_draws_the_same_rows_whatever_the_blocks(digits: Array) -> None:
    def start(cuts: list[int]) -> Array:
        rows = [np.split(digits, cuts)]
        return start_centres(InProcess(), rows, [[0, *cuts]], 10, [3, 4])

    whole = start([])
    assert whole.shape == (2, 10, 64)
    assert not np.array_equal(whole[0], whole[1])
    np.testing.assert_allclose(start([1, 77, 1000]), whole, rtol=1e-12, atol=1e-12)


def test_a_start_is_far_better_than_rows_at_random(digits: Array) -> None:
    starts = start_centres(InProcess(), [[digits]], [[0]], 10, range(5))
    at_random = np.stack([digits[np.random.default_rng(seed).permutation(len(digits))[:10]] for seed in range(5)])
    ours, theirs = (kernels.assigned([digits], centres).inertias for centres in (starts, at_random))
    assert ours.max() < 0.75 * theirs.min()


def test_it_is_an_estimator_of_scikit_learn(digits: Array) -> None:
    model = KMeans(3, n_init=1, random_state=7)
    copy = clone(model)
    assert copy.get_params() == model.get_params()
    assert not hasattr(model, "cluster_centers_")
    np.testing.assert_array_equal(copy.fit_predict(digits), model.fit(digits).predict(digits))
    with pytest.raises(NotFittedError):
        clone(model).predict(digits)


def test_fewer_distinct_rows_than_clusters_is_no_error() -> None:
    X = np.repeat([[1.0, 2.0], [3.0, 4.0]], 5, axis=0)
    model = KMeans(4).fit(X)
    assert model.inertia_ == 0
    assert np.isfinite(model.cluster_centers_).all()


def test_fewer_rows_than_clusters_and_missing_values_are_refused() -> None:
    with pytest.raises(ValueError, match="n_samples=3 should be >= n_clusters=4"):
        KMeans(4).fit(np.ones((3, 2)))
    with pytest.raises(ValueError, match="n_init=0 should be at least 1"):
        KMeans(2, n_init=0).fit(np.ones((3, 2)))
    with pytest.raises(ValueError, match="X has 1 features, but KMeans is expecting 2"):
        KMeans(2).fit(np.eye(2)).predict(np.ones((3, 1)))
    with pytest.raises(ValueError, match="Input X contains NaN"):
        KMeans(2).fit(np.array([[1.0], [np.nan], [2.0]]))


def test_from_the_same_start_it_is_scikit_learns() -> None:
    rng = np.random.default_rng(3)
    X = rng.normal(size=(3000, 5)) + 4 * rng.integers(0, 4, (3000, 1))
    start = X[rng.choice(len(X), 6, replace=False)]
    ours = KMeans(6, init=start, max_iter=7, tol=0.0).fit(X)
    theirs = cluster.KMeans(6, init=start, n_init=1, max_iter=7, tol=0.0).fit(X)
    np.testing.assert_allclose(ours.cluster_centers_, theirs.cluster_centers_, rtol=1e-9, atol=1e-9)
    assert ours.inertia_ == pytest.approx(theirs.inertia_, rel=1e-9)
    assert (ours.labels_ == theirs.labels_).all()
    with pytest.raises(ValueError, match=r"init has the shape \(6, 4\), not the \(6, 5\)"):
        KMeans(6, init=start[:, :4]).fit(X)
    with pytest.raises(ValueError, match="init='random' should be"):
        KMeans(6, init="random").fit(X)
