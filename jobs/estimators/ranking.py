"""Top-k lists out of factor vectors, and how good they are: every item is a candidate, none is sampled away.

With R the relevant items of a user, and r_j = 1 where the j-th item of the list is in R, for users that have any:

- precision@k = Σ_{j≤k} r_j / k, recall@k = Σ_{j≤k} r_j / |R|;
- nDCG@k = Σ_{j≤k} r_j / log2(j + 1), divided by the same sum of a list whose first min(k, |R|) items are relevant
  (Järvelin & Kekäläinen 2002, with binary gain);
- MAP@k: the mean over users of Σ_{j≤k} r_j · precision@j / min(k, |R|).

Items that the user is known to have seen are no candidates and do not count as relevant. Of equal scores the item
with the lower index comes first. All functions work on one block of users; called by the recommender pipeline.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from jobs.estimators.compiled import IS_CACHED

Floats = NDArray[np.float64]

# Scores held at a time, in elements: 32 MB.
_N_SCORES = 1 << 22


@dataclass(frozen=True)
class RankingSums:
    """Sums over the users that have relevant items; sums of blocks add up.

    Attributes
    ----------
    n_users : int
        Users with at least one relevant item.
    precision, recall, ndcg, average_precision : float
        Sums of the metrics of these users, each at the same k.
    """

    n_users: int
    precision: float
    recall: float
    ndcg: float
    average_precision: float

    def metrics(self, k: int) -> dict[str, float]:
        """Return the means by name; zeros where no user had a relevant item."""
        n = max(self.n_users, 1)
        return {
            f"ndcg@{k}": self.ndcg / n,
            f"precision@{k}": self.precision / n,
            f"recall@{k}": self.recall / n,
            f"map@{k}": self.average_precision / n,
        }


def total(sums: Sequence[RankingSums]) -> RankingSums:
    """Add up the sums of blocks."""
    return RankingSums(
        sum(s.n_users for s in sums),
        sum(s.precision for s in sums),
        sum(s.recall for s in sums),
        sum(s.ndcg for s in sums),
        sum(s.average_precision for s in sums),
    )


def top_k(users: Floats, items: Floats, seen: Any, k: int) -> tuple[NDArray[np.int64], Floats]:
    """Return each user's `k` best items among those not seen.

    Parameters
    ----------
    users : ndarray of shape (n_users, width)
        Vectors of the users of a block.
    items : ndarray of shape (n_items, width)
        Vectors of all items; a score is the dot product.
    seen : csr_matrix of shape (n_users, n_items)
        Stored entries are left out of the list, whatever their value.
    k : int
        Length of the list, at most n_items.

    Returns
    -------
    best : ndarray of shape (n_users, k)
        Item indices, best first; -1 at the end where fewer than `k` items are left.
    scores : ndarray of shape (n_users, k)
        Their scores; -inf where there is no item.
    """
    if not 1 <= k <= len(items):
        raise ValueError(f"k: {k} is not between 1 and the number of items, {len(items)}")
    best = np.full((len(users), k), -1, dtype=np.int64)
    best_scores = np.full((len(users), k), -np.inf)
    for chunk in _chunks(len(users), len(items)):
        scores = users[chunk] @ items.T
        scores[_entries(seen, chunk)] = -np.inf
        _select(scores, best[chunk], best_scores[chunk])
    return best, best_scores


def ranking_sums(users: Floats, items: Floats, seen: Any, relevant: Any, k: int) -> RankingSums:
    """Rank all unseen items for each user of a block and sum up the metrics at `k`.

    Parameters
    ----------
    users, items, seen, k
        As for `top_k`.
    relevant : csr_matrix of shape (n_users, n_items)
        Stored entries are the relevant items, whatever their value.
    """
    best, _ = top_k(users, items, seen, k)
    sums = np.zeros(4)
    n_users = 0
    discount = 1.0 / np.log2(np.arange(2, k + 2))
    ideal = np.concatenate([[0.0], np.cumsum(discount)])
    for chunk in _chunks(len(users), len(items)):
        is_relevant = np.zeros((chunk.stop - chunk.start, len(items)), dtype=bool)
        is_relevant[_entries(relevant, chunk)] = True
        is_relevant[_entries(seen, chunk)] = False
        n_relevant = is_relevant.sum(axis=1)
        hits = np.take_along_axis(is_relevant, np.maximum(best[chunk], 0), axis=1) & (best[chunk] >= 0)
        kept = n_relevant > 0
        hits, n_relevant = hits[kept], n_relevant[kept]
        n_hits = hits.sum(axis=1)
        n_ideal = np.minimum(n_relevant, k)
        precision_at = np.cumsum(hits, axis=1) / np.arange(1, k + 1)
        n_users += len(hits)
        sums += [
            (n_hits / k).sum(),
            (n_hits / n_relevant).sum(),
            (hits @ discount / ideal[n_ideal]).sum(),
            ((hits * precision_at).sum(axis=1) / n_ideal).sum(),
        ]
    return RankingSums(n_users, *(float(value) for value in sums))


def _chunks(n_users: int, n_items: int) -> Iterator[slice]:
    step = max(1, _N_SCORES // max(n_items, 1))
    for start in range(0, n_users, step):
        yield slice(start, min(start + step, n_users))


def _entries(matrix: Any, chunk: slice) -> tuple[NDArray[np.int64], Any]:
    """Rows, counted from the chunk's first, and columns of the entries stored in a chunk of rows."""
    start, stop = matrix.indptr[chunk.start], matrix.indptr[chunk.stop]
    counts = np.diff(matrix.indptr[chunk.start : chunk.stop + 1])
    return np.repeat(np.arange(len(counts)), counts), matrix.indices[start:stop]


@numba.njit(nogil=True, cache=IS_CACHED)
def _select(scores: Floats, best: NDArray[np.int64], best_scores: Floats) -> None:
    """Insert every score that belongs there into the sorted list of its row: about n_items + k² log(n_items / k)."""
    k = best.shape[1]
    for row in range(len(scores)):
        for item in range(scores.shape[1]):
            score = scores[row, item]
            if not score > best_scores[row, k - 1]:
                continue
            at = k - 1
            while at > 0 and score > best_scores[row, at - 1]:
                best_scores[row, at] = best_scores[row, at - 1]
                best[row, at] = best[row, at - 1]
                at -= 1
            best_scores[row, at] = score
            best[row, at] = item
