"""Least squares with a penalty on the coefficients, from one pass of sufficient statistics."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg
from sklearn.base import BaseEstimator, RegressorMixin

from jobs import sharing
from jobs.estimators.blocks import add, runner
from jobs.estimators.inputs import checked_blocks
from jobs.estimators.linear_regression import (
    N_REFINEMENTS,
    REFINE_ABOVE,
    centred_products,
    line_of,
)
from jobs.estimators.moments import residual_products


class Ridge(RegressorMixin, BaseEstimator):
    """Ridge regression for tables of any length and up to some thousand columns.

    Minimises Σ weight (y − Xw − c)² + alpha ‖w‖², where the constant c is not penalised: scikit-learn's objective
    (Hoerl and Kennard, Ridge Regression: Biased Estimation for Nonorthogonal Problems, 1970). Memory and what travels
    are O(p²), never O(n).

    Parameters
    ----------
    alpha : float
        Weight of the penalty, at least 0; of 0, the solution of least norm is taken.
    fit_intercept : bool
        Whether the model has a constant.

    Attributes
    ----------
    coef_ : ndarray of shape (p,)
    intercept_ : float
    n_samples_, n_features_in_ : int
    """

    def __init__(self, alpha: float = 1.0, *, fit_intercept: bool = True) -> None:
        self.alpha = alpha
        self.fit_intercept = fit_intercept

    @sharing.release_on_error()
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Ridge:
        """Fit to X (n, p) and y (n,), arrays or Dask collections, with weights (n,) if given.

        Raises
        ------
        ValueError
            When alpha is negative, values are missing or infinite, shapes do not fit, or there is no row.
        """
        if not self.alpha >= 0:
            raise ValueError(f"alpha={self.alpha} should be at least 0.")
        blocks = checked_blocks(self, X, y, sample_weight)
        total, centre, products = centred_products(self, blocks)
        p = blocks.n_features
        values, vectors = scipy.linalg.eigh(products[:p, :p])
        # Rounding leaves eigenvalues of zero at about p · eps of the largest.
        is_sound = values > 10 * p * np.finfo(float).eps * values[-1]
        stretched = np.where(is_sound, values, 0.0) + self.alpha
        inverse = np.divide(1.0, stretched, out=np.zeros(p), where=stretched > 0)
        coef = vectors @ (inverse * (vectors.T @ products[:p, p]))
        if stretched.max() > REFINE_ABOVE * stretched.min():
            run = runner(blocks.rows)
            for _ in range(N_REFINEMENTS):
                parts = run.map(
                    residual_products, blocks.rows, blocks.targets, blocks.weights, coef=coef, centre=centre
                )
                gradient = run.total(add, parts)[0] - self.alpha * coef
                coef = coef + vectors @ (inverse * (vectors.T @ gradient))
        self.coef_ = coef
        self.intercept_ = float(centre[p] - centre[:p] @ self.coef_)
        self.n_samples_ = total.n
        return self

    def predict(self, X: Any) -> Any:
        """Return predictions (n,) for X (n, p), lazily for Dask collections."""
        return line_of(self, X)
