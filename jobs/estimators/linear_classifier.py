"""Linear classifiers fitted by Newton's method on sums over blocks of rows, dense or sparse.

Each pass over the data is one task a worker thread and returns an array of the model's size, features by classes, in
float64. Newton's method needs about a quarter of the passes that L-BFGS does, and it gets so close to the minimum that
the way rounding takes through differently cut blocks does not show: coefficients agree to about 1e-6 of their norm. A
step is solved by conjugate gradients, or, for dense rows and few weights, by adding up the whole Hessian in one pass.
Called by `logistic_regression` and `linear_svm`, which add their loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from jobs.estimators.blocks import Runner, add, as_blocks, is_cut, runner
from jobs.estimators.hessian import MOST_WEIGHTS, hessian, solved
from jobs.estimators.inputs import checked_blocks, keep_columns, map_rows
from jobs.estimators.sample_weights import weights_of_blocks

Floats = NDArray[np.float64]
OnIteration = Callable[[int, float], None]

_MAX_CG_STEPS = 100
_MAX_HALVINGS = 30
_ARMIJO = 1e-4
# What sums of losses may be wrong by, relative to the sum.
_ROUNDING = 1e-12


class Loss(Protocol):
    """A loss of scores z of shape (n_rows, n_columns) against class numbers y."""

    def value_and_slope(self, z: Floats, y: NDArray[np.intp]) -> tuple[Floats, Floats, Any]:
        """Return the loss of each row, its gradient by z, and what `curve` needs."""

    def curve(self, state: Any, direction: Floats) -> Floats:
        """Return the second derivative by z, times a direction in z."""


class LinearClassifier(ClassifierMixin, BaseEstimator):
    """Base of linear classifiers: ½‖W‖² + C Σ weight · loss is minimised over all classes at once.

    Parameters
    ----------
    C : float
        Weight of the loss against the penalty.
    fit_intercept : bool
        Whether to add a constant to each score.
    class_weight : None, "balanced" or mapping of class to weight
        Weight of a row of that class, times its sample weight; "balanced" is n_rows / (n_classes · rows of its class),
        where each row counts its sample weight.
    tol : float
        Stop when the norm of the gradient is below `tol` times what it was at the start. Near the minimum a step
        gains several digits, so a low one costs little; with 1e-4, scores would depend on how the rows are cut.
    max_iter : int
        Newton steps at most.

    Attributes
    ----------
    classes_ : ndarray, shape (n_classes,)
        The classes, sorted.
    coef_ : ndarray of float64, shape (n_classes, n_features); (1, n_features) where there are two classes
        Weights.
    intercept_ : ndarray of float64, shape (n_classes,) or (1,)
        Constants.
    n_iter_ : int
        Newton steps taken.
    n_passes_ : int
        Times that the data was read.
    objective_ : float
        What was minimised, at the end.
    is_converged_ : bool
        Whether `tol` was reached.

    Notes
    -----
    X is an array, a data frame or a sparse matrix; a dask.array or dask.dataframe, for which what is returned is lazy;
    or blocks: a list of arrays or sparse matrices, or of futures of them. y and sample weights are one-dimensional, or
    lists cut as X is.

    References
    ----------
    Lin, Weng, Keerthi: Trust region Newton method for large-scale logistic regression, JMLR 9 (2008); in place of the
    trust region there is a line search.
    """

    loss: ClassVar[Loss]
    # One-versus-rest problems share a pass over the data, but each has steps of its own.
    is_one_vs_rest: ClassVar[bool]
    is_intercept_penalised: ClassVar[bool]

    def __init__(
        self,
        C: float = 1.0,
        fit_intercept: bool = True,
        class_weight: Literal["balanced"] | Mapping[Any, float] | None = None,
        tol: float = 1e-8,
        max_iter: int = 100,
    ) -> None:
        self.C = C
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.tol = tol
        self.max_iter = max_iter

    def fit(
        self, X: Any, y: Any, sample_weight: Any = None, on_iteration: OnIteration | None = None
    ) -> LinearClassifier:
        """Fit to rows `X` (n, p) of classes `y` (n,), with weights (n,) if given.

        Parameters
        ----------
        X, y
            See the notes of the class.
        sample_weight : array-like, Dask collection or list of blocks, optional
            What the loss of each row is multiplied by, at least 0. Rows of weight 0 are as good as absent: a class that
            has no others is none.
        on_iteration : callable, optional
            Called with the number of Newton steps and the norm of the gradient relative to its start.

        Raises
        ------
        ValueError
            When `y` holds fewer than two classes, or a weight is negative, missing or infinite.
        """
        if is_cut(X):
            x_blocks, y_blocks = as_blocks(X), as_blocks(y)
            w_blocks = [None] * len(x_blocks) if sample_weight is None else as_blocks(sample_weight)
            for name, column in (("y", y_blocks), ("sample_weight", w_blocks)):
                if len(column) != len(x_blocks):
                    raise ValueError(f"{name}: {len(column)} blocks for {len(x_blocks)} of X; cut both alike")
        else:
            blocks = checked_blocks(self, X, y, sample_weight)
            x_blocks, y_blocks, w_blocks = blocks.rows, blocks.targets, blocks.weights
        run = runner(x_blocks)
        w_blocks = weights_of_blocks(run, w_blocks, x_blocks)
        counts: dict[Any, float] = run.total(_add_counts, run.map(_class_counts, y_blocks, w_blocks))
        if not counts:
            raise ValueError("sample_weight: every row has a weight of zero; give some rows a weight above zero")
        self.classes_ = np.asarray(sorted(counts))
        if len(self.classes_) < 2:
            raise ValueError(f"y: {len(self.classes_)} class in all rows; a classifier needs two or more")
        problem = _Problem(self, run, x_blocks, y_blocks, w_blocks, self._weights(counts))
        weights = self._minimised(problem, on_iteration or (lambda step, slope: None))
        n_features = len(weights) - 1 if self.fit_intercept else len(weights)
        self.coef_ = np.ascontiguousarray(weights[:n_features].T)
        self.intercept_ = weights[-1].copy() if self.fit_intercept else np.zeros(weights.shape[1])
        if is_cut(X):
            keep_columns(self, X, n_features)
        self.n_passes_ = problem.n_passes
        return self

    def decision_function(self, X: Any) -> Any:
        """Return scores, (n_rows, n_classes), or (n_rows,) where there are two classes; by block where X is blocks."""
        check_is_fitted(self)
        n_columns = len(self.intercept_)
        return self._mapped(_scores, X, np.float64, n_columns if n_columns > 1 else None)

    def predict(self, X: Any) -> Any:
        """Return the class of each row; by block where X is blocks."""
        check_is_fitted(self)
        return self._mapped(_predicted, X, self.classes_.dtype, classes=self.classes_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def _mapped(
        self, function: Callable[..., Any], X: Any, dtype: Any, n_columns: int | None = None, **more: Any
    ) -> Any:
        model = (np.ascontiguousarray(self.coef_.T), self.intercept_)
        if not is_cut(X):
            return map_rows(self, partial(function, model=model, **more), X, dtype, n_columns)
        blocks = as_blocks(X)
        run = runner(blocks)
        return run.map(function, blocks, model=run.share(model), **more)

    def _weights(self, counts: dict[Any, float]) -> Floats:
        """Return C times the weight of a row of each class."""
        n_rows = sum(counts.values())
        if self.class_weight == "balanced":
            return np.asarray([self.C * n_rows / (len(counts) * counts[name]) for name in self.classes_])
        weight_of = self.class_weight or {}
        unknown = set(weight_of) - set(counts)
        if unknown:
            raise ValueError(f"class_weight: no class {min(unknown, key=str)!r} in y; correct the name")
        return np.asarray([self.C * weight_of.get(name, 1.0) for name in self.classes_])

    def _minimised(self, problem: _Problem, on_iteration: OnIteration) -> Floats:
        """Minimise by Newton steps; the first one starts at zero."""
        weights = np.zeros(problem.shape)
        value, slope, states = problem.value(weights)
        first = np.linalg.norm(slope)
        n_steps = 0
        while np.linalg.norm(slope) > self.tol * first and n_steps < self.max_iter:
            step = problem.newton_step(slope, states, min(0.1, np.sqrt(np.linalg.norm(slope) / first)))
            size, decrease = 1.0, _ARMIJO * float(np.vdot(slope, step))
            for _ in range(_MAX_HALVINGS):
                tried = problem.value(weights + size * step)
                if tried[0] <= value + size * decrease or _is_flat(value, slope, *tried[:2]):
                    break
                size /= 2
            else:
                break  # no step in this direction gets lower: rounding decides from here on
            weights = weights + size * step
            value, slope, states = tried
            n_steps += 1
            on_iteration(n_steps, float(np.linalg.norm(slope) / first))
        self.n_iter_ = n_steps
        self.objective_ = float(value)
        self.is_converged_ = bool(np.linalg.norm(slope) <= self.tol * first)
        return weights


class _Problem:
    """The objective, its gradient and its curvature, as passes over the blocks."""

    def __init__(
        self,
        model: LinearClassifier,
        run: Runner,
        X: list[Any],
        y: list[Any],
        row_weights: list[Any],
        class_weights: Floats,
    ) -> None:
        self.run = run
        self.loss = model.loss
        self.is_one_vs_rest = model.is_one_vs_rest
        self.n_passes = 0
        self.groups = run.grouped(X, run.map(_encoded, y, row_weights, classes=model.classes_))
        n_features, is_dense = run.gather(run.map(_kind, X[:1]))[0]
        n_columns = len(class_weights) if len(class_weights) > 2 else 1
        self.shape = (n_features + model.fit_intercept, n_columns)
        self.is_small = is_dense and self.shape[0] * self.shape[1] <= MOST_WEIGHTS
        self.class_weights = class_weights
        self.has_intercept = model.fit_intercept
        self.penalty = np.ones((self.shape[0], 1))
        if model.fit_intercept and not model.is_intercept_penalised:
            self.penalty[-1] = 0

    def value(self, weights: Floats) -> tuple[float, Floats, list[Any]]:
        """Return the objective, its gradient, and the state of each group, which stays on the workers."""
        self.n_passes += 1
        passed = self.run.map(
            _loss_pass,
            *self.groups,
            weights=self.run.share(weights),
            loss=self.loss,
            class_weights=self.class_weights,
            has_intercept=self.has_intercept,
        )
        value, slope = self.run.total(add, self.run.map(_sums, passed))
        return (
            value + 0.5 * float(np.vdot(weights, self.penalty * weights)),
            slope + self.penalty * weights,
            self.run.map(_state, passed),
        )

    def curved(self, states: list[Any], direction: Floats) -> Floats:
        """Return the second derivative times a direction."""
        self.n_passes += 1
        passed = self.run.map(
            _curve_pass,
            self.groups[0],
            states,
            direction=self.run.share(direction),
            loss=self.loss,
            has_intercept=self.has_intercept,
        )
        return np.asarray(self.run.total(add, passed) + self.penalty * direction)

    def newton_step(self, slope: Floats, states: list[Any], accuracy: float) -> Floats:
        """Solve for the Newton step: exactly where there are few weights, else by conjugate gradients while it pays."""
        if self.is_small:
            self.n_passes += 1
            passed = self.run.map(
                _hessian_pass,
                self.groups[0],
                states,
                n_columns=self.shape[1],
                loss=self.loss,
                has_intercept=self.has_intercept,
                is_one_vs_rest=self.is_one_vs_rest,
            )
            return solved(self.run.total(add, passed), self.penalty, slope)
        axis = 0 if self.is_one_vs_rest else None
        step = np.zeros_like(slope)
        rest = -slope
        direction = rest
        size = np.sum(rest * rest, axis=axis)
        target = accuracy**2 * np.sum(size)
        for _ in range(_MAX_CG_STEPS):
            curved = self.curved(states, direction)
            curvature = np.sum(direction * curved, axis=axis)
            along = np.divide(size, curvature, out=np.zeros_like(size), where=curvature > 0)
            step = step + along * direction
            rest = rest - along * curved
            new_size = np.sum(rest * rest, axis=axis)
            if np.sum(new_size) <= target:
                break
            direction = rest + np.divide(new_size, size, out=np.zeros_like(size), where=size > 0) * direction
            size = new_size
        return step


def _is_flat(value: float, slope: Floats, new_value: float, new_slope: Floats) -> bool:
    """Return whether the values differ by rounding alone, while the gradient is halved at least."""
    is_equal = abs(new_value - value) <= _ROUNDING * abs(value)
    return is_equal and bool(np.linalg.norm(new_slope) < 0.5 * np.linalg.norm(slope))


class _Targets(NamedTuple):
    """Of a block's rows: the numbers of their classes (n,), and their weights (n,) or None."""

    numbers: NDArray[np.intp]
    weights: Floats | None


