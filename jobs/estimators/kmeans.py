"""k-means on blocks of rows: k-means‖ starts, then Lloyd's iterations of all of them, one pass over the blocks each."""

from __future__ import annotations

from functools import partial, reduce
from typing import Any, NamedTuple

import numpy as np
from dask.base import is_dask_collection
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClusterMixin, TransformerMixin
from sklearn.utils.validation import check_array, check_is_fitted

from jobs import sharing
from jobs.estimators import kmeans_kernels as kernels
from jobs.estimators.blocks import is_cut, runner
from jobs.estimators.inputs import Blocks, checked_blocks, map_rows
from jobs.estimators.kmeans_kernels import Array, Assigned, Floats
from jobs.estimators.kmeans_start import start_centres
from jobs.estimators.moments import Moments, merged
from jobs.estimators.sample_weights import weights_of_blocks

# Starts whose inertias differ by no more than this have ended alike: rounding must not choose between them.
_ALIKE = 1e-9
# A cluster of which no more than this share is left has lost its sums to rounding, if weights are no integers.
_LEFT = 1e-6


class KMeans(ClusterMixin, TransformerMixin, BaseEstimator):
    """k-means for tables of any length; the result does not depend on how the rows are cut into blocks.

    The start is k-means‖ (Bahmani, Moseley, Vattani, Kumar and Vassilvitskii, Scalable K-Means++, 2012), where each
    candidate weighs as many rows as are nearest to it. An empty cluster is moved to the row farthest from its centre.
    With sample weights, a row counts its weight wherever rows are counted or added up; one of weight 0 is as good as
    absent.

    Parameters
    ----------
    n_clusters : int
    init : "k-means||" or array-like of shape (k, p)
        How to start; from given centres there is one start, whatever `n_init` says.
    n_init : int
        Starts; the one of least inertia is kept.
    max_iter : int
        Iterations of a start at most.
    tol : float
        A start ends when the centres' squared movement is at most `tol` × the mean variance of the columns.
    random_state : int

    Attributes
    ----------
    cluster_centers_ : ndarray of shape (k, p)
    inertia_ : float
        Sum of the (weighted) squared distances of rows to their centres.
    n_iter_ : int
        Iterations of the start that was kept.
    history_ : list of float
        Inertia before each of these iterations.
    labels_ : ndarray of int32, shape (n,)
        Cluster of each row, where X is in memory; `predict` gives them for Dask collections, lazily, and for blocks.
    n_features_in_ : int
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        init: Any = "k-means||",
        n_init: int = 3,
        max_iter: int = 300,
        tol: float = 1e-4,
        random_state: int = 0,
    ) -> None:
        self.n_clusters = n_clusters
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state

    @sharing.release_on_error()
    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> KMeans:
        """Fit to X (n, p), an array or a Dask collection, with weights (n,) if given.

        Raises
        ------
        ValueError
            When there are fewer rows (of a weight above zero) than clusters, values are missing or infinite, or a
            weight is negative, missing or infinite.
        """
        for name in ("n_clusters", "n_init", "max_iter"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} should be at least 1.")
        blocks = checked_blocks(self, X, None, sample_weight)
        table = _Table(blocks)
        parts = table.run.map(_moments, table.rows, table.weights)
        # Centres that are given need no look at the rows: the first pass is on its way while the moments come back.
        given = None if isinstance(self.init, str) else self._given(blocks.n_features)
        first = None if given is None else table.passed(given)
        total = table.run.total(merged, parts)
        if total.n < self.n_clusters:
            counted = "" if sample_weight is None else " (of a weight above zero)"
            raise ValueError(f"n_samples={total.n}{counted} should be >= n_clusters={self.n_clusters}.")
        if not np.isfinite(total.means).all():
            raise ValueError("Input X contains NaN or infinity; impute or drop those rows first.")
        tolerance = self.tol * float((total.products / total.weight).mean())
        fits = _lloyd(table, self._found(table) if given is None else given, self.max_iter, tolerance, first)
        least = min(fit.inertia for fit in fits)
        best = next(fit for fit in fits if fit.inertia <= least * (1 + _ALIKE))
        self.cluster_centers_, self.inertia_, self.history_ = best
        self.n_iter_ = len(self.history_)
        if not (is_dask_collection(X) or is_cut(X)):
            self.labels_ = self.predict(X)
        return self

    def _found(self, table: _Table) -> Floats:
        """Return centres (s, k, p) that are found among the rows."""
        if self.init != "k-means||":
            raise ValueError(f"init={self.init!r} should be 'k-means||' or an array of centres.")
        seeds = np.random.SeedSequence(self.random_state).generate_state(self.n_init).tolist()
        return start_centres(table.run, table.rows, table.firsts, self.n_clusters, seeds, table.weights)

    def _given(self, p: int) -> Floats:
        """Return the centres (1, k, p) that the user gives."""
        given = check_array(self.init, dtype=np.float64)
        if given.shape != (self.n_clusters, p):
            raise ValueError(
                f"init has the shape {given.shape}, not the {(self.n_clusters, p)} of clusters and columns."
            )
        return np.array(given[None])

    def predict(self, X: Any) -> Any:
        """Return the number of the nearest centre (n,), int32; lazily for Dask collections."""
        check_is_fitted(self)
        return map_rows(self, partial(kernels.nearest, centres=self.cluster_centers_), X, np.int32)

    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Fit to X (n, p), with weights (n,) if given, and return the number of the nearest centre of each row."""
        return self.fit(X, sample_weight=sample_weight).predict(X)

    def transform(self, X: Any) -> Any:
        """Return the distance to each centre (n, k); lazily for Dask collections."""
        check_is_fitted(self)
        function = partial(kernels.distances, centres=self.cluster_centers_)
        return map_rows(self, function, X, np.float64, len(self.cluster_centers_))


