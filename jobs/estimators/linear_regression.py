"""Ordinary least squares from one pass of sufficient statistics."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted

from jobs import sharing
from jobs.estimators.blocks import add, runner
from jobs.estimators.inputs import Blocks, checked_blocks, map_rows
from jobs.estimators.moments import Moments, merged, moments, residual_products

# Above this condition number of the scaled products, the first solution is corrected by its own residuals.
REFINE_ABOVE = 1e4
N_REFINEMENTS = 2
# Below this share of unexplained variance, the sum of squared residuals is counted, not inferred by subtraction.
_COUNT_RESIDUALS_BELOW = 1e-6
# Below this share of its squared length in the null space, a coefficient counts as determined.
_UNDETERMINED = 1e-10


class LinearRegression(RegressorMixin, BaseEstimator):
    """Least squares for tables of any length and up to some thousand columns.

    The columns are centred and scaled, the normal equations solved by Cholesky; where they are ill-conditioned, the
    solution is corrected by a second pass over the residuals, and where columns depend on each other, the solution of
    least norm (of the scaled columns) is taken instead. Memory and what travels are O(p²), never O(n).

    Parameters
    ----------
    fit_intercept : bool
        Whether the model has a constant.

    Attributes
    ----------
    coef_ : ndarray of shape (p,)
    intercept_ : float
    standard_errors_ : ndarray of shape (p,)
        Of the coefficients; NaN for a column that is constant or depends on others, and for all where there are no
        degrees of freedom left.
    intercept_standard_error_ : float
    t_values_ : ndarray of shape (p,)
    r2_ : float
        Share of the (weighted) variance of y that the fit explains, on the rows that it was fitted on; without an
        intercept, of the mean square of y.
    n_samples_, rank_, n_features_in_ : int
    """

    def __init__(self, *, fit_intercept: bool = True) -> None:
        self.fit_intercept = fit_intercept

    @sharing.release_on_error()
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> LinearRegression:
        """Fit to X (n, p) and y (n,), arrays or Dask collections, with weights (n,) if given.

        Raises
        ------
        ValueError
            When values are missing or infinite, shapes do not fit, or there is no row.
        """
        blocks = checked_blocks(self, X, y, sample_weight)
        total, centre, products = centred_products(self, blocks)
        p = blocks.n_features
        self.n_samples_ = total.n
        system = _Scaled(products[:p, :p])
        self.rank_ = system.rank
        coef = system.solve(products[:p, p])
        variation = float(products[p, p])
        squares = variation - float(coef @ products[:p, p])
        if system.condition > REFINE_ABOVE or squares < _COUNT_RESIDUALS_BELOW * variation:
            n_refinements = N_REFINEMENTS if system.condition > REFINE_ABOVE else 0
            coef, squares = self._refined(blocks, system, coef, centre, n_refinements)
        self.coef_ = coef
        self.intercept_ = float(centre[p] - centre[:p] @ coef)
        self.r2_ = 1.0 - squares / variation if variation > 0 else 1.0
        self._errors(system, squares, total.weight, centre[:p])
        return self

    def predict(self, X: Any) -> Any:
        """Return predictions (n,) for X (n, p), lazily for Dask collections."""
        return line_of(self, X)

    def _refined(
        self,
        blocks: Blocks,
        system: _Scaled,
        coef: NDArray[np.float64],
        centre: NDArray[np.float64],
        n_refinements: int,
    ) -> tuple[NDArray[np.float64], float]:
        """Correct the solution by least squares on its own residuals; return it with their sum of squares."""
        run = runner(blocks.rows)
        for turn in range(n_refinements + 1):
            parts = run.map(residual_products, blocks.rows, blocks.targets, blocks.weights, coef=coef, centre=centre)
            gradient, squares = run.total(add, parts)
            if turn == n_refinements:
                break
            coef = coef + system.solve(gradient)
        return coef, float(squares)

    def _errors(self, system: _Scaled, squares: float, weight: float, means: NDArray[np.float64]) -> None:
        n_free = self.n_samples_ - self.rank_ - self.fit_intercept
        variance = max(squares, 0.0) / n_free if n_free > 0 else np.nan
        inverse = system.inverse()
        self.standard_errors_ = np.where(system.is_estimable, np.sqrt(variance * np.diag(inverse)), np.nan)
        constant = 1.0 / weight + means @ inverse @ means
        self.intercept_standard_error_ = float(np.sqrt(variance * constant)) if self.fit_intercept else 0.0
        with np.errstate(divide="ignore", invalid="ignore"):
            self.t_values_ = self.coef_ / self.standard_errors_


class _Scaled:
    """Solves S b = v for a positive semi-definite S (p, p) whose columns are scaled to unit diagonal first."""

    def __init__(self, products: NDArray[np.float64]) -> None:
        diagonal = np.diag(products)
        self._scale = np.where(diagonal > 0, 1.0 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0)), 0.0)
        scaled = products * self._scale[:, None] * self._scale
        values, vectors = scipy.linalg.eigh(scaled)
        self._vectors: NDArray[np.float64] = vectors
        largest = float(values[-1])
        # Eigenvalues of a sum of products are right to about p · eps of the largest: below that, they are zero.
        is_sound = values > 10 * len(values) * np.finfo(float).eps * largest
        self.rank = int(is_sound.sum())
        self._inverse_values = np.where(is_sound, 1.0 / np.where(is_sound, values, 1.0), 0.0)
        self.condition = largest / float(values[is_sound][0]) if self.rank else 1.0
        # A coefficient is determined by the data unless it has a part in what the data cannot tell.
        self.is_estimable = (vectors[:, ~is_sound] ** 2).sum(axis=1) < _UNDETERMINED
        self._factor = scipy.linalg.cho_factor(scaled) if self.rank == len(values) else None

    def solve(self, right: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return b; of least scaled norm where S is singular."""
        scaled = right * self._scale
        if self._factor is not None:
            return np.asarray(scipy.linalg.cho_solve(self._factor, scaled)) * self._scale
        return self._vectors @ (self._inverse_values * (self._vectors.T @ scaled)) * self._scale

    def inverse(self) -> NDArray[np.float64]:
        """Return the (pseudo-)inverse of S."""
        inverse = (self._vectors * self._inverse_values) @ self._vectors.T
        return np.asarray(inverse * self._scale[:, None] * self._scale)


