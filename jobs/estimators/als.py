"""Matrix factorisation by alternating least squares, for ratings (explicit) and for counts or clicks (implicit).

Users and items lie in blocks: of n blocks, block b holds rows b, b + n, b + 2n, … A half-iteration solves every
block of one side where its data is; what travels is the other side's factors, O(model), never a rating. Starting
values are a function of seed and row, and a row's solution does not depend on its block, so neither the number of
blocks nor that of workers changes the result beyond rounding. Called by the recommender pipeline, and directly.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import partial
from typing import Any, Self

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from jobs import sharing
from jobs.estimators.als_blocks import InteractionBlocks, Submit, Summary, summary
from jobs.estimators.als_steps import (
    Listener,
    Start,
    Step,
    alternated,
    explicit_step,
    implicit_step,
    interleaved,
    item_vectors,
    only_copy,
    user_vectors,
)
from jobs.estimators.inputs import keep_columns

# Interactions × rank up to which one worker is quicker alone than several that must wait for each other's messages.
_SMALL = 16_000_000

Floats = NDArray[np.floating[Any]]


class _ALS(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """What both models share: the iterations, and what a fitted model can be asked."""

    rank: int
    n_iterations: int
    seed: int
    mean_: float
    _n_biases: int
    _dtypes: Sequence[Any] = (np.float64,)

    @sharing.release_on_error()
    def fit(self, X: Any, y: Any = None, *, client: Any = None, on_iteration: Listener | None = None) -> Self:
        """Fit the factors.

        Parameters
        ----------
        X : array-like, data frame or sparse matrix of shape (n_users, n_items), or InteractionBlocks
            Stored entries are the observed pairs; a stored zero counts as observed, a zero of a dense table does not.
        y : None
            Not used.
        client : distributed.Client, optional
            Needed where the blocks are futures.
        on_iteration : callable, optional
            Called with (iterations done, iterations in all, objective) after each iteration.

        Returns
        -------
        self
            With `mean_`, `objective_` (after each iteration), `user_vectors_` (an array or future a block) and
            `item_vectors_` (an array or future): the score of a pair is `mean_` plus their vectors' dot product.

        Raises
        ------
        ValueError
            When there is no stored value, or one that the model cannot take, such as one whose square overflows.
        """
        if isinstance(X, InteractionBlocks):
            blocks = X
            keep_columns(self, X, blocks.n_items)
        else:
            blocks = InteractionBlocks.of(validate_data(self, X, dtype=self._dtypes, accept_sparse="csr"))
        submit = self._submit = Submit(client)
        summaries = submit.results([submit(summary, block) for block in blocks.by_user])
        self._check(summaries)
        self.n_users_, self.n_items_ = blocks.n_users, blocks.n_items
        step, start = self._step(), self._start(blocks, summaries)
        if client is not None and sum(s.n for s in summaries) * self.rank <= _SMALL:
            whole = submit(alternated, Submit(None), blocks.by_user, blocks.by_item, step, start)
            users, items = ([submit(only_copy, whole, side)] for side in ("users", "items"))
            self.objective_ = submit.results([submit(operator.attrgetter("objectives"), whole)])[0]
            for iteration, objective in enumerate(self.objective_, 1):
                if on_iteration is not None:
                    on_iteration(iteration, self.n_iterations, objective)
        else:
            submit.locate([*blocks.by_user, *blocks.by_item])
            found = alternated(submit, blocks.by_user, blocks.by_item, step, start, on_iteration)
            users, items, self.objective_ = found
        self._items = items[0]
        self.user_vectors_ = [
            submit(user_vectors, submit.nearest(users, block), self.rank, (b, len(blocks.by_user)), near=block)
            for b, block in enumerate(blocks.by_user)
        ]
        if not np.isfinite(self.objective_).all():
            far = max((max(s.high, -s.low) for s in summaries), default=0.0)
            raise ValueError(f"interactions: values of up to {far:g} overflow; divide them all by a constant")
        self.item_vectors_ = submit(item_vectors, self._items, self.rank)
        return self

    @property
    def user_factors_(self) -> Floats:
        """Factors of all users, (n_users, rank); brought here from the workers."""
        return self._all_user_vectors()[:, : self.rank]

    @property
    def item_factors_(self) -> Floats:
        """Factors of all items, (n_items, rank); brought here from the workers."""
        return self._all_item_vectors()[:, : self.rank]

    def predict_pairs(self, users: NDArray[np.int64], items: NDArray[np.int64]) -> Floats:
        """Return the scores of pairs of user and item indices, both of shape (n,)."""
        scores = np.einsum("ij,ij->i", self._all_user_vectors()[users], self._all_item_vectors()[items])
        return np.asarray(scores + self.mean_)

    def fold_in(self, X: Any) -> Floats:
        """Return vectors of new users from what they did, (n_new, n_items): one exact half-step.

        Like `user_vectors_`: the score of an item is `mean_` plus the dot product with its row of `item_vectors_`.
        """
        check_is_fitted(self)
        matrix = scipy.sparse.csr_matrix(validate_data(self, X, dtype=self._dtypes, accept_sparse="csr", reset=False))
        items = self._submit.results([self._items])[0]
        return user_vectors(self._step(is_exact=True)(matrix, None, items), self.rank)

    def transform(self, X: Any) -> Floats:
        """Return what `fold_in` does."""
        return self.fold_in(X)

    def fit_transform(self, X: Any, y: Any = None) -> Floats:
        """Fit, and fold the same users in: a half-step beyond `user_vectors_`."""
        return self.fit(X).transform(X)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    @property
    def _n_features_out(self) -> int:
        return self.rank + 2 * self._n_biases

    def similar_items(self, item: int, n: int = 10) -> tuple[NDArray[np.int64], Floats]:
        """Return the `n` items most similar to `item` by the cosine of their factors, best first, and the cosines."""
        factors = self.item_factors_
        norms = np.linalg.norm(factors, axis=1)
        cosines = factors @ factors[item] / np.maximum(norms * norms[item], np.finfo(np.float64).tiny)
        cosines[item] = -np.inf
        best = np.argsort(-cosines, kind="stable")[: min(n, len(cosines) - 1)]
        return best, cosines[best]

    def _all_user_vectors(self) -> Floats:
        return interleaved(self._submit.results(self.user_vectors_), self.n_users_)

    def _all_item_vectors(self) -> Floats:
        vectors: Floats = self._submit.results([self.item_vectors_])[0]
        return vectors

    def _start(self, blocks: InteractionBlocks, summaries: Sequence[Summary]) -> Start:
        shape = blocks.n_users, blocks.n_items, self.rank, self._n_biases
        given = np.result_type(*(summary.dtype for summary in summaries))
        return Start(*shape, self.seed, self.n_iterations, given if given in self._dtypes else np.dtype(np.float64))

    def _check(self, summaries: Sequence[Summary]) -> None:
        n = sum(summary.n for summary in summaries)
        if n == 0:
            raise ValueError("interactions: no stored value; give at least one")
        if not all(summary.is_finite for summary in summaries):
            raise ValueError("interactions: a value is NaN or infinite; remove such entries")

    def _step(self, *, is_exact: bool = False) -> Step:
        raise NotImplementedError


class ExplicitALS(_ALS):
    """Ratings as global mean plus user bias plus item bias plus the product of factors.

    Minimises ``Σ (r - mean - b_u - b_i - p_u·q_i)² + regularization (Σ|p|² + Σ|q|²) + bias_regularization (Σb²)`` over
    the observed pairs; each half-iteration solves factors and biases of one side together, exactly
    (Zhou et al. 2008, without their weighting of the penalty by counts; Koren, Bell & Volinsky 2009, eq. 5).

    Parameters
    ----------
    rank : int
        Length of the factor vectors.
    regularization, bias_regularization : float
        L2 weights, above 0, in units of ratings: a user with that many ratings is drawn half-way to the mean.
    n_iterations : int
        Iterations of both sides.
    seed : int
        Seed of the starting factors.
    """

    _n_biases = 1

    def __init__(
        self,
        rank: int = 64,
        *,
        regularization: float = 14.0,
        bias_regularization: float = 4.0,
        n_iterations: int = 10,
        seed: int = 0,
    ) -> None:
        self.rank = rank
        self.regularization = regularization
        self.bias_regularization = bias_regularization
        self.n_iterations = n_iterations
        self.seed = seed

    def _check(self, summaries: Sequence[Summary]) -> None:
        super()._check(summaries)
        self.mean_ = sum(s.total for s in summaries) / sum(s.n for s in summaries)

    def _step(self, *, is_exact: bool = False) -> Step:
        return partial(
            explicit_step, mean=self.mean_, penalty=self.regularization, bias_penalty=self.bias_regularization
        )


class ImplicitALS(_ALS):
    """Preferences from counts: every pair counts, an observed one with confidence ``1 + alpha * value``.

    Minimises ``Σ c_ui (1[value > 0] - x_u·y_i)² + regularization (Σ|x|² + Σ|y|²)`` over *all* pairs
    (Hu, Koren & Volinsky 2008, eq. 3); values must be above 0. Counts in float32 give factors in float32, in half the
    memory and less time, whose last digits depend on the number of blocks; any other type is computed in float64.

    Parameters
    ----------
    rank : int
        Length of the factor vectors.
    alpha : float
        Confidence that one unit of value adds.
    regularization : float
        L2 weight, above 0.
    n_iterations : int
        Iterations of both sides.
    n_cg_steps : int
        Conjugate-gradient steps a row and half-iteration, from the iteration before; 0 solves exactly by Cholesky.
    seed : int
        Seed of the starting factors.
    """

    _n_biases = 0
    _dtypes = (np.float64, np.float32)
    mean_ = 0.0

    def __init__(
        self,
        rank: int = 64,
        *,
        alpha: float = 2.0,
        regularization: float = 30.0,
        n_iterations: int = 10,
        n_cg_steps: int = 3,
        seed: int = 0,
    ) -> None:
        self.rank = rank
        self.alpha = alpha
        self.regularization = regularization
        self.n_iterations = n_iterations
        self.n_cg_steps = n_cg_steps
        self.seed = seed

    def _check(self, summaries: Sequence[Summary]) -> None:
        super()._check(summaries)
        low = min(s.low for s in summaries)
        if low <= 0:
            name = type(self).__name__
            raise ValueError(f"Negative values in data passed to {name}, or zeros: {low:g}; a count is above 0.")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def _step(self, *, is_exact: bool = False) -> Step:
        return partial(
            implicit_step, alpha=self.alpha, penalty=self.regularization, n_cg_steps=0 if is_exact else self.n_cg_steps
        )