def _class_counts(y: Any, weights: Floats | None) -> dict[Any, float]:
    """Return the weight of all rows of each class that has any."""
    if weights is None:
        names, counts = np.unique(np.asarray(y), return_counts=True)
        return dict(zip(names.tolist(), counts.tolist(), strict=True))
    names, numbers = np.unique(np.asarray(y)[weights > 0], return_inverse=True)
    return dict(zip(names.tolist(), np.bincount(numbers, weights[weights > 0]).tolist(), strict=True))


def _add_counts(left: dict[Any, float], right: dict[Any, float]) -> dict[Any, float]:
    return {name: left.get(name, 0) + right.get(name, 0) for name in {**left, **right}}


def _encoded(y: Any, weights: Floats | None, classes: NDArray[Any]) -> _Targets:
    numbers = np.searchsorted(classes, np.asarray(y))
    # A row of weight 0 can be of a class that is none; any number will do for it.
    return _Targets(numbers if weights is None else np.minimum(numbers, len(classes) - 1), weights)


def _kind(X: Any) -> tuple[int, bool]:
    """Return the number of columns, and whether the block is dense."""
    return int(X.shape[1]), isinstance(X, np.ndarray)


def _times(X: Any, weights: Floats, has_intercept: bool) -> Floats:
    return np.asarray(X @ weights[:-1] + weights[-1] if has_intercept else X @ weights)


