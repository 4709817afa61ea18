"""Least squares from one pass gives what numpy and the textbook give, however the rows are cut."""

from __future__ import annotations

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from distributed import Client
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from jobs.estimators.linear_regression import LinearRegression
from jobs.estimators.moments import merged, moments

Array = NDArray[np.float64]


@pytest.fixture(scope="module")
def table() -> tuple[Array, Array, Array]:
    """Columns of very different scale and offset, a target, and weights."""
    rng = np.random.default_rng(3)
    X = rng.normal(size=(3000, 8)) * 10.0 ** np.arange(-4, 4) + 100.0 * 10.0 ** np.arange(-4, 4)
    y = X @ (rng.normal(size=8) / 10.0 ** np.arange(-4, 4)) + rng.normal(size=3000)
    return X, y, rng.uniform(0.0, 2.0, size=3000)


def oracle(X: Array, y: Array, weights: Array | None = None) -> Array:
    """Coefficients and intercept by numpy's lstsq on centred, scaled columns."""
    weights = np.ones(len(X)) if weights is None else weights
    centre = weights @ X / weights.sum()
    scale = (X - centre).std(axis=0)
    root = np.sqrt(weights)[:, None]
    design = np.column_stack([(X - centre) / scale, np.ones(len(X))]) * root
    solution = np.linalg.lstsq(design, y * root[:, 0], rcond=None)[0]
    coef = solution[:-1] / scale
    return np.append(coef, solution[-1] - centre @ coef)


@pytest.mark.parametrize("is_weighted", [False, True])
def test_the_coefficients_are_those_of_lstsq(table: tuple[Array, Array, Array], is_weighted: bool) -> None:
    X, y, weights = table
    chosen = weights if is_weighted else None
    model = LinearRegression().fit(X, y, chosen)
    np.testing.assert_allclose(np.append(model.coef_, model.intercept_), oracle(X, y, chosen), rtol=1e-9)


def test_standard_errors_and_r2_are_the_textbooks(table: tuple[Array, Array, Array]) -> None:
    X, y, _ = table
    model = LinearRegression().fit(X, y)
    scale = np.append(X.std(axis=0), 1.0)
    design = np.column_stack([X, np.ones(len(X))]) / scale
    residuals = y - model.predict(X)
    variance = residuals @ residuals / (len(X) - 9)
    errors = np.sqrt(np.diag(np.linalg.inv(design.T @ design)) * variance) / scale
    np.testing.assert_allclose(np.append(model.standard_errors_, model.intercept_standard_error_), errors, rtol=1e-6)
    np.testing.assert_allclose(model.t_values_, model.coef_ / errors[:-1], rtol=1e-6)
    assert model.r2_ == pytest.approx(1 - residuals @ residuals / ((y - y.mean()) ** 2).sum(), rel=1e-9)


@pytest.mark.parametrize("n_blocks", [1, 2, 4, 16])
def test_the_result_does_not_depend_on_the_blocks(
    table: tuple[Array, Array, Array], n_blocks: int, client: Client
) -> None:
    X, y, weights = table
    rows = -(-len(X) // n_blocks)
    one = LinearRegression().fit(X, y, weights)
    many = LinearRegression().fit(*(da.from_array(each, chunks=(rows, *each.shape[1:])) for each in (X, y, weights)))
    np.testing.assert_allclose(many.coef_, one.coef_, rtol=1e-9)
    np.testing.assert_allclose(many.standard_errors_, one.standard_errors_, rtol=1e-9)
    assert many.n_samples_ == one.n_samples_


def test_a_dask_dataframe_is_as_good_as_an_array(table: tuple[Array, Array, Array], client: Client) -> None:
    X, y, _ = table
    frame = dd.from_pandas(pd.DataFrame(X, columns=list("abcdefgh")).assign(y=y), npartitions=3)
    model = LinearRegression().fit(frame[list("abcdefgh")], frame["y"])
    np.testing.assert_allclose(model.coef_, LinearRegression().fit(X, y).coef_, rtol=1e-9)
    predicted = model.predict(frame[list("abcdefgh")])
    np.testing.assert_allclose(predicted.compute(), model.predict(pd.DataFrame(X, columns=list("abcdefgh"))))


def test_without_an_intercept_the_line_goes_through_the_origin() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(500, 3)) + 5
    y = X @ [1.0, 2.0, 3.0] + rng.normal(size=500)
    model = LinearRegression(fit_intercept=False).fit(X, y)
    np.testing.assert_allclose(model.coef_, np.linalg.lstsq(X, y, rcond=None)[0], rtol=1e-9)
    assert model.intercept_ == 0


def test_a_perfect_fit_is_found_and_said_to_be_one() -> None:
    X = np.random.default_rng(0).normal(size=(200, 3))
    model = LinearRegression().fit(X, X @ [1.0, 2.0, 3.0] + 4.0)
    np.testing.assert_allclose(np.append(model.coef_, model.intercept_), [1, 2, 3, 4], rtol=1e-12)
    assert 1 - model.r2_ < 1e-20


def test_nearly_dependent_columns_are_solved_as_well_as_lstsq_does() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(1000, 3))
    X[:, 2] = X[:, 0] + 1e-5 * rng.normal(size=1000)
    y = X @ [1.0, 2.0, 3.0]
    np.testing.assert_allclose(LinearRegression().fit(X, y).coef_, [1, 2, 3], rtol=1e-8)


