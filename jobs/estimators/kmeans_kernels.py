"""The loops of k-means over blocks of rows: distances by BLAS in chunks that stay in the cache, the rest compiled.

Called by KMeans and its start, on the workers. A block is (n, p) of float32 or float64 and is never written to. Which
centre is nearest is a function of the row and the centres alone: BLAS rounds by the shape of what it multiplies, so
where its scores are too close to tell, the distances are summed up one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from jobs.estimators.compiled import IS_CACHED
from jobs.estimators.moments import Moments
from jobs.estimators.sample_weights import checked_weights

# Rows whose distances are computed at a time: 1,024 × 16 float64 are 128 KiB.
_CHUNK = 1024

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
    view = _view(centres)
    found = Assigned(np.zeros(centres.shape), np.zeros(centres.shape[:2]), np.zeros(len(centres)))
    for block, of_rows in zip(blocks, weights or [None] * len(blocks), strict=True):
        _assign(np.ascontiguousarray(block), of_rows, view, *found)
    return found


def moments(rows: Array, weights: Floats | None) -> Moments:
    """Return what `jobs.estimators.moments.moments` returns without products: as exact, but for constant columns.

    Squares are summed about the mean of the first chunk. It is within √(n / chunk) deviations of the block's, which
    costs n / chunk units in the last place.
    """
    rows = np.ascontiguousarray(rows)
    n, weight, firsts = len(rows), float(len(rows)), rows[:_CHUNK]
    if weights is not None:
        weights = checked_weights(weights, rows)
        counted = np.flatnonzero(weights)
        n, weight, firsts = len(counted), float(weights.sum()), rows[counted[:_CHUNK]]
    origin = firsts.mean(axis=0, dtype=np.float64) if n else np.zeros(rows.shape[1])
    sums, squares = np.zeros(rows.shape[1]), np.zeros(rows.shape[1])
    _add_moments(rows, weights, origin, sums, squares)
    with np.errstate(invalid="ignore", over="ignore"):  # the caller reports what is not finite
        offset = sums / (weight or 1.0)
        return Moments(n, weight, origin + offset, np.maximum(squares - sums * offset, 0.0))


def added(a: Assigned, b: Assigned) -> Assigned:
    """Add two results."""
    return Assigned(a.sums + b.sums, a.counts + b.counts, a.inertias + b.inertias)


def nearest(rows: Array, centres: Floats) -> Labels:
    """Return the number of each row's nearest centre (n,); the first of equally near ones."""
    rows = np.ascontiguousarray(rows)
    return _labels(rows, _view(centres[None]))


def near(rows: Array, centres: Floats) -> Near:
    """Return each row's nearest centre and the squared distance to it."""
    labels = nearest(rows, centres)
    return Near(_squares(np.ascontiguousarray(rows), labels, centres), labels)


def distances(rows: Array, centres: Floats) -> Floats:
    """Return the Euclidean distance of each row to each centre (n, k)."""
    return _distances(np.ascontiguousarray(rows), centres)


class _View(NamedTuple):
    """Of s sets of centres (s, k, p): how rows are scored by them in float32, |x − c|² − |x|² = |c|² − 2 x·c.

    Rows and centres are seen from the centres' middle, the origin, where their distances are not lost to rounding, and
    scaled so that nothing overflows.

    Attributes
    ----------
    origin, scale : ndarray (p,), float
        What is taken off a row, and what it is then multiplied by: a power of two.
    weights, offsets : ndarray (s, p, k) and (s, k), float32
        A seen row times the weights, plus the offsets, is its scores.
    largest : float32
        |c|² at most, as seen.
    """

    centres: Floats
    origin: Floats
    scale: float
    weights: NDArray[np.float32]
    offsets: NDArray[np.float32]
    largest: np.float32


def _view(centres: Floats) -> _View:
    centres = np.ascontiguousarray(centres)
    origin = centres.mean(axis=(0, 1))
    moved = centres - origin
    farthest = float(np.abs(moved).max())
    scale = float(np.ldexp(1.0, -np.frexp(farthest)[1])) if np.isfinite(farthest) else 1.0
    moved *= scale
    norms = np.einsum("sij,sij->si", moved, moved).astype(np.float32)
    weights = (-2.0 * moved.transpose(0, 2, 1)).astype(np.float32, order="C")
    return _View(centres, origin, scale, weights, norms, norms.max())


