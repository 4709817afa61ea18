"""The k-means‖ start: candidates drawn in a few passes over the blocks, weighted, then clustered themselves.

Bahmani, Moseley, Vattani, Kumar and Vassilvitskii, Scalable K-Means++, 2012. Whether a row is drawn depends on the
seed and its global number, not on its block. Several starts share their passes. A row of weight w is drawn with w times
the probability, one of weight 0 never. Called by KMeans.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn import cluster

from jobs.estimators import kmeans_kernels as kernels
from jobs.estimators.blocks import Runner, add
from jobs.estimators.kmeans_kernels import Array, Floats, Near
from jobs.randomness import uniform

# Bahmani et al. see no gain beyond five rounds that each take about two candidates a cluster.
_N_ROUNDS = 5
_OVERSAMPLING = 2
# Starts of the clustering of the candidates, which are few.
_N_CANDIDATE_STARTS = 10


class Drawn(NamedTuple):
    """Rows (m, p), what they are sorted by (m,): their random numbers or their global numbers."""

    keys: NDArray[Any]
    rows: Floats


def start_centres(
    run: Runner, rows: list[Any], firsts: list[Any], k: int, seeds: Sequence[int], weights: list[Any] | None = None
) -> Floats:
    """Return k centres for each seed (s, k, p).

    Parameters
    ----------
    run : Runner
        Runs functions where the blocks are.
    rows, firsts : list
        Groups of blocks, and of the global numbers of the blocks' first rows.
    k : int
        Centres of a start.
    seeds : sequence of int
        One a start.
    weights : list, optional
        Groups of the weights of the blocks' rows (n,), float64, or of None.
    """
    weights = [[None] * len(group) for group in rows] if weights is None else weights
    drawn = _gathered(run, run.map(_first, rows, firsts, weights, seeds=seeds))
    candidates = drawn = [one[:1] for one in drawn]
    nears = run.map(_none, rows, n_seeds=len(seeds))
    for draw in range(1, _N_ROUNDS + 1):
        nears = _updated(run, rows, nears, candidates, drawn)
        costs = run.total(add, run.map(_costs, nears, weights))
        if not costs.any():  # every row is a candidate already
            break
        factors = np.divide(_OVERSAMPLING * k, costs, out=np.zeros(len(costs)), where=costs > 0)
        drawn = _gathered(run, run.map(_drawn, rows, firsts, nears, weights, seeds=seeds, draw=draw, factors=factors))
        candidates = [np.concatenate(pair) for pair in zip(candidates, drawn, strict=True)]
    else:
        nears = _updated(run, rows, nears, candidates, drawn)
    sizes = run.total(add, run.map(_sizes, nears, weights, lengths=[len(each) for each in candidates]))
    return np.stack([_clustered(*each, k) for each in zip(candidates, sizes, seeds, strict=True)])


def _gathered(run: Runner, parts: list[Any]) -> list[Floats]:
    """Fetch the rows drawn for each start, in an order that does not tell how they were grouped."""
    found = []
    for of_start in zip(*run.gather(parts), strict=True):
        keys = np.concatenate([part.keys for part in of_start])
        found.append(np.concatenate([part.rows for part in of_start])[np.argsort(keys)])
    return found


def _updated(run: Runner, rows: list[Any], nears: list[Any], candidates: list[Floats], new: list[Floats]) -> list[Any]:
    """Compare each row's nearest candidate with the new ones, which stand last among them."""
    offsets = [len(known) - len(added) for known, added in zip(candidates, new, strict=True)]
    return run.map(_nearer, rows, nears, new=run.share(new), offsets=offsets)


def _clustered(candidates: Floats, weights: Floats, seed: int, k: int) -> Floats:
    # Of equal rows that were drawn together, the first has all the weight.
    candidates, weights = candidates[weights > 0], weights[weights > 0]
    if len(candidates) <= k:
        # Too few: the others start on the first, and KMeans moves them to rows of their own.
        return np.concatenate([candidates, np.repeat(candidates[:1], k - len(candidates), axis=0)])
    model = cluster.KMeans(k, n_init=_N_CANDIDATE_STARTS, random_state=seed)
    return np.asarray(model.fit(candidates, sample_weight=weights).cluster_centers_, dtype=np.float64)


