"""Non-negative matrix factorisation of blocks of rows, mostly sparse: the topics of the text_mining pipeline.

X ≈ W·H with W, H ≥ 0 in the Frobenius norm. The rows of W stay on the workers beside their rows of X; an iteration
returns Wᵀ·X and Wᵀ·W, of the model's size. Start and iterations are functions of all rows together, so the result does
not depend, but for rounding, on how the rows are cut into blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from jobs import sharing
from jobs.estimators.blocks import Runner, add, as_blocks, is_cut, runner
from jobs.estimators.inputs import checked_blocks, keep_columns, map_rows

Floats = NDArray[np.float64]

_N_OVERSAMPLED = 10
_N_POWER_PASSES = 5
# Sweeps over the columns of W (or H) for one product with X, which costs more than they do (Gillis, Glineur 2012).
_N_SWEEPS = 5
_N_TRANSFORM_SWEEPS = 100


class NMF(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Topics of documents: rows of H are topics over terms, rows of W say how much of each a document has.

    Hierarchical alternating least squares, started from the non-negative parts of the leading singular vectors.

    Parameters
    ----------
    n_components : int
        Topics.
    max_iter : int
        Iterations at most, one pass over the data each.
    tol : float
        Stop when an iteration lowers ‖X − WH‖² by less than `tol` times what it is.
    seed : int
        Seed of the randomised singular value decomposition.

    Attributes
    ----------
    components_ : ndarray of float64, shape (n_components, n_features)
        H, each row of unit length.
    reconstruction_err_ : float
        ‖X − WH‖ after the last iteration.
    norm_ : float
        ‖X‖, to compare the error with.
    n_iter_ : int
        Iterations done.

    Notes
    -----
    X has no negative values. It is an array, a data frame or a sparse matrix; a dask.array or dask.dataframe, for which
    `transform` is lazy; or blocks: a list of arrays or sparse matrices, or of futures of them.

    References
    ----------
    Cichocki, Phan: Fast local algorithms for large scale nonnegative matrix and tensor factorizations, IEICE 2009.
    Boutsidis, Gallopoulos: SVD based initialization: a head start for NMF, Pattern Recognition 41 (2008).
    """

    def __init__(self, n_components: int = 10, max_iter: int = 200, tol: float = 1e-5, seed: int = 0) -> None:
        self.n_components = n_components
        self.max_iter = max_iter
        self.tol = tol
        self.seed = seed

    @sharing.release_on_error()
    def fit(self, X: Any, y: Any = None, on_iteration: Callable[[int, float], None] | None = None) -> NMF:
        """Fit to rows `X`; `on_iteration` is called with the number of iterations and the relative error.

        Raises
        ------
        ValueError
            When there are more topics than rows or columns, a value is negative, missing or infinite, or X is zero
            throughout.
        """
        blocks = as_blocks(X) if is_cut(X) else checked_blocks(self, X).rows
        run = runner(blocks)
        (groups,) = run.grouped(blocks)
        total: _Sizes = run.total(_add_sizes, run.map(_sizes, groups))
        n_rows, n_columns, squares, least = total
        if not np.isfinite(squares):
            raise ValueError("Input X contains NaN or infinity; impute or drop those rows first.")
        if least < 0:
            raise ValueError("Negative values in data passed to NMF; it takes counts, weights and the like.")
        if not 1 <= self.n_components <= min(n_rows, n_columns):
            raise ValueError(
                f"n_components={self.n_components} should be between 1 and the smaller of n_samples={n_rows} and "
                f"n_features={n_columns}."
            )
        if squares == 0:
            raise ValueError("X: zero throughout; there are no topics in it")
        topics = self._start(run, groups, n_columns)
        shares = [None] * len(groups)
        error = squares
        for n_done in range(1, self.max_iter + 1):
            passed = run.map(_share_pass, groups, shares, topics=run.share(topics))
            shares = run.map(_shares, passed)
            products, gram, cross = run.total(add, run.map(_sums, passed))
            before, error = error, max(squares - 2 * cross + float(np.sum(gram * (topics @ topics.T))), 0.0)
            self.n_iter_ = n_done
            if on_iteration:
                on_iteration(n_done, float(np.sqrt(error / squares)))
            if n_done > 1 and before - error <= self.tol * before:
                break
            topics = _swept(topics.T, products.T, gram, _N_SWEEPS).T
        lengths = np.linalg.norm(topics, axis=1, keepdims=True)
        self.components_ = np.ascontiguousarray(topics / np.where(lengths > 0, lengths, 1))
        self.reconstruction_err_ = float(np.sqrt(error))
        self.norm_ = float(np.sqrt(squares))
        if is_cut(X):
            keep_columns(self, X, n_columns)
        return self

    def transform(self, X: Any) -> Any:
        """Return W for rows `X`, (n_rows, n_components); by block where X is blocks, lazily for Dask collections."""
        check_is_fitted(self)
        if not is_cut(X):
            return map_rows(self, partial(_transformed, topics=self.components_), X, np.float64, len(self.components_))
        blocks = as_blocks(X)
        run = runner(blocks)
        return run.map(_transformed, blocks, topics=run.share(self.components_))

    @sharing.release_on_error()
    def fit_transform(self, X: Any, y: Any = None) -> Any:
        """Fit, and return W."""
        return self.fit(X).transform(X)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.input_tags.positive_only = True
        return tags

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)

    def _start(self, run: Runner, groups: list[Any], n_columns: int) -> Floats:
        """Return the larger non-negative part of each leading right singular vector."""
        size = min(self.n_components + _N_OVERSAMPLED, n_columns)
        basis = np.linalg.qr(np.random.default_rng(self.seed).standard_normal((n_columns, size)))[0]
        for _ in range(_N_POWER_PASSES):
            basis = np.linalg.qr(run.total(add, run.map(_squared, groups, basis=run.share(basis))))[0]
        gram = run.total(add, run.map(_gram, groups, basis=run.share(basis)))
        rotation = np.linalg.eigh(gram)[1][:, ::-1][:, : self.n_components]
        vectors = basis @ rotation
        above, below = run.total(add, run.map(_parts, groups, basis=run.share(vectors)))
        up, down = np.maximum(vectors, 0), np.maximum(-vectors, 0)
        is_up = above * np.sum(up**2, axis=0) >= below * np.sum(down**2, axis=0)
        return np.ascontiguousarray(np.where(is_up, up, down).T)