class _Table:
    """Blocks of rows in groups, a task each: an iteration costs the same however small the blocks are."""

    def __init__(self, blocks: Blocks) -> None:
        self.run = runner(blocks.rows)
        weights = weights_of_blocks(self.run, blocks.weights, blocks.rows)
        self.rows, self.firsts, self.weights = self.run.grouped(blocks.rows, blocks.starts, weights)

    def passed(self, centres: Floats) -> list[Any]:
        """Assign all rows to the nearest of each set of centres (s, k, p); return the parts where they are."""
        return self.run.map(_assigned, self.rows, self.weights, centres=self.run.share(centres))

    def added(self, parts: list[Any]) -> Assigned:
        """Add up what `passed` returned."""
        found: Assigned = self.run.total(kernels.added, parts)
        return found

    def assigned(self, centres: Floats) -> Assigned:
        """Assign all rows to the nearest of each set of centres (s, k, p), and add up."""
        return self.added(self.passed(centres))

    def farthest(self, centres: Floats, n: int) -> _Far:
        """Return the n rows of a weight above zero that are farthest from their centres (k, p)."""
        parts = self.run.map(_farthest, self.rows, self.firsts, self.weights, centres=self.run.share(centres), n=n)
        found: _Far = self.run.total(partial(_farther, n=n), parts)
        return found


class _Fit(NamedTuple):
    centres: Floats
    inertia: float
    history: list[float]


def _lloyd(
    table: _Table, starts: Floats, max_iter: int, tolerance: float, first: list[Any] | None = None
) -> list[_Fit]:
    """Iterate from all starts (s, k, p) until each has come to rest; the `first` pass may have begun before."""
    centres = starts.copy()
    histories: list[list[float]] = [[] for _ in starts]
    moving = list(range(len(starts)))
    for _ in range(max_iter):
        found = table.assigned(centres[moving]) if first is None else table.added(first)
        first = None
        still = []
        for at, sums, counts, inertia in zip(moving, *found, strict=True):
            histories[at].append(float(inertia))
            if (counts == 0).any():
                sums, counts = _relocated(table, centres[at], sums, counts)
            # A cluster can still be empty where there are fewer distinct rows than clusters: it stays where it is.
            held = counts[:, None]
            moved = np.divide(sums, held, out=centres[at].copy(), where=held > 0)
            shift = float(((moved - centres[at]) ** 2).sum())
            centres[at] = moved
            if shift > tolerance:
                still.append(at)
        moving = still
        if not moving:
            break
    inertias = table.assigned(centres).inertias.tolist()
    return [_Fit(*each) for each in zip(centres, inertias, histories, strict=True)]


def _relocated(table: _Table, centres: Floats, sums: Floats, counts: Floats) -> tuple[Floats, Floats]:
    """Take the rows farthest from their centres out of their clusters, one for each empty cluster."""
    empty = np.flatnonzero(counts == 0)
    far = table.farthest(centres, len(empty))
    sums, left = sums.copy(), counts.copy()
    for cluster, square, label, row, weight in zip(empty, far.squares, far.labels, far.rows, far.weights, strict=False):
        if square > 0:
            sums[label] -= weight * row
            left[label] -= weight
            sums[cluster], left[cluster] = row, 1
    return sums, np.where(left > _LEFT * counts, left, 0.0)


class _Far(NamedTuple):
    """Rows far from their centres, farthest first: squared distances (m,), numbers, labels, rows (m, p), weights (m,).

    Numbers are global; the squared distance of a row of weight 0 is given as 0.
    """

    squares: Floats
    numbers: NDArray[np.int64]
    labels: NDArray[np.int32]
    rows: Floats
    weights: Floats


# --- on the workers: functions of a group of blocks ---------------------------------------------------------------


def _moments(blocks: list[Array], weights: list[Floats | None]) -> Moments:
    return reduce(merged, (kernels.moments(rows, each) for rows, each in zip(blocks, weights, strict=True)))


def _assigned(blocks: list[Array], weights: list[Floats | None], centres: Floats) -> Assigned:
    return kernels.assigned(blocks, centres, weights)


def _farthest(blocks: list[Array], firsts: list[int], weights: list[Floats | None], centres: Floats, n: int) -> _Far:
    parts = []
    for rows, first, given in zip(blocks, firsts, weights, strict=True):
        of_rows = np.ones(len(rows)) if given is None else given
        near = kernels.near(rows, centres)
        squares = np.where(of_rows > 0, near.squares, 0.0)
        chosen = np.lexsort((np.arange(len(rows)), -squares))[:n]
        found = rows[chosen].astype(np.float64)
        parts.append(_Far(squares[chosen], first + chosen, near.labels[chosen], found, of_rows[chosen]))
    return reduce(partial(_farther, n=n), parts)


def _farther(a: _Far, b: _Far, n: int) -> _Far:
    both = _Far(*(np.concatenate([a[part], b[part]]) for part in range(len(a))))
    chosen = np.lexsort((both.numbers, -both.squares))[:n]
    return _Far._make(part[chosen] for part in both)