# --- on the workers: functions of a group of blocks; what they return has a place for each start ---------------------


def _first(blocks: list[Array], firsts: list[int], weights: list[Floats | None], seeds: Sequence[int]) -> list[Drawn]:
    """The row of least random number of each block: the least of all is uniform, whatever the blocks.

    With weights, the numbers are exponential with the weight as rate: a row's is the least with a probability that is
    its share of all weight. The order of rows of equal weight is that of rows without any.
    """
    found = []
    for seed in seeds:
        keys, rows = [], []
        for block, first, of_rows in zip(blocks, firsts, weights, strict=True):
            numbers = uniform(seed, 0, np.arange(first, first + len(block)))
            if of_rows is not None:  # of weight 0, the number is infinite, and never the least
                numbers = np.divide(-np.log1p(-numbers), of_rows, out=np.full(len(block), np.inf), where=of_rows > 0)
            chosen = np.argsort(numbers)[:1]
            keys.append(numbers[chosen])
            rows.append(block[chosen].astype(np.float64))
        least = np.argsort(np.concatenate(keys))[:1]
        found.append(Drawn(np.concatenate(keys)[least], np.concatenate(rows)[least]))
    return found


def _drawn(
    blocks: list[Array],
    firsts: list[int],
    nears: list[list[Near]],
    weights: list[Floats | None],
    seeds: Sequence[int],
    draw: int,
    factors: Floats,
) -> list[Drawn]:
    """Rows drawn with probability factor × weight × squared distance, independently of each other."""
    found = []
    for seed, of_start, factor in zip(seeds, nears, factors, strict=True):
        keys, rows = [], []
        for block, first, near, of_rows in zip(blocks, firsts, of_start, weights, strict=True):
            likelihoods = factor * _weighted(near, of_rows)
            chosen = np.flatnonzero(uniform(seed, draw, np.arange(first, first + len(block))) < likelihoods)
            keys.append(first + chosen)
            rows.append(block[chosen].astype(np.float64))
        found.append(Drawn(np.concatenate(keys), np.concatenate(rows)))
    return found


def _none(blocks: list[Array], n_seeds: int) -> list[list[Near]]:
    return [
        [Near(np.full(len(rows), np.inf), np.zeros(len(rows), np.int32)) for rows in blocks] for _ in range(n_seeds)
    ]


def _nearer(blocks: list[Array], nears: list[list[Near]], new: list[Floats], offsets: list[int]) -> list[list[Near]]:
    return [
        [_nearer_of(*pair, added, offset) for pair in zip(blocks, of_start, strict=True)] if len(added) else of_start
        for of_start, added, offset in zip(nears, new, offsets, strict=True)
    ]


def _nearer_of(rows: Array, old: Near, added: Floats, offset: int) -> Near:
    new = kernels.near(rows, added)
    is_nearer = new.squares < old.squares
    return Near(
        np.where(is_nearer, new.squares, old.squares),
        np.where(is_nearer, new.labels + np.int32(offset), old.labels),
    )


def _weighted(near: Near, weights: Floats | None) -> Floats:
    return near.squares if weights is None else weights * near.squares


def _costs(nears: list[list[Near]], weights: list[Floats | None]) -> Floats:
    return np.array([sum(float(_weighted(*pair).sum()) for pair in zip(each, weights, strict=True)) for each in nears])


def _sizes(nears: list[list[Near]], weights: list[Floats | None], lengths: list[int]) -> tuple[Floats, ...]:
    """How many rows are nearest to each candidate, or their weight."""
    return tuple(
        np.sum(
            [np.bincount(near.labels, each, length) for near, each in zip(of_start, weights, strict=True)], axis=0
        ).astype(np.float64)
        for of_start, length in zip(nears, lengths, strict=True)
    )