def _swept(values: Floats, products: Floats, gram: Floats, n_sweeps: int) -> Floats:
    """Lower ‖X − values·Hᵀ‖² column by column: products = X·H, (n_rows, k); gram = Hᵀ·H, (k, k)."""
    values = np.asfortranarray(values)
    products = np.asfortranarray(products)
    for _ in range(n_sweeps):
        for column in range(len(gram)):
            if gram[column, column] > 0:
                slope = products[:, column] - values @ gram[:, column]
                values[:, column] = np.maximum(0, values[:, column] + slope / gram[column, column])
    return values


class _Sizes(NamedTuple):
    n_rows: int
    n_columns: int
    squares: float
    least: float


def _sizes(xs: list[Any]) -> _Sizes:
    values = [x.data if sparse.issparse(x) else x.ravel() for x in xs]
    with np.errstate(over="ignore"):
        squares = float(sum(np.sum(each.astype(np.float64) ** 2) for each in values))
    return _Sizes(
        sum(x.shape[0] for x in xs), xs[0].shape[1], squares, float(min(each.min(initial=0) for each in values))
    )


def _add_sizes(left: _Sizes, right: _Sizes) -> _Sizes:
    return _Sizes(
        left.n_rows + right.n_rows, left.n_columns, left.squares + right.squares, min(left.least, right.least)
    )


def _squared(xs: list[sparse.csr_array], basis: Floats) -> Floats:
    """XᵀX·basis."""
    return np.asarray(sum(x.T @ (x @ basis) for x in xs))


def _gram(xs: list[sparse.csr_array], basis: Floats) -> Floats:
    images = [x @ basis for x in xs]
    return np.asarray(sum(image.T @ image for image in images))


def _parts(xs: list[sparse.csr_array], basis: Floats) -> tuple[Floats, Floats]:
    """Sums of the squares of what is above and below zero in each column of X·basis."""
    images = [x @ basis for x in xs]
    return (
        np.asarray(sum(np.sum(np.maximum(image, 0) ** 2, axis=0) for image in images)),
        np.asarray(sum(np.sum(np.minimum(image, 0) ** 2, axis=0) for image in images)),
    )


def _share_pass(
    xs: list[sparse.csr_array], shares: list[Floats] | None, topics: Floats
) -> tuple[list[Floats], tuple[Floats, Floats, float]]:
    """Improve W under H = topics; return it by block, and the sums WᵀX, WᵀW and ⟨X·Hᵀ, W⟩."""
    gram = topics @ topics.T
    new, products, squares, cross = [], np.zeros_like(topics), np.zeros_like(gram), 0.0
    for at, x in enumerate(xs):
        image = x @ topics.T
        start = np.zeros_like(image) if shares is None else shares[at].copy(order="F")
        share = _swept(start, image, gram, _N_SWEEPS)
        products += (x.T @ share).T
        squares += share.T @ share
        cross += float(np.vdot(image, share))
        new.append(share)
    return new, (products, squares, cross)


def _shares(passed: tuple[list[Floats], Any]) -> list[Floats]:
    return passed[0]


def _sums(passed: tuple[Any, tuple[Floats, Floats, float]]) -> tuple[Floats, Floats, float]:
    return passed[1]


def _transformed(x: sparse.csr_array, topics: Floats) -> Floats:
    # So many sweeps for each row, whatever the others need: a row's result is its own.
    image = x @ topics.T
    return np.ascontiguousarray(_swept(np.zeros_like(image), image, topics @ topics.T, _N_TRANSFORM_SWEEPS))
