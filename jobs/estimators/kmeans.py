"""k-means on blocks of rows: a k-means‖ start, then Lloyd's iterations, one pass over the blocks each."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn import cluster
from sklearn.base import BaseEstimator, ClusterMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from jobs.estimators import kmeans_kernels as kernels
from jobs.estimators.dense_blocks import Blocks, dense_blocks, map_rows
from jobs.estimators.moments import merged, moments
from jobs.estimators.sparse_blocks import Runner, add, runner

# Bahmani et al. see no gain beyond five rounds that each take about two candidates a cluster.
_N_ROUNDS = 5
_OVERSAMPLING = 2
# Starts of the clustering of the candidates, which are few.
_N_CANDIDATE_STARTS = 10


class KMeans(ClusterMixin, TransformerMixin, BaseEstimator):
    """k-means for tables of any length; the result does not depend on how the rows are cut into blocks.

    The start is k-means‖ (Bahmani, Moseley, Vattani, Kumar and Vassilvitskii, Scalable K-Means++, 2012), where each
    candidate weighs as many rows as are nearest to it. An empty cluster is moved to the row farthest from its centre.

    Parameters
    ----------
    n_clusters : int
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
        Sum of the squared distances of rows to their centres.
    n_iter_ : int
        Iterations of the start that was kept.
    history_ : list of float
        Inertia before each of these iterations.
    n_features_in_ : int
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        n_init: int = 3,
        max_iter: int = 300,
        tol: float = 1e-4,
        random_state: int = 0,
    ) -> None:
        self.n_clusters = n_clusters
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> KMeans:
        """Fit to X (n, p), an array or a Dask collection.

        Raises
        ------
        ValueError
            When there are fewer rows than clusters, or values are missing or infinite.
        """
        blocks = dense_blocks(X)
        run = runner(blocks.rows)
        parts = run.map(moments, blocks.rows, with_products=False)
        total = run.total(merged, parts)
        if total.n < self.n_clusters:
            raise ValueError(f"n_samples={total.n} should be >= n_clusters={self.n_clusters}.")
        if not np.isfinite(total.means).all():
            raise ValueError("Input X contains NaN or infinity; impute or drop those rows first.")
        tolerance = self.tol * float((total.products / total.weight).mean())
        starts = [_Start(blocks, run, self.n_clusters, self.random_state, start) for start in range(self.n_init)]
        fits = [_lloyd(blocks, run, start.centres(), self.max_iter, tolerance) for start in starts]
        best = min(fits, key=lambda fit: fit.inertia)
        self.cluster_centers_, self.inertia_, self.history_ = best
        self.n_iter_ = len(self.history_)
        self.n_features_in_ = blocks.n_features
        return self

    def predict(self, X: Any) -> Any:
        """Return the number of the nearest centre (n,), int32; lazily for Dask collections."""
        check_is_fitted(self)
        return map_rows(partial(kernels.nearest, centres=self.cluster_centers_), X, None, np.int32)

    def transform(self, X: Any) -> Any:
        """Return the distance to each centre (n, k); lazily for Dask collections."""
        check_is_fitted(self)
        return map_rows(partial(kernels.distances, centres=self.cluster_centers_), X, self.n_clusters, np.float64)


class _Fit(NamedTuple):
    centres: NDArray[np.float64]
    inertia: float
    history: list[float]


def _lloyd(blocks: Blocks, run: Runner, centres: NDArray[np.float64], max_iter: int, tolerance: float) -> _Fit:
    history: list[float] = []
    for _ in range(max_iter):
        found = _assigned(blocks, run, centres)
        history.append(found.inertia)
        if (found.counts == 0).any():
            found = _relocated(blocks, run, centres, found)
        # A cluster can still be empty where there are fewer distinct rows than clusters: it stays where it is.
        counts = np.where(found.counts > 0, found.counts, 1.0)[:, None]
        moved = np.where(found.counts[:, None] > 0, found.sums / counts, centres)
        shift = float(((moved - centres) ** 2).sum())
        centres = moved
        if shift <= tolerance:
            break
    return _Fit(centres, _assigned(blocks, run, centres).inertia, history)


def _assigned(blocks: Blocks, run: Runner, centres: NDArray[np.float64]) -> kernels.Assigned:
    found: kernels.Assigned = run.total(
        kernels.added, run.map(kernels.assigned, blocks.rows, centres=run.share(centres))
    )
    return found


class _Far(NamedTuple):
    """Rows far from their centres, farthest first: squared distances (m,), global numbers, labels, rows (m, p)."""

    squares: NDArray[np.float64]
    numbers: NDArray[np.int64]
    labels: NDArray[np.int32]
    rows: NDArray[np.float64]


