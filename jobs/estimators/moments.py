"""Weighted means and centred sums of products of a table's columns, in one pass over its blocks.

Blocks are centred on their own mean before they are multiplied, and merged pairwise: Chan, Golub and LeVeque,
Updating Formulae and a Pairwise Algorithm for Computing Sample Variances, 1979. Summing raw squares instead would lose
every digit of a column whose mean is far larger than its spread. Called by LinearRegression and KMeans.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jobs.estimators.sample_weights import checked_weights

# Rows that are centred at a time: a copy of 4,096 × 50 float64 stays in the second-level cache.
_CHUNK = 4096


class Moments(NamedTuple):
    """Of one block or of many: rows, their weight, means (q,), centred products (q, q) or squares (q,)."""

    n: int
    weight: float
    means: NDArray[np.float64]
    products: NDArray[np.float64]


def moments(
    columns: NDArray[np.floating],
    last: NDArray[np.floating] | None = None,
    weights: NDArray[np.floating] | None = None,
    with_products: bool = True,
) -> Moments:
    """Return the moments of one block.

    Parameters
    ----------
    columns : ndarray of shape (n, p)
        The block; read, never written to.
    last : ndarray of shape (n,), optional
        One more column, such as the target; then q = p + 1.
    weights : ndarray of shape (n,), optional
        Weight of each row, at least 0. Rows of weight 0 are not counted.
    with_products : bool
        Whether to return all products (q, q) or the squares alone (q,).

    Raises
    ------
    ValueError
        When a weight is negative, missing or infinite.
    """
    weights = None if weights is None else checked_weights(weights, columns)
    q = columns.shape[1] + (last is not None)
    total = Moments(0, 0.0, np.zeros(q), np.zeros((q, q) if with_products else q))
    # Made once: fresh memory costs more than what is computed there.
    memory = np.empty((min(_CHUNK, len(columns)), q))
    for start in range(0, len(columns), _CHUNK):
        rows = slice(start, start + _CHUNK)
        chunk = memory[: len(columns[rows])]
        chunk[:, : columns.shape[1]] = columns[rows]
        if last is not None:
            chunk[:, -1] = last[rows]
        total = merged(total, _of_chunk(chunk, None if weights is None else weights[rows], with_products))
    return total


def _of_chunk(chunk: NDArray[np.float64], weights: NDArray[np.float64] | None, with_products: bool) -> Moments:
    """Return the moments of some rows, which are overwritten."""
    n, weight = len(chunk), float(len(chunk))
    if weights is not None:
        n, weight = int(np.count_nonzero(weights)), float(weights.sum())
    # Seen from a row of its own, a column that never changes has exactly no spread; its mean alone would leave
    # rounding errors that look like one.
    origin = chunk[0 if weights is None else int(np.argmax(weights > 0))].copy()
    with np.errstate(invalid="ignore", over="ignore"):  # the caller reports what is not finite
        chunk -= origin
        offset = (np.ones(n) if weights is None else weights) @ chunk / (weight or 1.0)
        chunk -= offset
        left = chunk if weights is None else chunk * weights[:, None]
        products = left.T @ chunk if with_products else np.einsum("ij,ij->j", left, chunk)
    return Moments(n, weight, origin + offset, products)


def merged(a: Moments, b: Moments) -> Moments:
    """Return the moments of two blocks together."""
    if a.weight == 0:
        return b
    if b.weight == 0:
        return a
    weight = a.weight + b.weight
    with np.errstate(invalid="ignore", over="ignore"):
        gap = b.means - a.means
        spread = np.outer(gap, gap) if a.products.ndim == 2 else gap * gap
        means = a.means + gap * (b.weight / weight)
        products = a.products + b.products + spread * (a.weight * b.weight / weight)
    return Moments(a.n + b.n, weight, means, products)


def residual_products(
    rows: NDArray[np.floating],
    target: NDArray[np.floating],
    weights: NDArray[np.floating] | None,
    coef: NDArray[np.float64],
    centre: NDArray[np.float64],
) -> tuple[NDArray[np.float64], float]:
    """Return Xᵀ W r (p,) and rᵀ W r of the residuals r of a block, on centred columns."""
    centred = np.asarray(rows, dtype=np.float64) - centre[:-1]
    residuals = (target - centre[-1]) - centred @ coef
    weighted = residuals if weights is None else residuals * weights
    return weighted @ centred, float(weighted @ residuals)
