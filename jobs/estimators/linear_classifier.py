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
from typing import Any, ClassVar, Literal

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from jobs import sharing
from jobs.estimators import linear_passes as passes
from jobs.estimators.blocks import Runner, add, as_blocks, is_cut, runner
from jobs.estimators.hessian import MOST_WEIGHTS, solved
from jobs.estimators.inputs import checked_blocks, keep_columns, map_rows
from jobs.estimators.linear_passes import Floats, Loss
from jobs.estimators.sample_weights import weights_of_blocks

OnIteration = Callable[[int, float], None]

_MAX_CG_STEPS = 100
_MAX_HALVINGS = 30
_ARMIJO = 1e-4
# What sums of losses may be wrong by, relative to the sum.
_ROUNDING = 1e-12


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

    @sharing.release_on_error()
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
        counts: dict[Any, float] = run.total(passes.add_counts, run.map(passes.class_counts, y_blocks, w_blocks))
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
        return self._mapped(passes.scores, X, np.float64, n_columns if n_columns > 1 else None)

    def predict(self, X: Any) -> Any:
        """Return the class of each row; by block where X is blocks."""
        check_is_fitted(self)
        return self._mapped(passes.predicted, X, self.classes_.dtype, classes=self.classes_)

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
        self.groups = run.grouped(X, run.map(passes.encoded, y, row_weights, classes=model.classes_))
        n_features, is_dense = run.gather(run.map(passes.kind, X[:1]))[0]
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
            passes.loss_pass,
            *self.groups,
            weights=self.run.share(weights),
            loss=self.loss,
            class_weights=self.class_weights,
            has_intercept=self.has_intercept,
        )
        value, slope = self.run.total(add, self.run.map(passes.sums, passed))
        return (
            value + 0.5 * float(np.vdot(weights, self.penalty * weights)),
            slope + self.penalty * weights,
            self.run.map(passes.state, passed),
        )

    def curved(self, states: list[Any], direction: Floats) -> Floats:
        """Return the second derivative times a direction."""
        self.n_passes += 1
        passed = self.run.map(
            passes.curve_pass,
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
                passes.hessian_pass,
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
