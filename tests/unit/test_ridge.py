"""Is Ridge scikit-learn's, and the same however the rows are cut?"""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import pytest
from distributed import Client
from sklearn.linear_model import Ridge as RidgeOracle

from jobs.estimators.ridge import Ridge


def table() -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(1)
    X = rng.normal(size=(800, 6)) * [1, 10, 0.1, 1, 1, 1] + [0, 1000, 0, 5, 0, 0]
    X[:, 5] = X[:, 0] - 2 * X[:, 3]  # depends on others
    return X, X @ rng.normal(size=6) + rng.normal(size=800), rng.integers(0, 4, 800).astype(float)


@pytest.mark.parametrize("alpha", [1e-3, 1.0, 300.0])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("is_weighted", [True, False])
def test_it_is_that_of_scikit_learn(alpha: float, fit_intercept: bool, is_weighted: bool) -> None:
    X, y, weights = table()
    weights = weights if is_weighted else None
    ours = Ridge(alpha, fit_intercept=fit_intercept).fit(X, y, weights)
    theirs = RidgeOracle(alpha, fit_intercept=fit_intercept, solver="svd").fit(X, y, weights)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(ours.predict(X), theirs.predict(X), rtol=1e-7, atol=1e-7)


def test_without_a_penalty_it_is_least_squares_of_least_norm() -> None:
    X, y, _ = table()
    centred = X - X.mean(axis=0)
    expected = np.linalg.lstsq(centred, y - y.mean(), rcond=1e-12)[0]
    np.testing.assert_allclose(Ridge(0.0).fit(X, y).coef_, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("n_blocks", [2, 4, 16])
def test_the_result_does_not_depend_on_the_blocks(client: Client, n_blocks: int) -> None:
    X, y, weights = table()
    whole = Ridge().fit(X, y, weights)
    size = len(X) // n_blocks
    cut = Ridge().fit(*(da.from_array(part, chunks=(size, *part.shape[1:])) for part in (X, y, weights)))
    np.testing.assert_allclose(cut.coef_, whole.coef_, rtol=1e-9, atol=1e-12)
    assert cut.intercept_ == pytest.approx(whole.intercept_, rel=1e-9)


def test_a_negative_penalty_is_refused() -> None:
    with pytest.raises(ValueError, match="alpha=-1 should be at least 0"):
        Ridge(-1).fit(np.eye(3), np.ones(3))
