"""The loops of k-means over one block: distances by BLAS in chunks that stay in the cache, the rest compiled.

Called by KMeans, on the workers. Functions take a block (n, p) of float32 or float64 and never write to it.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

# Rows whose distances are computed at a time: 1,024 × 16 float64 are 128 KiB.
_CHUNK = 1024

Array = NDArray[np.floating]


class Assigned(NamedTuple):
    """Sums of the rows of each cluster (k, p), their numbers (k,), and the sum of squared distances to the centres."""

    sums: NDArray[np.float64]
    counts: NDArray[np.float64]
    inertia: float


def assigned(rows: Array, centres: NDArray[np.float64]) -> Assigned:
    """Assign each row to its nearest centre (k, p) and add the rows up by cluster."""
    sums, counts = np.zeros(centres.shape), np.zeros(len(centres))
    inertia = 0.0
    for chunk, labels in _chunks(rows, centres):
        inertia += _accumulate(chunk, labels, centres, sums, counts)
    return Assigned(sums, counts, inertia)


def added(a: Assigned, b: Assigned) -> Assigned:
    """Add two blocks' results."""
    return Assigned(a.sums + b.sums, a.counts + b.counts, a.inertia + b.inertia)


def nearest(rows: Array, centres: NDArray[np.float64]) -> NDArray[np.int32]:
    """Return the number of each row's nearest centre (n,); the first of equally near ones."""
    found = [labels for _, labels in _chunks(rows, centres)]
    return np.concatenate(found) if found else np.zeros(0, np.int32)


def distances(rows: Array, centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the Euclidean distance of each row to each centre (n, k)."""
    squares = (rows * rows).sum(axis=1)[:, None] - 2.0 * rows @ centres.T.astype(rows.dtype)
    squares = squares + (centres * centres).sum(axis=1)
    return np.sqrt(np.maximum(squares, 0.0))


def squared_to_nearest(rows: Array, centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the squared distance of each row to its nearest centre (n,)."""
    found = [_squared(chunk, labels, centres) for chunk, labels in _chunks(rows, centres)]
    return np.concatenate(found) if found else np.zeros(0)


def _chunks(rows: Array, centres: NDArray[np.float64]):  # type: ignore[no-untyped-def]
    """Yield chunks of rows with the labels of their nearest centres.

    |x − c|² = |x|² − 2 x·c + |c|²; |x|² is the same for all centres of a row and need not be known.
    """
    weights = (-2.0 * centres).astype(rows.dtype).T.copy()
    norms = np.einsum("ij,ij->i", centres, centres).astype(rows.dtype)
    for start in range(0, len(rows), _CHUNK):
        chunk = rows[start : start + _CHUNK]
        yield chunk, _argmin(chunk @ weights, norms)


@numba.njit(nogil=True, cache=True)
def _argmin(scores, norms):  # type: ignore[no-untyped-def]
    labels = np.empty(scores.shape[0], np.int32)
    for i in range(scores.shape[0]):
        best, label = scores[i, 0] + norms[0], 0
        for j in range(1, scores.shape[1]):
            score = scores[i, j] + norms[j]
            if score < best:
                best, label = score, j
        labels[i] = label
    return labels


@numba.njit(nogil=True, cache=True)
def _accumulate(rows, labels, centres, sums, counts):  # type: ignore[no-untyped-def]
    inertia = 0.0
    for i in range(rows.shape[0]):
        label = labels[i]
        counts[label] += 1.0
        for j in range(rows.shape[1]):
            value = np.float64(rows[i, j])
            gap = value - centres[label, j]
            inertia += gap * gap
            sums[label, j] += value
    return inertia


@numba.njit(nogil=True, cache=True)
def _squared(rows, labels, centres):  # type: ignore[no-untyped-def]
    squares = np.empty(rows.shape[0])
    for i in range(rows.shape[0]):
        total = 0.0
        for j in range(rows.shape[1]):
            gap = np.float64(rows[i, j]) - centres[labels[i], j]
            total += gap * gap
        squares[i] = total
    return squares


def uniform(seed: int, draw: int, start: int, n: int) -> NDArray[np.float64]:
    """Return numbers in (0, 1) for the rows `start` … `start + n`: a function of seed, draw and global row alone.

    SplitMix64 (Steele, Lea and Flood 2014) of a counter, so that blocks need not know of each other.
    """
    with np.errstate(over="ignore"):
        base = np.random.SeedSequence([seed, draw]).generate_state(1, np.uint64)[0]
        state = (np.arange(start, start + n, dtype=np.uint64) + base) * np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return ((state >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53
