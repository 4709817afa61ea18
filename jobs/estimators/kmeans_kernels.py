"""The loops of k-means over blocks of rows: distances by BLAS in chunks that stay in the cache, the rest compiled.

Called by KMeans and its start, on the workers. A block is (n, p) of float32 or float64 and is never written to. Which
centre is nearest is a function of the row and the centres alone: BLAS rounds by the shape of what it multiplies, so
where its scores are too close to tell, the distances are summed up one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

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
    """Of s sets of k centres: sums of the rows of each centre (s, k, p), their numbers (s, k), inertias (s,)."""

    sums: Floats
    counts: Floats
    inertias: Floats


class Near(NamedTuple):
    """Squared distance of each row to its nearest centre (n,), and that centre's number (n,)."""

    squares: Floats
    labels: Labels


def assigned(blocks: Sequence[Array], centres: Floats) -> Assigned:
    """Assign each row to its nearest centre of each set (s, k, p), and add the rows up by centre."""
    n_sets, k, p = centres.shape
    flat = centres.reshape(n_sets * k, p)
    sums, counts, inertias = np.zeros(flat.shape), np.zeros(len(flat)), np.zeros(n_sets)
    for rows in blocks:
        for chunk in _chunks(rows, flat):
            for place in range(n_sets):
                labels = chunk.nearest(place * k, (place + 1) * k)
                inertias[place] += _accumulate(chunk.rows, labels, flat, sums, counts, place * k)
    return Assigned(sums.reshape(centres.shape), counts.reshape(n_sets, k), inertias)


def added(a: Assigned, b: Assigned) -> Assigned:
    """Add two results."""
    return Assigned(a.sums + b.sums, a.counts + b.counts, a.inertias + b.inertias)


def nearest(rows: Array, centres: Floats) -> Labels:
    """Return the number of each row's nearest centre (n,); the first of equally near ones."""
    found = [chunk.nearest(0, len(centres)) for chunk in _chunks(rows, centres)]
    return np.concatenate(found) if found else np.zeros(0, np.int32)


def near(rows: Array, centres: Floats) -> Near:
    """Return each row's nearest centre and the squared distance to it."""
    labels = nearest(rows, centres)
    return Near(_squares(np.ascontiguousarray(rows), labels, centres), labels)


def distances(rows: Array, centres: Floats) -> Floats:
    """Return the Euclidean distance of each row to each centre (n, k)."""
    return _distances(np.ascontiguousarray(rows), centres)


class _Chunk(NamedTuple):
    """Some rows and their scores |x − c|² − |x|² (m, k), as right as `margins` (m,) say."""

    rows: Array
    scores: Array
    margins: Array
    centres: Floats

    def nearest(self, first: int, stop: int) -> Labels:
        """Return which of the centres `first` … `stop` is nearest, counted from `first`."""
        return _nearest(*self, first, stop)


def _chunks(rows: Array, centres: Floats) -> Iterator[_Chunk]:
    """Score the rows chunk by chunk as |c|² − 2 x·c.

    Far from the origin both terms would be huge and their difference nothing but rounding errors: where the centres
    are, all are seen from their middle.
    """
    origin = centres.mean(axis=0).astype(rows.dtype)
    is_far = float(origin @ origin) > _FAR * float(((centres - origin) ** 2).sum(axis=1).max())
    moved = centres - origin if is_far else centres
    norms = np.einsum("ij,ij->i", moved, moved)
    # A bound of the error of the difference of two scores: sums of p products, and what comes before and after.
    error, largest = (rows.shape[1] + 8) * float(np.finfo(rows.dtype).eps), float(norms.max())
    weights, offsets = (-2.0 * moved.T).astype(rows.dtype, order="C"), norms.astype(rows.dtype)
    for start in range(0, len(rows), _CHUNK):
        chunk = np.ascontiguousarray(rows[start : start + _CHUNK])
        seen = chunk - origin if is_far else chunk
        scores = seen @ weights
        scores += offsets
        yield _Chunk(chunk, scores, _margins(seen, largest, error), centres)


@numba.njit(nogil=True, cache=IS_CACHED, fastmath=True)
def _margins(rows, largest, error):  # type: ignore[no-untyped-def]
    margins = np.empty(rows.shape[0])
    for i in range(rows.shape[0]):
        square = rows[i, 0] * rows[i, 0]
        for j in range(1, rows.shape[1]):
            square += rows[i, j] * rows[i, j]
        margins[i] = error * (np.float64(square) + largest)
    return margins


@numba.njit(nogil=True, cache=IS_CACHED, fastmath=True)
def _least(scores, first, stop):  # type: ignore[no-untyped-def]
    least = scores[first]
    for j in range(first + 1, stop):
        least = min(least, scores[j])
    return least


@numba.njit(nogil=True, cache=IS_CACHED)
def _nearest(rows, scores, margins, centres, first, stop):  # type: ignore[no-untyped-def]
    labels = np.empty(rows.shape[0], np.int32)
    for i in range(rows.shape[0]):
        limit = _least(scores[i], first, stop) + margins[i]
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
        labels[i] = label - first
    return labels


@numba.njit(nogil=True, cache=IS_CACHED)
def _square(row, centre):  # type: ignore[no-untyped-def]
    total = 0.0
    for j in range(len(row)):
        gap = np.float64(row[j]) - centre[j]
        total += gap * gap
    return total


@numba.njit(nogil=True, cache=IS_CACHED)
def _accumulate(rows, labels, centres, sums, counts, first):  # type: ignore[no-untyped-def]
    inertia = 0.0
    for i in range(rows.shape[0]):
        label = first + labels[i]
        counts[label] += 1.0
        for j in range(rows.shape[1]):
            value = np.float64(rows[i, j])
            gap = value - centres[label, j]
            inertia += gap * gap
            sums[label, j] += value
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
