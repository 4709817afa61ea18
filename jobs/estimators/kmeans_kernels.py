"""The loops of k-means over blocks of rows: distances by BLAS in chunks that stay in the cache, the rest compiled.

Called by KMeans and its start, on the workers. A block is (n, p) of float32 or float64 and is never written to. Which
centre is nearest is a function of the row and the centres alone: BLAS rounds by the shape of what it multiplies, so
where its scores are too close to tell, the distances are summed up one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from jobs.estimators.compiled import IS_CACHED

# Rows whose distances are computed at a time: 1,024 × 16 float64 are 128 KiB.
_CHUNK = 1024
# Centres whose middle is farther from the origin than four times their spread are moved to it.
_FAR = 16.0

Array = NDArray[np.floating]
Floats = NDArray[np.float64]
Labels = NDArray[np.int32]


class Assigned(NamedTuple):
    """Of s sets of k centres: sums of the rows of each centre (s, k, p), their numbers (s, k), inertias (s,).

    Where rows have weights, a row counts its weight in all three.
    """

    sums: Floats
    counts: Floats
    inertias: Floats


class Near(NamedTuple):
    """Squared distance of each row to its nearest centre (n,), and that centre's number (n,)."""

    squares: Floats
    labels: Labels


def assigned(blocks: Sequence[Array], centres: Floats, weights: Sequence[Floats | None] | None = None) -> Assigned:
    """Assign each row to its nearest centre of each set (s, k, p), and add the rows up by centre.

    `weights` has those of the rows of each block (n,), float64, or None.
    """
    n_sets, k, p = centres.shape
    flat = centres.reshape(n_sets * k, p)
    found = Assigned(np.zeros(flat.shape), np.zeros(len(flat)), np.zeros(n_sets))
    for block, of_rows in zip(blocks, weights or [None] * len(blocks), strict=True):
        rows = np.ascontiguousarray(block)
        _assign(rows, of_rows, *_view(flat, rows.dtype), k, *found)
    return Assigned(found.sums.reshape(centres.shape), found.counts.reshape(n_sets, k), found.inertias)


def added(a: Assigned, b: Assigned) -> Assigned:
    """Add two results."""
    return Assigned(a.sums + b.sums, a.counts + b.counts, a.inertias + b.inertias)


def nearest(rows: Array, centres: Floats) -> Labels:
    """Return the number of each row's nearest centre (n,); the first of equally near ones."""
    rows = np.ascontiguousarray(rows)
    return _labels(rows, *_view(centres, rows.dtype))


def near(rows: Array, centres: Floats) -> Near:
    """Return each row's nearest centre and the squared distance to it."""
    labels = nearest(rows, centres)
    return Near(_squares(np.ascontiguousarray(rows), labels, centres), labels)


def distances(rows: Array, centres: Floats) -> Floats:
    """Return the Euclidean distance of each row to each centre (n, k)."""
    return _distances(np.ascontiguousarray(rows), centres)


def _view(centres: Floats, dtype: Any) -> tuple[Floats, Array, bool, Array, Array, float]:
    """Return centres, and how rows are scored by them: |x − c|² − |x|² = |c|² − 2 x·c.

    Far from the origin both terms would be huge and their difference nothing but rounding errors: where the centres
    are, all are seen from their middle.

    Returns
    -------
    centres, origin, is_far : ndarray (k, p), ndarray (p,), bool
        Whether rows are seen from that origin.
    weights, offsets : ndarray (p, k), ndarray (k,)
        A seen row times the weights, plus the offsets, is its scores.
    largest : float
        |c|² at most.
    """
    origin = centres.mean(axis=0).astype(dtype)
    is_far = float(origin @ origin) > _FAR * float(((centres - origin) ** 2).sum(axis=1).max())
    moved = centres - origin if is_far else centres
    norms = np.einsum("ij,ij->i", moved, moved)
    weights = (-2.0 * moved.T).astype(dtype, order="C")
    return np.ascontiguousarray(centres), origin, is_far, weights, norms.astype(dtype), float(norms.max())


@numba.njit(nogil=True, cache=IS_CACHED)
def _assign(rows, of_rows, centres, origin, is_far, weights, offsets, largest, k, sums, counts, inertias):  # type: ignore[no-untyped-def]
    scores = np.empty((min(_CHUNK, len(rows)), len(centres)), rows.dtype)
    labels = np.empty(len(scores), np.int32)
    for start in range(0, len(rows), _CHUNK):
        chunk = rows[start : start + _CHUNK]
        margin = _score(chunk, origin, is_far, weights, offsets, largest, scores)
        for place in range(len(inertias)):
            _nearest(chunk, scores, margin, centres, place * k, place * k + k, labels)
            # Decided by the argument's type, before this is compiled: rows without weights do not pay for the question.
            if of_rows is None:
                inertias[place] += _accumulate(chunk, labels, centres, sums, counts)
            else:
                inertias[place] += _accumulate_weighted(
                    chunk, of_rows[start : start + _CHUNK], labels, centres, sums, counts
                )