def _back(X: Any, rows: Floats, has_intercept: bool) -> Floats:
    product = np.asarray(X.T @ rows)
    return np.vstack([product, rows.sum(axis=0)]) if has_intercept else product


def _loss_pass(
    xs: list[sparse.csr_array],
    targets: list[_Targets],
    weights: Floats,
    loss: Loss,
    class_weights: Floats,
    has_intercept: bool,
) -> tuple[float, Floats, list[Any]]:
    """Return loss, gradient, and for each block its rows' weights with the state of the loss."""
    value, slope, states = 0.0, np.zeros_like(weights), []
    for x, (y, sample_weights) in zip(xs, targets, strict=True):
        row_weights = class_weights[y] if sample_weights is None else class_weights[y] * sample_weights
        losses, slopes, state = loss.value_and_slope(_times(x, weights, has_intercept), y)
        value += float(row_weights @ losses)
        slope += _back(x, row_weights[:, None] * slopes, has_intercept)
        states.append((row_weights, state))
    return value, slope, states


def _sums(passed: tuple[float, Floats, list[Any]]) -> tuple[float, Floats]:
    return passed[:2]


def _state(passed: tuple[float, Floats, list[Any]]) -> list[Any]:
    return passed[2]


def _curve_pass(
    xs: list[sparse.csr_array], states: list[Any], direction: Floats, loss: Loss, has_intercept: bool
) -> Floats:
    total = np.zeros_like(direction)
    for x, (row_weights, state) in zip(xs, states, strict=True):
        curved = loss.curve(state, _times(x, direction, has_intercept))
        total += _back(x, row_weights[:, None] * curved, has_intercept)
    return total


def _hessian_pass(
    xs: list[Floats], states: list[Any], n_columns: int, loss: Loss, has_intercept: bool, is_one_vs_rest: bool
) -> Floats:
    curvatures = []
    for row_weights, state in states:
        curvature = np.empty((len(row_weights), n_columns, n_columns))
        for column in range(n_columns):
            along = np.zeros((len(row_weights), n_columns))
            along[:, column] = 1
            curvature[:, :, column] = row_weights[:, None] * loss.curve(state, along)
        curvatures.append(curvature)
    return hessian(xs, curvatures, has_intercept, is_one_vs_rest)


def row_scores(X: Any, model: tuple[Floats, Floats]) -> Floats:
    """Return the scores of a block's rows, (n_rows, n_columns), under the model (weights, intercepts)."""
    return np.asarray(X @ model[0] + model[1])


def _scores(X: Any, model: tuple[Floats, Floats]) -> Floats:
    scores = row_scores(X, model)
    return scores[:, 0] if scores.shape[1] == 1 else scores


def _predicted(X: Any, model: tuple[Floats, Floats], classes: NDArray[Any]) -> NDArray[Any]:
    scores = _scores(X, model)
    return classes[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)]
