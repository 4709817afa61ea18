"""Do weights of rows mean what they mean in scikit-learn: so many copies of the row, and none for a weight of 0?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from distributed import Client
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import logsumexp
from sklearn import cluster
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression as LogisticOracle
from sklearn.svm import LinearSVC
from sklearn.utils.class_weight import compute_class_weight

from jobs.estimators import KMeans, LinearRegression, LinearSVM, LogisticRegression
from jobs.estimators import kmeans_start as start
from jobs.estimators.blocks import InProcess
from jobs.estimators.kmeans_kernels import Near

Array = NDArray[np.float64]
CLASSIFIERS = [LogisticRegression(tol=1e-11), LinearSVM(tol=1e-11)]
ESTIMATORS = [*CLASSIFIERS, KMeans(3, n_init=2)]
KINDS: dict[str, Callable[[Array], Any]] = {"dense": np.asarray, "sparse": sparse.csr_array}


def name_of(value: Any) -> str:
    return value if isinstance(value, str) else type(value).__name__


def table(n_classes: int = 3, n: int = 150, p: int = 12) -> tuple[Array, NDArray[Any], Array]:
    """Rows of overlapping classes, their classes' names, and weights of which some are 0."""
    random = np.random.default_rng(n_classes)
    y = random.integers(0, n_classes, n)
    rows = random.standard_normal((n_classes, p))[y] + 2 * random.standard_normal((n, p))
    return rows, np.asarray([f"class {number}" for number in y]), random.gamma(0.7, size=n) * (random.random(n) < 0.8)


def learned(model: Any) -> Array:
    names = [name for name in ("coef_", "intercept_", "cluster_centers_") if hasattr(model, name)]
    return np.hstack([np.ravel(getattr(model, name)) for name in names])


def copies(weights: Array, *columns: NDArray[Any]) -> list[Any]:
    return [np.repeat(column, weights.astype(int), axis=0) for column in columns]


# --- linear classifiers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("class_weight", [None, "balanced", {"class 0": 3.0}], ids=["uniform", "balanced", "mapping"])
def test_weighted_logistic_regression_is_that_of_scikit_learn(kind: str, n_classes: int, class_weight: Any) -> None:
    X, y, weights = table(n_classes)
    options: dict[str, Any] = {"C": 0.7, "class_weight": class_weight}
    ours = LogisticRegression(tol=1e-10, **options).fit(KINDS[kind](X), y, weights)
    theirs = LogisticOracle(solver="newton-cg", tol=1e-12, max_iter=10_000, **options).fit(X, y, weights)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-6)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_the_weighted_linear_svm_is_that_of_scikit_learn(kind: str, n_classes: int, class_weight: Any) -> None:
    X, y, weights = table(n_classes)
    ours = LinearSVM(C=0.3, tol=1e-10, class_weight=class_weight).fit(KINDS[kind](X), y, weights)
    # LinearSVC's own class weights hold for the class against the rest, not for its rows in the other problems.
    of_class = compute_class_weight(class_weight, classes=np.unique(y), y=y, sample_weight=weights)
    of_row = weights * of_class[np.searchsorted(np.unique(y), y)]
    theirs = LinearSVC(C=0.3, tol=1e-10, max_iter=100_000, random_state=0).fit(X, y, of_row)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-6)
    np.testing.assert_allclose(ours.intercept_, theirs.intercept_, atol=1e-6)