@numba.njit(nogil=True, cache=IS_CACHED)
def _labels(rows, centres, origin, is_far, weights, offsets, largest):  # type: ignore[no-untyped-def]
    labels = np.empty(len(rows), np.int32)
    scores = np.empty((min(_CHUNK, len(rows)), len(centres)), rows.dtype)
    for start in range(0, len(rows), _CHUNK):
        chunk = rows[start : start + _CHUNK]
        margin = _score(chunk, origin, is_far, weights, offsets, largest, scores)
        _nearest(chunk, scores, margin, centres, 0, len(centres), labels[start : start + _CHUNK])
    return labels


@numba.njit(nogil=True, cache=IS_CACHED)
def _score(chunk, origin, is_far, weights, offsets, largest, scores):  # type: ignore[no-untyped-def]
    """Write the scores of some rows; return what the difference of two scores of a row can be wrong by."""
    seen = chunk
    if is_far:
        seen = chunk - origin
    found = scores[: len(seen)]
    np.dot(seen, weights, found)
    for i in range(found.shape[0]):
        for j in range(found.shape[1]):
            found[i, j] += offsets[j]
    # Sums of p products, and what comes before and after.
    error = (chunk.shape[1] + 8) * np.finfo(chunk.dtype).eps
    return error * (_longest(seen) + largest)


@numba.njit(nogil=True, cache=IS_CACHED, fastmath={"reassoc", "contract", "nsz"})
def _longest(rows):  # type: ignore[no-untyped-def]
    """Return |x|² at most."""
    longest = 0.0
    for i in range(rows.shape[0]):
        square = rows.dtype.type(0)
        for j in range(rows.shape[1]):
            square += rows[i, j] * rows[i, j]
        longest = max(longest, np.float64(square))
    return longest


@numba.njit(nogil=True, cache=IS_CACHED, fastmath=True)
def _least(scores, first, stop):  # type: ignore[no-untyped-def]
    least = scores[first]
    for j in range(first + 1, stop):
        least = min(least, scores[j])
    return least


@numba.njit(nogil=True, cache=IS_CACHED)
def _nearest(rows, scores, margin, centres, first, stop, labels):  # type: ignore[no-untyped-def]
    """Write which of the centres `first` … `stop` is nearest to each row."""
    for i in range(rows.shape[0]):
        limit = _least(scores[i], first, stop) + margin
        # Without a branch, the compiler takes several centres at a time; the sum is the label if only one is near.
        n_near, label = 0, 0
        for j in range(first, stop):
            is_near = scores[i, j] <= limit
            n_near += is_near
            label += is_near * j
        if n_near > 1:
            least = np.inf
            for j in range(first, stop):
                if scores[i, j] <= limit:
                    square = _square(rows[i], centres[j])
                    if square < least:
                        label, least = j, square
        labels[i] = label


@numba.njit(nogil=True, cache=IS_CACHED)
def _square(row, centre):  # type: ignore[no-untyped-def]
    total = 0.0
    for j in range(len(row)):
        gap = np.float64(row[j]) - centre[j]
        total += gap * gap
    return total


# Sums over a row may be added up in any order: several columns are taken at a time.
@numba.njit(nogil=True, cache=IS_CACHED, fastmath={"reassoc", "contract", "nsz"})
def _accumulate(rows, labels, centres, sums, counts):  # type: ignore[no-untyped-def]
    inertia = 0.0
    for i in range(rows.shape[0]):
        label = labels[i]
        counts[label] += 1.0
        square = 0.0
        for j in range(rows.shape[1]):
            gap = np.float64(rows[i, j]) - centres[label, j]
            square += gap * gap
        inertia += square
        for j in range(rows.shape[1]):
            sums[label, j] += np.float64(rows[i, j])
    return inertia


@numba.njit(nogil=True, cache=IS_CACHED, fastmath={"reassoc", "contract", "nsz"})
def _accumulate_weighted(rows, weights, labels, centres, sums, counts):  # type: ignore[no-untyped-def]
    inertia = 0.0
    for i in range(rows.shape[0]):
        label, weight = labels[i], weights[i]
        counts[label] += weight
        square = 0.0
        for j in range(rows.shape[1]):
            gap = np.float64(rows[i, j]) - centres[label, j]
            square += gap * gap
        inertia += weight * square
        for j in range(rows.shape[1]):
            sums[label, j] += weight * np.float64(rows[i, j])
    return inertia


@numba.njit(nogil=True, cache=IS_CACHED)
def _squares(rows, labels, centres):  # type: ignore[no-untyped-def]
    squares = np.empty(rows.shape[0])
    for i in range(rows.shape[0]):
        squares[i] = _square(rows[i], centres[labels[i]])
    return squares


@numba.njit(nogil=True, cache=IS_CACHED)
def _distances(rows, centres):  # type: ignore[no-untyped-def]
    found = np.empty((rows.shape[0], centres.shape[0]))
    for i in range(rows.shape[0]):
        for j in range(centres.shape[0]):
            found[i, j] = np.sqrt(_square(rows[i], centres[j]))
    return found
