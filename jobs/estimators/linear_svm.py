"""A linear support vector machine for blocks of sparse rows: the classifier of the text_mining pipeline."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from jobs.estimators.linear_classifier import LinearClassifier
from jobs.estimators.linear_passes import Loss

Floats = NDArray[np.float64]


class SquaredHinge:
    """max(0, 1 − t·z)², one column a class against the rest; t is 1 for the row's class, −1 for others."""

    def value_and_slope(self, z: Floats, y: NDArray[np.intp]) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        """Return the sum over the columns, its gradient, and where it is curved."""
        targets = np.full(z.shape, -1.0)
        if z.shape[1] == 1:
            targets[y == 1] = 1
        else:
            targets[np.arange(len(y)), y] = 1
        missing = np.maximum(0, 1 - targets * z)
        return np.sum(missing**2, axis=1), -2 * targets * missing, missing > 0

    def curve(self, state: NDArray[np.bool_], direction: Floats) -> Floats:
        """Return 2·direction where the margin is violated."""
        return 2 * state * direction


class LinearSVM(LinearClassifier):
    """Linear support vector machine: squared hinge loss, L2 penalty, one versus the rest.

    The objective is that of scikit-learn's LinearSVC with its defaults: the intercept is the weight of a constant
    feature of 1 and is penalised like the others. See `LinearClassifier` for parameters and attributes.
    """

    loss: ClassVar[Loss] = SquaredHinge()
    is_one_vs_rest: ClassVar[bool] = True
    is_intercept_penalised: ClassVar[bool] = True