def test_dependent_and_constant_columns_get_the_solution_of_least_norm_and_no_standard_error() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 4))
    X[:, 2], X[:, 3] = X[:, 0], 7.0
    y = X[:, 0] - X[:, 1]
    model = LinearRegression().fit(X, y)
    np.testing.assert_allclose(model.coef_, [0.5, -1.0, 0.5, 0.0], atol=1e-9)
    assert model.rank_ == 2
    assert np.isnan(model.standard_errors_).tolist() == [True, False, True, True]


@pytest.mark.parametrize("constant", [0.1, 1e15, 0.0])
def test_a_constant_column_leaves_the_others_as_they_are(constant: float) -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(10_000, 3))
    y = X @ [1.0, 2.0, 3.0] + rng.normal(size=10_000)
    alone = LinearRegression().fit(X, y)
    model = LinearRegression().fit(np.column_stack([X, np.full(10_000, constant)]), y, np.full(10_000, 0.3))
    np.testing.assert_allclose(model.coef_, [*alone.coef_, 0.0], rtol=1e-9)
    assert model.intercept_ == pytest.approx(alone.intercept_, rel=1e-9)
    assert model.rank_ == 3
    assert np.isnan(model.standard_errors_[3])
    assert np.isfinite(model.standard_errors_[:3]).all()


def test_a_weight_counts_like_copies_of_the_row_and_zero_like_none(table: tuple[Array, Array, Array]) -> None:
    X, y, _ = table
    counts = np.arange(len(X)) % 4
    weighted = LinearRegression().fit(X, y, counts)
    repeated = LinearRegression().fit(np.repeat(X, counts, axis=0), np.repeat(y, counts))
    np.testing.assert_allclose(weighted.coef_, repeated.coef_, rtol=1e-9)
    assert weighted.intercept_ == pytest.approx(repeated.intercept_, rel=1e-9)
    assert weighted.r2_ == pytest.approx(repeated.r2_, rel=1e-9)
    assert weighted.n_samples_ == np.count_nonzero(counts)


def test_it_is_an_estimator_of_scikit_learn(table: tuple[Array, Array, Array], client: Client) -> None:
    X, y, _ = table
    model = LinearRegression(fit_intercept=False)
    assert clone(model).get_params() == {"fit_intercept": False}
    column = da.from_array(y[:, None], chunks=(1000, 1))
    fitted = LinearRegression().fit(da.from_array(np.asfortranarray(X), chunks=(700, 3)), column)
    np.testing.assert_allclose(fitted.coef_, LinearRegression().fit(X, y).coef_, rtol=1e-9)
    assert fitted.score(X, y) == pytest.approx(fitted.r2_, rel=1e-9)
    with pytest.raises(NotFittedError):
        model.predict(X)
    with pytest.raises(ValueError, match="X has 7 features, but LinearRegression is expecting 8"):
        fitted.predict(X[:, :7])


def test_fewer_rows_than_columns_still_give_a_fit() -> None:
    X = np.random.default_rng(0).normal(size=(3, 5))
    y = np.array([1.0, 2.0, 4.0])
    model = LinearRegression().fit(X, y)
    np.testing.assert_allclose(model.predict(X), y, atol=1e-9)
    assert np.isnan(model.standard_errors_).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_missing_and_infinite_values_are_refused(client: Client, bad: float) -> None:
    X = np.ones((5, 2))
    X[2, 1] = bad
    with pytest.raises(ValueError, match="Input X contains"):
        LinearRegression().fit(X, np.ones(5))
    with pytest.raises(ValueError, match="NaN or infinity"):
        LinearRegression().fit(da.from_array(X, chunks=(2, 2)), da.ones(5, chunks=2))


def test_negative_weights_and_weights_of_zero_alone_are_refused(client: Client) -> None:
    with pytest.raises(ValueError, match=r"0 sample.* of a weight above zero"):
        LinearRegression().fit(da.eye(3, chunks=3), da.ones(3), da.zeros(3))
    with pytest.raises(ValueError, match="negative value, -1"):
        LinearRegression().fit(np.eye(3), np.ones(3), [1, -1, 1])
    with pytest.raises(ValueError, match="negative value, -1"):
        LinearRegression().fit(da.eye(3, chunks=3), da.ones(3), -da.ones(3))


def test_shapes_that_do_not_fit_and_empty_tables_are_refused(client: Client) -> None:
    with pytest.raises(ValueError, match=r"inconsistent numbers of samples: \[5, 4\]"):
        LinearRegression().fit(np.ones((5, 2)), np.ones(4))
    with pytest.raises(ValueError, match="0 sample"):
        LinearRegression().fit(np.ones((0, 2)), np.ones(0))
    with pytest.raises(ValueError, match="5 rows"):
        LinearRegression().fit(da.ones((5, 2)), da.ones(4))


def test_moments_of_parts_are_the_moments_of_the_whole(table: tuple[Array, Array, Array]) -> None:
    X, y, weights = table
    whole = moments(X, y, weights)
    parts = merged(moments(X[:7], y[:7], weights[:7]), moments(X[7:], y[7:], weights[7:]))
    np.testing.assert_allclose(parts.products, whole.products, rtol=1e-9)
    columns = np.column_stack([X, y])
    np.testing.assert_allclose(whole.means, np.average(columns, axis=0, weights=weights), rtol=1e-12)
    covariance = np.cov(columns.T, aweights=weights, ddof=0)
    np.testing.assert_allclose(whole.products / whole.weight, covariance, rtol=1e-9)
    assert merged(moments(X[:0], y[:0]), whole) is whole