def test_the_weighted_objective_is_what_it_says() -> None:
    X, y, weights = table()
    model = LogisticRegression(C=2.0).fit(X, y, weights)
    scores = model.decision_function(X)
    losses = logsumexp(scores, axis=1) - scores[np.arange(len(y)), np.searchsorted(model.classes_, y)]
    assert model.objective_ == pytest.approx(0.5 * np.sum(model.coef_**2) + 2.0 * weights @ losses, rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("class_weight", [None, "balanced"])
@pytest.mark.parametrize("estimator", CLASSIFIERS, ids=name_of)
def test_a_weight_counts_like_copies_of_the_row_and_a_class_of_weight_0_is_none(
    estimator: Any, class_weight: Any, kind: str
) -> None:
    X, y, _ = table()
    weights = np.random.default_rng(0).integers(0, 4, len(X)).astype(float)
    y[:6] = np.repeat(["a class before all others", "the class behind all others"], 3)
    weights[:6] = 0
    estimator = clone(estimator).set_params(class_weight=class_weight)
    weighted = clone(estimator).fit(KINDS[kind](X), y, weights)
    X, y = copies(weights, X, y)
    repeated = clone(estimator).fit(KINDS[kind](X), y)
    assert weighted.classes_.tolist() == repeated.classes_.tolist() == ["class 0", "class 1", "class 2"]
    np.testing.assert_allclose(learned(weighted), learned(repeated), rtol=1e-8, atol=1e-8)
    assert weighted.objective_ == pytest.approx(repeated.objective_, rel=1e-12)


def test_a_single_class_of_weight_above_zero_is_refused() -> None:
    X, y, _ = table()
    with pytest.raises(ValueError, match="1 class in all rows"):
        LinearSVM().fit(X, y, y == "class 1")


def test_weights_must_be_cut_as_rows_are() -> None:
    X, y, weights = table()
    blocks, classes = np.split(X, [40]), np.split(y, [40])
    with pytest.raises(ValueError, match="sample_weight: 1 blocks for 2 of X; cut both alike"):
        LogisticRegression().fit(blocks, classes, weights)
    with pytest.raises(ValueError, match=r"sample_weight has the shape \(50,\) for 40 rows; give one weight a row"):
        LogisticRegression().fit(blocks, classes, np.split(weights, [50]))


# --- k-means ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> tuple[Array, Array]:
    """Rows, and weights that favour some kinds of rows, so that other centres are best than without."""
    X = np.asarray(load_digits().data, dtype=np.float64)
    weights = np.random.default_rng(1).gamma(0.5, size=len(X)) * np.where(X[:, 20] > 8, 5.0, 0.2)
    return X, np.where(np.arange(len(X)) % 5, weights, 0.0)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_weights_of_integers_are_repeated_rows_to_k_means(digits: tuple[Array, Array], dtype: type) -> None:
    X, weights = digits[0].astype(dtype), np.random.default_rng(2).integers(0, 5, len(digits[0])).astype(float)
    model = KMeans(10, init=digits[0][:10], tol=1e-3)
    weighted, repeated = clone(model).fit(X, sample_weight=weights), clone(model).fit(*copies(weights, X))
    assert weighted.n_iter_ == repeated.n_iter_ > 3
    np.testing.assert_allclose(weighted.cluster_centers_, repeated.cluster_centers_, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(weighted.history_, repeated.history_, rtol=1e-9)
    assert weighted.inertia_ == pytest.approx(repeated.inertia_, rel=1e-9)


def test_the_weighted_inertia_is_within_one_percent_of_scikit_learns_best_of_ten(digits: tuple[Array, Array]) -> None:
    X, weights = digits
    ours = KMeans(10, n_init=5).fit(X, sample_weight=weights)
    theirs = cluster.KMeans(10, n_init=10, random_state=0).fit(X, sample_weight=weights)
    assert ours.inertia_ <= 1.01 * theirs.inertia_
    gaps = X - ours.cluster_centers_[ours.predict(X)]
    assert ours.inertia_ == pytest.approx(weights @ (gaps**2).sum(axis=1), rel=1e-12)
    others = KMeans(10, n_init=5).fit(X)  # without the weights, other centres are found
    gaps = X - others.cluster_centers_[others.labels_]
    assert weights @ (gaps**2).sum(axis=1) > 1.02 * ours.inertia_
    np.testing.assert_array_equal(KMeans(10, n_init=5).fit_predict(X, sample_weight=weights), ours.labels_)


def test_an_iteration_that_moves_empty_clusters_is_scikit_learns(digits: tuple[Array, Array]) -> None:
    X, weights = digits[0], digits[1] + 0.1
    centres = np.vstack([X[:7], [[1e4] * 64, [2e4] * 64]])
    ours = KMeans(9, init=centres, max_iter=1).fit(X, sample_weight=weights)
    theirs = cluster.KMeans(9, init=centres, n_init=1, max_iter=1).fit(X, sample_weight=weights)
    np.testing.assert_allclose(ours.cluster_centers_, theirs.cluster_centers_, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("init", ["k-means||", "far"])
@pytest.mark.parametrize("n_blocks", [1, 4])
def test_rows_of_weight_0_are_never_a_start_nor_what_an_empty_cluster_is_moved_to(
    digits: tuple[Array, Array], init: str, n_blocks: int, client: Client
) -> None:
    X = digits[0]
    # Behind all others, so that these keep their numbers; so far away that any centre would be drawn to them.
    padded = np.vstack([X, 1e3 * np.ones((40, 64)) * np.arange(1, 41)[:, None]])
    weights = np.append(np.ones(len(X)), np.zeros(40))
    model = KMeans(10, n_init=2, init=init if init != "far" else np.vstack([X[:8], np.full((2, 64), 1e4)]))
    expected = clone(model).fit(X)
    if n_blocks > 1:
        size = -(-len(padded) // n_blocks)
        padded, weights = da.from_array(padded, chunks=(size, 64)), da.from_array(weights, chunks=500)
    found = clone(model).fit(padded, sample_weight=weights)
    np.testing.assert_allclose(found.cluster_centers_, expected.cluster_centers_, rtol=1e-9, atol=1e-9)
    assert found.inertia_ == pytest.approx(expected.inertia_, rel=1e-9)
    assert found.n_iter_ == expected.n_iter_


def test_a_cluster_whose_rows_all_move_stays_where_it_is() -> None:
    # 0.1 + 0.2 − 0.2 − 0.1 is 2.8e-17: what is left of the second cluster is rounding.
    X, weights = np.array([[0.0], [10.0], [12.0]]), np.array([1.0, 0.1, 0.2])
    X, weights = np.vstack([X, [[0.0]]]), np.append(weights, 1.0)
    model = KMeans(4, init=[[0.0], [9.0], [1e6], [2e6]], max_iter=1).fit(X, sample_weight=weights)
    np.testing.assert_allclose(np.sort(model.cluster_centers_.ravel()), [0.0, 9.0, 10.0, 12.0], atol=1e-12)


def test_clusters_that_weigh_less_than_one_have_the_mean_of_their_rows_as_centre(digits: tuple[Array, Array]) -> None:
    X, weights = digits
    one, tiny = (KMeans(10, init=X[:10]).fit(X, sample_weight=scale * weights) for scale in (1.0, 2.0**-30))
    np.testing.assert_array_equal(tiny.cluster_centers_, one.cluster_centers_)
    assert tiny.inertia_ == one.inertia_ * 2.0**-30


def test_equal_weights_draw_the_start_that_no_weights_draw(digits: tuple[Array, Array]) -> None:
    X = digits[0]
    without = start.start_centres(InProcess(), [[X]], [[0]], 10, [3, 4])
    for weight in (1.0, 0.25):
        equal = start.start_centres(InProcess(), [[X]], [[0]], 10, [3, 4], [[np.full(len(X), weight)]])
        np.testing.assert_allclose(equal, without, rtol=1e-12, atol=1e-12)


def test_the_first_row_of_a_start_is_drawn_in_proportion_to_its_weight() -> None:
    weights, n = np.array([1.0, 0.0, 2.0, 3.0, 4.0]), 4000
    blocks = np.split(np.arange(5.0)[:, None], [2, 3])
    found = start._first(blocks, [0, 2, 3], np.split(weights, [2, 3]), seeds=range(n))
    counts = np.bincount([int(each.rows[0, 0]) for each in found], minlength=5)
    shares = weights / weights.sum()
    assert counts[1] == 0
    assert (np.abs(counts - n * shares) <= 4 * np.sqrt(n * shares * (1 - shares))).all()


def test_candidates_are_drawn_in_proportion_to_weight_and_squared_distance() -> None:
    n = 40_000
    weights = np.repeat([0.0, 1.0, 3.0, 1.0], n)
    near = Near(np.repeat([9.0, 1.0, 1.0, 4.0], n), np.zeros(4 * n, np.int32))
    rows = np.repeat(np.arange(4.0), n)[:, None]
    (found,) = start._drawn([rows], [0], [[near]], [weights], seeds=[5], draw=1, factors=np.array([0.1]))
    counts, expected = np.bincount(found.rows[:, 0].astype(int), minlength=4), 0.1 * n * np.array([0, 1, 3, 4])
    assert counts[0] == 0
    assert (np.abs(counts - expected) <= 4 * np.sqrt(expected)).all()


@pytest.mark.parametrize("is_dask", [False, True])
def test_fewer_rows_of_a_weight_above_zero_than_clusters_are_refused(is_dask: bool, client: Client) -> None:
    X, weights = np.eye(4), np.array([1.0, 0.0, 2.0, 0.0])
    columns = [da.from_array(each) for each in (X, weights)] if is_dask else [X, weights]
    with pytest.raises(ValueError, match=r"n_samples=2 \(of a weight above zero\) should be >= n_clusters=3"):
        KMeans(3).fit(columns[0], sample_weight=columns[1])


# --- all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=name_of)
def test_weights_may_come_in_all_containers(estimator: Any, client: Client) -> None:
    X, names, weights = table()
    y = np.searchsorted(np.unique(names), names)  # Dask warns where a data frame's column is text
    expected = clone(estimator).fit(X, y, sample_weight=weights)
    frame = pd.DataFrame({"y": y, "weight": weights}).join(pd.DataFrame(X).add_prefix("x"))
    rows = [f"x{column}" for column in range(X.shape[1])]
    dask_frame = dd.from_pandas(frame, npartitions=3)
    lazy = [da.from_array(each, chunks=60) for each in (X, y, weights)]
    inputs: list[tuple[Any, Any, Any]] = [
        (X.tolist(), y.tolist(), weights.tolist()),
        (frame[rows], frame.y, frame.weight),
        (X, y, pd.Series(weights, index=range(7, 157))),
        (lazy[0], lazy[1], lazy[2]),
        (lazy[0], lazy[1], weights),
        (X, y, lazy[2]),
        (dask_frame[rows], dask_frame.y, dask_frame.weight),
    ]
    if estimator in CLASSIFIERS:
        blocks = [np.split(each, [20, 90]) for each in (X, y, weights)]
        series = [pd.Series(block) for block in blocks[2]]
        inputs += [tuple(blocks), tuple(client.scatter(each) for each in blocks), (blocks[0], blocks[1], series)]
    for number, (given, classes, given_weights) in enumerate(inputs):
        found = clone(estimator).fit(given, classes, sample_weight=given_weights)
        np.testing.assert_allclose(
            learned(found), learned(expected), rtol=1e-9, atol=1e-9, err_msg=f"container {number}"
        )


WRONG = {"negative": (-0.5, "negative value, -0.5"), "missing": (np.nan, "NaN"), "infinite": (np.inf, "infinity")}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("estimator", [*ESTIMATORS, LinearRegression()], ids=name_of)
def test_wrong_weights_are_refused_in_one_line(estimator: Any, wrong: str, client: Client) -> None:
    X, y, weights = table()
    y = np.searchsorted(np.unique(y), y)
    weights[77], message = WRONG[wrong]
    inputs: list[Any] = [(X, y, weights), tuple(da.from_array(each, chunks=40) for each in (X, y, weights))]
    if estimator in CLASSIFIERS:
        inputs.append([np.split(each, [20, 90]) for each in (X, y, weights)])
    for given, classes, given_weights in inputs:
        with pytest.raises(ValueError, match=f"sample_weight.*{message}") as caught:
            clone(estimator).fit(given, classes, sample_weight=given_weights)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=name_of)
def test_weights_of_zero_alone_are_refused(estimator: Any, client: Client) -> None:
    X, y, weights = table()
    for columns in ((X, y, 0 * weights), tuple(da.from_array(each, chunks=40) for each in (X, y, 0 * weights))):
        with pytest.raises(ValueError, match="zero"):
            clone(estimator).fit(columns[0], columns[1], sample_weight=columns[2])
