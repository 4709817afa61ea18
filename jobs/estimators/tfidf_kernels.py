"""The loops of TF-IDF over words and stored values, compiled: counts of terms, frequencies of columns, weights.

Called by `jobs.estimators.tfidf` and `jobs.estimators.keyphrases`; all release the GIL.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from jobs.estimators.compiled import IS_CACHED


@numba.njit(nogil=True, cache=IS_CACHED)
def counted(ids: Any, starts: Any, n_columns: int, columns: Any = None) -> Any:
    """Count by row how often each column occurs: CSR arrays, in each row in order of first appearance.

    An id is a column, or its place in `columns` where those are given.
    """
    counts = np.empty(len(ids), np.float32)
    indices = np.empty(len(ids), np.int32)
    ends = np.zeros(len(starts), np.int64)
    place = np.full(n_columns, -1, np.int64)  # where the column was last counted
    n = 0
    for row in range(len(starts) - 1):
        for word in range(starts[row], starts[row + 1]):
            column = ids[word] if columns is None else columns[ids[word]]
            if place[column] >= ends[row]:
                counts[place[column]] += 1
            else:
                place[column] = n
                indices[n] = column
                counts[n] = 1
                n += 1
        ends[row + 1] = n
    return counts[:n].copy(), indices[:n].copy(), ends


@numba.njit(nogil=True, cache=IS_CACHED)
def tally(indices: Any, frequencies: Any) -> None:
    """Add to each column's frequency how often it is in `indices`, without numpy's copy of them as int64."""
    for index in indices:
        frequencies[index] += 1


@numba.njit(nogil=True, cache=IS_CACHED)
def weighed(counts: Any, indices: Any, indptr: Any, idf: Any, sublinear_tf: bool) -> Any:
    """Return the weights of counts in CSR arrays, float32; each row's squares add up to 1."""
    weights = np.empty(len(counts), np.float32)
    for row in range(len(indptr) - 1):
        squares = 0.0
        for at in range(indptr[row], indptr[row + 1]):
            weight = _weight(counts[at], idf[indices[at]], sublinear_tf)
            squares += weight * weight
        length = np.sqrt(squares)
        for at in range(indptr[row], indptr[row + 1]):
            weights[at] = _weight(counts[at], idf[indices[at]], sublinear_tf) / length
    return weights


@numba.njit(nogil=True, cache=IS_CACHED)
def _weight(count: Any, idf: Any, sublinear_tf: bool) -> Any:
    times = np.float64(count)
    return (np.log(times) + 1.0 if sublinear_tf else times) * idf