def centred_products(model: Any, blocks: Blocks) -> tuple[Moments, NDArray[np.float64], NDArray[np.float64]]:
    """Return, of columns and target together, the moments, the centre (q,) and the products about it (q, q), q = p + 1.

    The centre is the means, or zero where the model has no constant.
    """
    run = runner(blocks.rows)
    total: Moments = run.total(merged, run.map(moments, blocks.rows, blocks.targets, blocks.weights))
    if total.n == 0:
        raise ValueError(
            f"Found array with 0 sample(s) of a weight above zero while a minimum of 1 is required by "
            f"{type(model).__name__}."
        )
    if not (np.isfinite(total.means).all() and np.isfinite(total.products).all()):
        raise ValueError("Input X or y contains NaN or infinity; impute or drop those rows first.")
    if model.fit_intercept:
        return total, total.means, total.products
    products = total.products + total.weight * np.outer(total.means, total.means)
    return total, np.zeros(len(total.means)), products


def line_of(model: Any, X: Any) -> Any:
    """Return a fitted linear model's predictions (n,) for X (n, p), lazily for Dask collections."""
    check_is_fitted(model)
    return map_rows(model, partial(_predicted, coef=model.coef_, intercept=model.intercept_), X, np.float64)


def _predicted(rows: NDArray[np.floating], coef: NDArray[np.float64], intercept: float) -> NDArray[np.float64]:
    return np.asarray(rows, dtype=np.float64) @ coef + intercept
