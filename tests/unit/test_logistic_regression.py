from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import logsumexp
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression as LogisticOracle
from sklearn.svm import LinearSVC

from jobs.estimators.linear_classifier import LinearClassifier
from jobs.estimators.linear_svm import LinearSVM
from jobs.estimators.logistic_regression import LogisticRegression
from tests.threads import threads

KINDS: list[type[LinearClassifier]] = [LinearSVM, LogisticRegression]


def rows(n_classes: int, n: int = 120, n_features: int = 40) -> tuple[sparse.csr_array, NDArray[Any]]:
    random = np.random.default_rng(n_classes)
    y = random.integers(0, n_classes, n)
    centres = random.standard_normal((n_classes, n_features))
    x = (centres[y] + 2 * random.standard_normal((n, n_features))) * (random.random((n, n_features)) < 0.3)
    return sparse.csr_array(x), np.asarray([f"class {number}" for number in y])


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_logistic_regression_is_that_of_scikit_learn(n_classes: int, fit_intercept: bool, class_weight: Any) -> None:
    x, y = rows(n_classes)
    options: dict[str, Any] = {"C": 0.7, "fit_intercept": fit_intercept, "class_weight": class_weight}
    ours = LogisticRegression(tol=1e-10, **options).fit(x, y)
    theirs = LogisticOracle(solver="newton-cg", tol=1e-12, max_iter=10_000, **options).fit(x, y)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-6)
    if n_classes == 2:  # with more, a constant added to all intercepts changes nothing
        np.testing.assert_allclose(ours.intercept_, theirs.intercept_, atol=1e-6)
    np.testing.assert_allclose(ours.predict_proba(x), theirs.predict_proba(x), atol=1e-6)
    assert (ours.predict(x) == theirs.predict(x)).all()


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_linear_svm_is_that_of_scikit_learn(n_classes: int, fit_intercept: bool, weight: float) -> None:
    x, y = rows(n_classes)
    options: dict[str, Any] = {"C": 0.3, "fit_intercept": fit_intercept}
    ours = LinearSVM(tol=1e-10, class_weight={"class 0": weight}, **options).fit(x, y)
    # LinearSVC's own class weights hold for the class against the rest, not for its rows in the other problems.
    of_row = np.where(y == "class 0", weight, 1.0)
    oracle = LinearSVC(tol=1e-10, max_iter=100_000, random_state=0, **options)
    theirs = oracle.fit(sparse.csr_matrix(x), y, sample_weight=of_row)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-6)
    np.testing.assert_allclose(ours.intercept_, theirs.intercept_, atol=1e-6)
    np.testing.assert_allclose(ours.decision_function(x), theirs.decision_function(x), atol=1e-5)
    assert (ours.predict(x) == theirs.predict(x)).all()


def test_the_objective_is_what_it_says() -> None:
    x, y = rows(3)
    model = LogisticRegression(C=2.0).fit(x, y)
    scores = model.decision_function(x)
    own = scores[np.arange(len(y)), np.searchsorted(model.classes_, y)]
    expected = 0.5 * np.sum(model.coef_**2) + 2.0 * np.sum(logsumexp(scores, axis=1) - own)
    assert model.objective_ == pytest.approx(expected, rel=1e-12)
    svm = LinearSVM(C=2.0).fit(x, y)
    signs = np.where(y[:, None] == svm.classes_, 1, -1)
    hinge = np.maximum(0, 1 - signs * svm.decision_function(x))
    expected = 0.5 * (np.sum(svm.coef_**2) + np.sum(svm.intercept_**2)) + 2.0 * np.sum(hinge**2)
    assert svm.objective_ == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [7, 50])
def test_the_result_does_not_depend_on_how_rows_are_cut(kind: type[LinearClassifier], size: int) -> None:
    x, y = rows(3)
    whole = kind(C=10.0, tol=1e-8).fit(x, y)
    starts = range(0, len(y), size)
    blocks, labels = [x[at : at + size] for at in starts], [y[at : at + size] for at in starts]
    cut = kind(C=10.0, tol=1e-8).fit(blocks, labels)
    np.testing.assert_allclose(cut.coef_, whole.coef_, atol=1e-7)
    assert np.array_equal(np.concatenate(cut.predict(blocks)), whole.predict(x))


