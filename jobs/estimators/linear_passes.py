"""The passes of linear classifiers over blocks of rows: functions of a group of blocks, dense or sparse.

Called by LinearClassifier, on the workers. Sums are of the model's size, features by classes, in float64.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from jobs.estimators.hessian import hessian

Floats = NDArray[np.float64]


class Loss(Protocol):
    """A loss of scores z of shape (n_rows, n_columns) against class numbers y."""

    def value_and_slope(self, z: Floats, y: NDArray[np.intp]) -> tuple[Floats, Floats, Any]:
        """Return the loss of each row, its gradient by z, and what `curve` needs."""

    def curve(self, state: Any, direction: Floats) -> Floats:
        """Return the second derivative by z, times a direction in z."""


class Targets(NamedTuple):
    """Of a block's rows: the numbers of their classes (n,), and their weights (n,) or None."""

    numbers: NDArray[np.intp]
    weights: Floats | None


def class_counts(y: Any, weights: Floats | None) -> dict[Any, float]:
    """Return the weight of all rows of each class that has any."""
    if weights is None:
        names, counts = np.unique(np.asarray(y), return_counts=True)
        return dict(zip(names.tolist(), counts.tolist(), strict=True))
    names, numbers = np.unique(np.asarray(y)[weights > 0], return_inverse=True)
    return dict(zip(names.tolist(), np.bincount(numbers, weights[weights > 0]).tolist(), strict=True))


def add_counts(left: dict[Any, float], right: dict[Any, float]) -> dict[Any, float]:
    """Add two results."""
    return {name: left.get(name, 0) + right.get(name, 0) for name in {**left, **right}}


def encoded(y: Any, weights: Floats | None, classes: NDArray[Any]) -> Targets:
    """Return the numbers of the rows' classes, with their weights."""
    numbers = np.searchsorted(classes, np.asarray(y))
    # A row of weight 0 can be of a class that is none; any number will do for it.
    return Targets(numbers if weights is None else np.minimum(numbers, len(classes) - 1), weights)


def kind(X: Any) -> tuple[int, bool]:
    """Return the number of columns, and whether the block is dense."""
    return int(X.shape[1]), isinstance(X, np.ndarray)


def _times(X: Any, weights: Floats, has_intercept: bool) -> Floats:
    return np.asarray(X @ weights[:-1] + weights[-1] if has_intercept else X @ weights)


def _back(X: Any, rows: Floats, has_intercept: bool) -> Floats:
    product = np.asarray(X.T @ rows)
    return np.vstack([product, rows.sum(axis=0)]) if has_intercept else product


def loss_pass(
    xs: list[sparse.csr_array],
    targets: list[Targets],
    weights: Floats,
    loss: Loss,
    class_weights: Floats,
    has_intercept: bool,
) -> tuple[float, Floats, list[Any]]:
    """Return loss, gradient, and for each block its rows' weights with the state of the loss."""
    value, slope, states = 0.0, np.zeros_like(weights), []
    for x, (y, sample_weights) in zip(xs, targets, strict=True):
        row_weights = class_weights[y] if sample_weights is None else class_weights[y] * sample_weights
        losses, slopes, of_loss = loss.value_and_slope(_times(x, weights, has_intercept), y)
        value += float(row_weights @ losses)
        slope += _back(x, row_weights[:, None] * slopes, has_intercept)
        states.append((row_weights, of_loss))
    return value, slope, states


def sums(passed: tuple[float, Floats, list[Any]]) -> tuple[float, Floats]:
    """Return what of a pass is added up."""
    return passed[:2]


def state(passed: tuple[float, Floats, list[Any]]) -> list[Any]:
    """Return what of a pass stays where it is."""
    return passed[2]


def curve_pass(
    xs: list[sparse.csr_array], states: list[Any], direction: Floats, loss: Loss, has_intercept: bool
) -> Floats:
    """Return the second derivative times a direction."""
    total = np.zeros_like(direction)
    for x, (row_weights, of_loss) in zip(xs, states, strict=True):
        curved = loss.curve(of_loss, _times(x, direction, has_intercept))
        total += _back(x, row_weights[:, None] * curved, has_intercept)
    return total


def hessian_pass(
    xs: list[Floats], states: list[Any], n_columns: int, loss: Loss, has_intercept: bool, is_one_vs_rest: bool
) -> Floats:
    """Return the second derivative, added up over the blocks."""
    curvatures = []
    for row_weights, of_loss in states:
        curvature = np.empty((len(row_weights), n_columns, n_columns))
        for column in range(n_columns):
            along = np.zeros((len(row_weights), n_columns))
            along[:, column] = 1
            curvature[:, :, column] = row_weights[:, None] * loss.curve(of_loss, along)
        curvatures.append(curvature)
    return hessian(xs, curvatures, has_intercept, is_one_vs_rest)


def row_scores(X: Any, model: tuple[Floats, Floats]) -> Floats:
    """Return the scores of a block's rows, (n_rows, n_columns), under the model (weights, intercepts)."""
    return np.asarray(X @ model[0] + model[1])


def scores(X: Any, model: tuple[Floats, Floats]) -> Floats:
    """Return the scores of a block's rows; one-dimensional where there are two classes."""
    found = row_scores(X, model)
    return found[:, 0] if found.shape[1] == 1 else found


def predicted(X: Any, model: tuple[Floats, Floats], classes: NDArray[Any]) -> NDArray[Any]:
    """Return the classes of a block's rows."""
    found = scores(X, model)
    return classes[(found > 0).astype(int) if found.ndim == 1 else found.argmax(axis=1)]