@numba.njit(nogil=True, cache=IS_CACHED)
def _assign(rows, of_rows, view, sums, counts, inertias):  # type: ignore[no-untyped-def]
    seen, scores, margins = _scratch(rows, view)
    labels = np.empty(len(scores), np.int32)
    for start in range(0, len(rows), _CHUNK):
        chunk = rows[start : start + _CHUNK]
        _see(chunk, view, seen, margins)
        for place in range(len(inertias)):
            _score(seen[: len(chunk)], view, place, scores)
            _nearest(chunk, scores, margins, view.centres[place], labels)
            of_set = view.centres[place], sums[place], counts[place]
            # Decided by the argument's type, before this is compiled: rows without weights do not pay for the question.
            if of_rows is None:
                inertias[place] += _accumulate(chunk, labels, *of_set)
            else:
                inertias[place] += _accumulate_weighted(chunk, of_rows[start : start + _CHUNK], labels, *of_set)


@numba.njit(nogil=True, cache=IS_CACHED)
def _labels(rows, view):  # type: ignore[no-untyped-def]
    seen, scores, margins = _scratch(rows, view)
    labels = np.empty(len(rows), np.int32)
    for start in range(0, len(rows), _CHUNK):
        chunk = rows[start : start + _CHUNK]
        _see(chunk, view, seen, margins)
        _score(seen[: len(chunk)], view, 0, scores)
        _nearest(chunk, scores, margins, view.centres[0], labels[start : start + _CHUNK])
    return labels


@numba.njit(nogil=True, cache=IS_CACHED)
def _scratch(rows, view):  # type: ignore[no-untyped-def]
    """Return room for a chunk of rows as seen, their scores, and their margins."""
    n = min(_CHUNK, len(rows))
    k = view.offsets.shape[1]
    return np.empty((n, rows.shape[1]), np.float32), np.empty((n, k), np.float32), np.empty(n, np.float32)


@numba.njit(nogil=True, cache=IS_CACHED)
def _see(chunk, view, seen, margins):  # type: ignore[no-untyped-def]
    """Write rows as they are seen, and by how much the difference of two scores of a row can be wrong."""
    _move(chunk, view.origin, view.scale, seen, margins)
    # Sums of p products, what comes before and after, and factors that are themselves rounded.
    error = np.float32((chunk.shape[1] + 8) * np.finfo(np.float32).eps)
    for i in range(len(chunk)):
        margins[i] = error * (margins[i] + view.largest)


@numba.njit(nogil=True, cache=IS_CACHED)
def _score(seen, view, place, scores):  # type: ignore[no-untyped-def]
    found, offsets = scores[: len(seen)], view.offsets[place]
    np.dot(seen, view.weights[place], found)
    for i in range(found.shape[0]):
        for j in range(found.shape[1]):
            found[i, j] += offsets[j]


@numba.njit(nogil=True, cache=IS_CACHED, fastmath={"reassoc", "contract", "nsz"})
def _move(rows, origin, scale, seen, squares):  # type: ignore[no-untyped-def]
    """Write rows as seen from the origin, and their |x|²."""
    for i in range(rows.shape[0]):
        square = np.float32(0)
        for j in range(rows.shape[1]):
            value = np.float32((np.float64(rows[i, j]) - origin[j]) * scale)
            seen[i, j] = value
            square += value * value
        squares[i] = square


@numba.njit(nogil=True, cache=IS_CACHED, fastmath=True)
def _least(scores):  # type: ignore[no-untyped-def]
    least = scores[0]
    for j in range(1, len(scores)):
        least = min(least, scores[j])
    return least


@numba.njit(nogil=True, cache=IS_CACHED)
def _nearest(rows, scores, margins, centres, labels):  # type: ignore[no-untyped-def]
    """Write which of the centres is nearest to each row."""
    for i in range(rows.shape[0]):
        limit = _least(scores[i]) + margins[i]
        # Without a branch, the compiler takes several centres at a time; the sum is the label if only one is near.
        n_near, label = 0, 0
        for j in range(scores.shape[1]):
            is_near = scores[i, j] <= limit
            n_near += is_near
            label += is_near * j
        is_beyond = not np.isfinite(margins[i])  # of float32: the scores say nothing
        if n_near != 1 or is_beyond:
            label, least = 0, np.inf
            for j in range(scores.shape[1]):
                if is_beyond or scores[i, j] <= limit:
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
def _add_moments(rows, weights, origin, sums, squares):  # type: ignore[no-untyped-def]
    """Add up rows and squares as seen from the origin."""
    for i in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            gap = np.float64(rows[i, j]) - origin[j]
            left = gap if weights is None else gap * weights[i]
            sums[j] += left
            squares[j] += left * gap


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
