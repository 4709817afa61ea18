"""What the recommender pipeline runs on the workers, a block of users at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import scipy.sparse
from numpy.typing import NDArray

from jobs.artifacts import put_table
from jobs.estimators.ranking import RankingSums, ranking_sums, top_k
from jobs.readers.interactions import Ids, Partition

Floats = NDArray[np.float64]


class Measured(NamedTuple):
    """Sums over a block: rankings of model and baseline, and (absolute, squared) errors of both."""

    ranking: RankingSums
    popular: RankingSums
    errors: Floats
    mean_errors: Floats


def measure(
    users: Floats,
    items: Floats,
    popularity: Floats,
    train: Any,
    test: Any,
    k: int,
    mean: float,
    bounds: tuple[float, float],
) -> Measured:
    """Measure a block of users on `test`; `bounds` are the lowest and the highest rating, to which predictions keep."""
    rows = np.repeat(np.arange(len(users)), np.diff(test.indptr))
    predicted = np.clip(mean + _pair_products(users, items, rows, test.indices), *bounds)
    everybody = np.ones((len(users), 1))
    return Measured(
        ranking_sums(users, items, train, test, k),
        ranking_sums(everybody, popularity[:, None], train, test, k),
        _errors(predicted, test.data),
        _errors(np.full(len(rows), mean), test.data),
    )


def _pair_products(users: Floats, items: Floats, rows: NDArray[np.int64], columns: NDArray[np.int32]) -> Floats:
    """Dot products of pairs, a slice at a time: gathered vectors of all pairs would not fit."""
    products = np.empty(len(rows))
    for start in range(0, len(rows), 1 << 16):
        at = slice(start, start + (1 << 16))
        products[at] = np.einsum("ij,ij->i", users[rows[at]], items[columns[at]])
    return products


def _errors(predicted: Floats, actual: Floats) -> Floats:
    differences = predicted - actual
    return np.array([np.abs(differences).sum(), (differences**2).sum()])


def error_metrics(errors: Sequence[Floats], n: int) -> dict[str, float]:
    """Return RMSE and MAE from blocks' sums of absolute and squared errors over `n` ratings in all."""
    absolute, squared = np.sum(errors, axis=0) / n
    return {"rmse": math.sqrt(squared), "mae": float(absolute)}


def popularity(by_item: Sequence[Any], n_items: int) -> Floats:
    """Count the interactions of each item, (n_items,)."""
    counts = np.empty(n_items)
    for b, block in enumerate(by_item):
        counts[b :: len(by_item)] = np.diff(block.indptr)
    return counts


def _known(train: Any, test: Any) -> Any:
    """All interactions of a block's users, as ones: a sum would drop ratings of 0."""
    marks = [scipy.sparse.csr_matrix((np.ones(m.nnz), m.indices, m.indptr), m.shape) for m in (train, test)]
    return marks[0] + marks[1]


def recommendations(
    users: Floats,
    items: Floats,
    train: Any,
    test: Any,
    user_ids: Any,
    item_ids: Any,
    block: tuple[int, int],
    n: int,
    mean: float,
    n_users: int | None = None,
) -> Any:
    """Arrow table of user, item, rank (from 1), score: best first, without what the user has interacted with."""
    some = slice(0, n_users)
    best, scores = top_k(users[some], items, _known(train, test)[some], n)
    is_there = best >= 0
    owners = user_ids[block[0] :: block[1]][some]
    return pa.table(
        {
            "user": _id_column(np.repeat(owners, is_there.sum(axis=1))),
            "item": _id_column(item_ids[best[is_there]]),
            "rank": np.nonzero(is_there)[1].astype(np.int32) + np.int32(1),
            "score": scores[is_there] + mean,
        }
    )


def factors(vectors: Floats, ids: Any, block: tuple[int, int], rank: int, bias: int) -> Any:
    """Arrow table of id, factors and, where the model has one, bias."""
    factors = pa.FixedSizeListArray.from_arrays(np.ascontiguousarray(vectors[:, :rank]).ravel(), rank)
    columns = {"id": _id_column(ids[block[0] :: block[1]]), "factors": factors}
    if vectors.shape[1] > rank:
        columns["bias"] = np.ascontiguousarray(vectors[:, bias])
    return pa.table(columns)


def _id_column(ids: Ids) -> Any:
    """Ids as an Arrow array of text or integers: left to itself, Arrow takes text of which there is none for nulls."""
    return pa.array(ids, pa.string() if ids.dtype == object else pa.int64())


def written(url: str, function: Any, *args: Any) -> tuple[int, str]:
    """Write the table that a function makes to Parquet; return size and SHA-256 of the file."""
    return put_table(url, function(*args))


class Size(NamedTuple):
    """What the runner needs to know of a partition: rows, rows dropped, and its kind of times if it has any."""

    n_rows: int
    n_dropped: int
    time_kind: str | None


def size(partition: Partition) -> Size:
    """Return the size of a partition."""
    return Size(len(partition.ratings), partition.n_dropped, partition.time_kind)


def ids_of(partition: Partition, name: str) -> Any:
    """Return the partition's `user_ids` or `item_ids`."""
    return getattr(partition, name)


def bounds(block: Any) -> tuple[float, float]:
    """Return the lowest and the highest value of a sparse block."""
    return (float(block.data.min()), float(block.data.max())) if block.nnz else (math.inf, -math.inf)