@pytest.mark.parametrize("n_workers", [1, 2, 4])
def test_the_result_does_not_depend_on_the_number_of_workers(n_workers: int) -> None:
    x, y = rows(4)
    whole = LinearSVM(tol=1e-8).fit(x, y)
    with threads(n_workers) as client:
        blocks = [client.submit(x.__getitem__, slice(at, at + 9)) for at in range(0, len(y), 9)]
        labels = [client.submit(y.__getitem__, slice(at, at + 9)) for at in range(0, len(y), 9)]
        model = LinearSVM(tol=1e-8).fit(blocks, labels)
        predicted = np.concatenate(client.gather(model.predict(blocks)))
    np.testing.assert_allclose(model.coef_, whole.coef_, atol=1e-7)
    assert np.array_equal(predicted, whole.predict(x))


@pytest.mark.parametrize("kind", KINDS)
def test_iterations_are_told_and_their_slope_falls_below_the_tolerance(kind: type[LinearClassifier]) -> None:
    told: list[tuple[int, float]] = []
    x, y = rows(3)
    model = kind(tol=1e-6).fit(x, y, on_iteration=lambda step, slope: told.append((step, slope)))
    assert [step for step, _ in told] == list(range(1, model.n_iter_ + 1))
    assert told[-1][1] <= 1e-6 < told[-2][1]
    assert model.is_converged_
    assert not kind(tol=1e-6, max_iter=1).fit(x, y).is_converged_


@pytest.mark.parametrize("kind", KINDS)
def test_classes_are_no_classes_where_there_is_one(kind: type[LinearClassifier]) -> None:
    with pytest.raises(ValueError, match="1 class in all rows"):
        kind().fit(rows(2)[0], np.full(120, "same"))


def test_a_weight_of_an_unknown_class_is_an_error() -> None:
    with pytest.raises(ValueError, match="no class 'nobody' in y"):
        LinearSVM(class_weight={"nobody": 2.0}).fit(*rows(2))


def test_blocks_of_rows_and_classes_must_match() -> None:
    x, y = rows(2)
    with pytest.raises(ValueError, match="1 blocks for 2 of X"):
        LinearSVM().fit([x, x], [y])


@pytest.mark.parametrize("kind", KINDS)
def test_init_only_stores(kind: type[LinearClassifier]) -> None:
    model = kind(C=2.0, class_weight="balanced")
    assert clone(model).get_params() == model.get_params()
    assert not [name for name in vars(model) if name.endswith("_")]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_dense_rows_give_what_sparse_rows_give_in_a_pass_or_two_a_step(
    kind: type[LinearClassifier], n_classes: int, fit_intercept: bool
) -> None:
    x, y = rows(n_classes)
    sparse_model = kind(tol=1e-11, fit_intercept=fit_intercept, class_weight="balanced").fit(x, y)
    model = kind(tol=1e-11, fit_intercept=fit_intercept, class_weight="balanced").fit(x.toarray(), y)
    np.testing.assert_allclose(model.coef_, sparse_model.coef_, atol=1e-8)
    np.testing.assert_allclose(model.intercept_, sparse_model.intercept_, atol=1e-8)
    # A step is a value and a Hessian; where rounding decides, the line search takes a few values more.
    assert model.n_passes_ <= 2 * model.n_iter_ + 32
    assert model.n_passes_ < sparse_model.n_passes_ / 2


@pytest.mark.parametrize("kind", KINDS)
def test_dense_rows_give_the_same_however_they_are_cut(kind: type[LinearClassifier]) -> None:
    x, y = rows(3, n=500)
    whole = kind(tol=1e-10).fit(x.toarray(), y)
    for n_blocks in (2, 4, 16):
        cut = kind(tol=1e-10).fit(np.array_split(x.toarray(), n_blocks), np.array_split(y, n_blocks))
        np.testing.assert_allclose(cut.coef_, whole.coef_, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(cut.intercept_, whole.intercept_, rtol=1e-9, atol=1e-12)


def test_columns_that_depend_on_each_other_share_their_weight() -> None:
    x, y = rows(2)
    doubled = np.hstack([x.toarray(), x.toarray()])
    model = LogisticRegression(tol=1e-11).fit(doubled, y)
    np.testing.assert_allclose(model.coef_[:, :40], model.coef_[:, 40:], atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_by_default_scores_do_not_show_how_sparse_rows_were_cut(kind: type[LinearClassifier]) -> None:
    x, y = rows(20, n=2000, n_features=400)
    whole = kind().fit(x, y).decision_function(x)
    for n_blocks in (3, 8):
        cut = np.array_split(np.arange(len(y)), n_blocks)
        scores = kind().fit([x[part] for part in cut], [y[part] for part in cut]).decision_function(x)
        np.testing.assert_allclose(scores, whole, atol=1e-4)
