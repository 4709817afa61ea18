"""Do the estimators keep scikit-learn's contract, and take tables in all containers alike?"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy import sparse
from sklearn.base import clone, is_classifier
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks

from jobs import estimators
from jobs.estimators import (
    NMF,
    ExplicitALS,
    ImplicitALS,
    KMeans,
    LinearRegression,
    LinearSVM,
    LogisticRegression,
    MLPClassifier,
    MLPRegressor,
    Ridge,
    TfidfVectorizer,
)
from tests.threads import threads

# Small and quick to learn: the checks fit them a few hundred times.
NETWORKS = [MLPClassifier((16,), learning_rate_init=0.01), MLPRegressor((16,), learning_rate_init=0.01)]
ESTIMATORS = [LinearRegression(), Ridge(), LogisticRegression(), LinearSVM(), KMeans(2, n_init=1), *NETWORKS]
TRANSFORMERS = [NMF(2), ExplicitALS(4), ImplicitALS(4), ImplicitALS(4, n_cg_steps=0)]
LINEAR = [LogisticRegression(tol=1e-11), LinearSVM(tol=1e-11)]


@parametrize_with_checks(ESTIMATORS + TRANSFORMERS)
@pytest.mark.filterwarnings("ignore")  # scikit-learn's checks pass bad input on purpose
def test_scikit_learns_checks_pass(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", ["exact", "hashed"])
def test_the_checks_that_scikit_learn_has_for_estimators_of_text_pass(mode: Any) -> None:
    results = check_estimator(TfidfVectorizer(mode), on_fail=None)
    assert results
    assert {result["status"] for result in results} == {"passed"}


def table() -> tuple[pd.DataFrame, pd.Series]:
    random = np.random.default_rng(5)
    rows = random.standard_normal((240, 4)) + 3 * random.integers(0, 2, (240, 1))
    # The label is no clean function of the rows: without a margin there are weights to find.
    target = (rows.sum(axis=1) + 2 * random.standard_normal(240) > 6).astype(np.int64)
    return pd.DataFrame(rows, columns=list("abcd")), pd.Series(target, name="target")


def learned(model: Any) -> NDArray[np.float64]:
    arrays = [getattr(model, name) for name in ("coef_", "cluster_centers_") if hasattr(model, name)]
    return np.hstack([np.ravel(array) for array in arrays + getattr(model, "coefs_", [])])


@pytest.mark.parametrize("estimator", ESTIMATORS + LINEAR, ids=lambda estimator: type(estimator).__name__)
def test_arrays_frames_and_dask_collections_give_the_same(estimator: Any) -> None:
    frame, target = table()
    oracle = clone(estimator).fit(frame.to_numpy(), target.to_numpy())
    expected = oracle.predict(frame.to_numpy())
    dask_frame, dask_target = dd.from_pandas(frame, npartitions=3), dd.from_pandas(target, npartitions=3)
    inputs: list[tuple[Any, Any]] = [
        (frame, target),
        (frame.to_numpy().tolist(), target.tolist()),
        (da.from_array(frame.to_numpy(), chunks=(70, 2)), da.from_array(target.to_numpy(), chunks=100)),
        (dask_frame, dask_target),
    ]
    for rows, targets in inputs:
        model = clone(estimator).fit(rows, targets)
        tolerance = 1e-4 if is_classifier(estimator) and estimator not in LINEAR else 1e-9  # what tol leaves open
        np.testing.assert_allclose(learned(model), learned(oracle), rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(np.asarray(model.predict(rows)), expected, rtol=1e-6)
        assert model.n_features_in_ == 4
    assert model.feature_names_in_.tolist() == list("abcd")
    for wrong, message in ((dask_frame[list("bacd")], "'b' is not 'a'"), (dask_frame[list("abc")], "X has 3 features")):
        with pytest.raises(ValueError, match=message):
            model.predict(wrong)
    assert not hasattr(model.fit(inputs[2][0], inputs[2][1]), "feature_names_in_")


@pytest.mark.parametrize("estimator", [LinearRegression(), Ridge(), KMeans(2)], ids=lambda e: type(e).__name__)
def test_blocks_here_and_on_workers_give_what_their_rows_give(estimator: Any) -> None:
    frame, target = table()
    rows, y = frame.to_numpy(), target.to_numpy(float)
    oracle = clone(estimator).fit(rows, y)
    cuts = [slice(0, 70), slice(70, 70), slice(70, 240)]
    here = [[values[cut] for cut in cuts] for values in (rows, y)]
    with threads(2) as client:
        there = [[client.submit(lambda block=block: block, pure=False) for block in blocks] for blocks in here]
        for X, targets in (here, there):
            model = clone(estimator).fit(X, targets)
            np.testing.assert_allclose(learned(model), learned(oracle), rtol=1e-9)
            predicted = model.predict(X)
            assert len(predicted) == 3
            if X is there[0]:
                predicted = client.gather(predicted)
            np.testing.assert_allclose(np.concatenate(predicted), oracle.predict(rows), rtol=1e-6)
    with pytest.raises(ValueError, match=r"X: blocks of 3, 4 columns"):
        clone(estimator).fit([rows[:9], rows[9:, :3]], [y[:9], y[9:]])
    if not isinstance(estimator, KMeans):
        with pytest.raises(ValueError, match=r"y: its blocks are not as long as those of X; cut both alike"):
            clone(estimator).fit([rows[:9], rows[9:]], [y[:8], y[8:]])


@pytest.mark.parametrize("estimator", [e for e in ESTIMATORS if is_classifier(e)], ids=lambda e: type(e).__name__)
def test_what_a_classifier_returns_for_dask_is_lazy_and_the_same(estimator: Any) -> None:
    frame, target = table()
    names = target.map({0: "no", 1: "yes"}).to_numpy(dtype=object)
    model = clone(estimator).fit(frame.to_numpy(), names)
    lazy = da.from_array(frame.to_numpy(), chunks=(100, 4))
    for method in ("predict", "decision_function", "predict_proba"):
        if hasattr(model, method):
            found = getattr(model, method)(lazy)
            assert isinstance(found, da.Array)
            values = getattr(model, method)(frame.to_numpy())
            assert found.dtype == values.dtype
            assert found.shape == values.shape
            assert (found.compute() == values).all()


@pytest.mark.parametrize("estimator", LINEAR, ids=lambda estimator: type(estimator).__name__)
def test_sparse_matrices_give_what_their_rows_give(estimator: Any) -> None:
    frame, target = table()
    rows = np.where(np.abs(frame) > 1, frame, 0.0)
    dense = clone(estimator).fit(rows, target)
    for kind in (sparse.csr_array, sparse.csc_matrix, sparse.coo_array):
        model = clone(estimator).fit(kind(rows), target)
        np.testing.assert_allclose(model.coef_, dense.coef_, atol=1e-8)
        assert (model.predict(kind(rows)) == dense.predict(rows)).all()


@pytest.mark.parametrize("estimator", [LogisticRegression(), LinearSVM(), NMF(2)], ids=lambda e: type(e).__name__)
def test_names_of_columns_are_forgotten_when_blocks_without_names_are_fitted(estimator: Any) -> None:
    frame, target = table()
    model = clone(estimator).fit(frame.abs(), target)
    assert model.feature_names_in_.tolist() == list("abcd")
    rows = frame.abs().to_numpy()[:, :3]
    model.fit([rows[:100], rows[100:]], [target[:100], target[100:]])
    assert not hasattr(model, "feature_names_in_")
    assert model.n_features_in_ == 3


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda estimator: type(estimator).__name__)
def test_unfinite_and_complex_values_are_refused_by_name(estimator: Any) -> None:
    frame, target = table()
    bad = frame.to_numpy().copy()
    bad[7, 2] = np.inf
    for wrong, message in ((bad, "Input X contains infinity"), (frame.to_numpy() + 1j, "Complex data not supported")):
        with pytest.raises(ValueError, match=message):
            clone(estimator).fit(wrong, target)


def test_every_estimator_is_found_by_its_name_and_no_other_is() -> None:
    for name in estimators.__all__:
        assert getattr(estimators, name).__name__ == name
        assert name in dir(estimators)
    with pytest.raises(AttributeError, match="no attribute 'KMedians'"):
        estimators.KMedians  # noqa: B018


def test_an_estimator_is_imported_without_the_others() -> None:
    command = (
        "import sys; from jobs.estimators import Ridge; print(*(m for m in ('torch', 'numba') if m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True).stdout == "\n"
