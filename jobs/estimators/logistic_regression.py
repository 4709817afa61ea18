"""Multinomial logistic regression for rows dense or sparse: the text_mining pipeline's choice for probabilities."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp, softmax
from sklearn.utils.validation import check_is_fitted

from jobs.estimators.linear_classifier import LinearClassifier
from jobs.estimators.linear_passes import Loss, row_scores

Floats = NDArray[np.float64]


class CrossEntropy:
    """ln Σ exp z − z of the row's class. A single column is the second of two, the first one's score is 0."""

    def value_and_slope(self, z: Floats, y: NDArray[np.intp]) -> tuple[Floats, Floats, Floats]:
        """Return the loss of each row, its gradient, and the probabilities."""
        full = _with_reference(z)
        rows = np.arange(len(y))
        probabilities = softmax(full, axis=1)
        slope = probabilities.copy()
        slope[rows, y] -= 1
        return logsumexp(full, axis=1) - full[rows, y], slope[:, -z.shape[1] :], probabilities

    def curve(self, state: Floats, direction: Floats) -> Floats:
        """Return (diag p − p pᵀ) · direction for each row."""
        full = _with_reference(direction)
        curved = state * (full - np.sum(state * full, axis=1, keepdims=True))
        return curved[:, -direction.shape[1] :]


class LogisticRegression(LinearClassifier):
    """Multinomial logistic regression with L2 penalty.

    The objective is that of scikit-learn's LogisticRegression: the intercept is not penalised; two classes have one
    column of weights. See `LinearClassifier` for parameters and attributes.
    """

    loss: ClassVar[Loss] = CrossEntropy()
    is_one_vs_rest: ClassVar[bool] = False
    is_intercept_penalised: ClassVar[bool] = False

    def predict_proba(self, X: Any) -> Any:
        """Return probabilities, (n_rows, n_classes); by block where X is blocks."""
        check_is_fitted(self)
        return self._mapped(_probabilities, X, np.float64, len(self.classes_))


def _with_reference(z: Floats) -> Floats:
    return np.hstack([np.zeros_like(z), z]) if z.shape[1] == 1 else z


def _probabilities(X: Any, model: tuple[Floats, Floats]) -> Floats:
    return np.asarray(softmax(_with_reference(row_scores(X, model)), axis=1))