def _relocated(blocks: Blocks, run: Runner, centres: NDArray[np.float64], found: kernels.Assigned) -> kernels.Assigned:
    """Take the rows farthest from their centres out of their clusters, one for each empty cluster."""
    empty = np.flatnonzero(found.counts == 0)
    n = len(empty)
    parts = run.map(_farthest, blocks.rows, blocks.starts, centres=run.share(centres), n=n)
    far: _Far = run.total(partial(_farther, n=n), parts)
    sums, counts = found.sums.copy(), found.counts.copy()
    for cluster_number, square, label, row in zip(empty, far.squares, far.labels, far.rows, strict=False):
        if square > 0:
            sums[label] -= row
            counts[label] -= 1
            sums[cluster_number], counts[cluster_number] = row, 1
    return kernels.Assigned(sums, counts, found.inertia)


def _farthest(rows: kernels.Array, start: int, centres: NDArray[np.float64], n: int) -> _Far:
    squares = kernels.squared_to_nearest(rows, centres)
    labels = kernels.nearest(rows, centres)
    numbers = np.arange(start, start + len(rows))
    return _first(_Far(squares, numbers, labels, np.asarray(rows, dtype=np.float64)), n)


def _farther(a: _Far, b: _Far, n: int) -> _Far:
    return _first(_Far(*(np.concatenate([a[part], b[part]]) for part in range(len(a)))), n)


def _first(far: _Far, n: int) -> _Far:
    order = np.lexsort((far.numbers, -far.squares))[:n]
    return _Far(far.squares[order], far.numbers[order], far.labels[order], far.rows[order])


class _Start:
    """One k-means‖ start: candidates in a few rounds, weighted by the rows nearest to them, then clustered."""

    def __init__(self, blocks: Blocks, run: Runner, k: int, seed: int, number: int) -> None:
        self._blocks, self._run, self._k = blocks, run, k
        self._seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])

    def centres(self) -> NDArray[np.float64]:
        """Return k centres (k, p)."""
        candidates = new = self._first()
        squares: list[Any] = [None] * len(self._blocks.rows)
        for draw in range(1, _N_ROUNDS + 1):
            squares = self._run.map(_nearer, self._blocks.rows, squares, new=self._run.share(new))
            cost = self._run.total(add, self._run.map(_sum, squares))
            if cost <= 0:  # every row is a candidate already
                break
            factor = _OVERSAMPLING * self._k / cost
            drawn = self._run.map(
                _drawn, self._blocks.rows, squares, self._blocks.starts, seed=self._seed, draw=draw, factor=factor
            )
            new = np.concatenate(self._run.gather(drawn))
            if len(new) == 0:
                break
            candidates = np.concatenate([candidates, new])
        candidates = np.unique(candidates, axis=0)
        weights = _assigned(self._blocks, self._run, candidates).counts
        return self._clustered(candidates, weights)

    def _first(self) -> NDArray[np.float64]:
        """The row of least random number: uniform, whatever the blocks."""
        parts = self._run.map(_least, self._blocks.rows, self._blocks.starts, seed=self._seed)
        found: tuple[float, NDArray[np.float64]] = self._run.total(_lesser, parts)
        return found[1][None, :]

    def _clustered(self, candidates: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
        if len(candidates) <= self._k:
            # Fewer distinct candidates than clusters: the rest start on the first and are relocated by Lloyd.
            spare = np.repeat(candidates[:1], self._k - len(candidates), axis=0)
            return np.concatenate([candidates, spare])
        recluster = cluster.KMeans(self._k, n_init=_N_CANDIDATE_STARTS, random_state=self._seed)
        return np.asarray(recluster.fit(candidates, sample_weight=weights).cluster_centers_, dtype=np.float64)


def _least(rows: kernels.Array, start: int, seed: int) -> tuple[float, NDArray[np.float64]]:
    if not len(rows):
        return np.inf, np.zeros(rows.shape[1])
    numbers = kernels.uniform(seed, 0, start, len(rows))
    place = int(numbers.argmin())
    return float(numbers[place]), rows[place].astype(np.float64)


def _lesser(
    a: tuple[float, NDArray[np.float64]], b: tuple[float, NDArray[np.float64]]
) -> tuple[float, NDArray[np.float64]]:
    return b if b[0] < a[0] else a


def _nearer(rows: kernels.Array, squares: NDArray[np.float64] | None, new: NDArray[np.float64]) -> NDArray[np.float64]:
    """Squared distances (n,) to the nearest candidate, given those to the nearest of the candidates before."""
    found = kernels.squared_to_nearest(rows, new)
    return found if squares is None else np.minimum(squares, found)


def _drawn(
    rows: kernels.Array, squares: NDArray[np.float64], start: int, seed: int, draw: int, factor: float
) -> NDArray[np.float64]:
    """Rows drawn with probability factor × squared distance, independently of each other."""
    chosen = kernels.uniform(seed, draw, start, len(rows)) < factor * squares
    return rows[chosen].astype(np.float64)


def _sum(values: NDArray[np.float64]) -> float:
    return float(values.sum())
