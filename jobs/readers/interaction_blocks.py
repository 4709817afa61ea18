"""From partitions of interactions to blocks of users: codes for ids, repeated ratings settled, a test set apart.

Of n blocks, block b has the users b, b + n, …, by the users' place among the sorted ids. What is set aside to test
on is a function of seed, user id and item id. Every function runs on a worker; called by the recommender pipeline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse
from numpy.typing import NDArray

from jobs.readers.interactions import Ids, Partition, as_text
from jobs.trial import Trial, roles

# `order` is the place in the input, the same for all partition sizes: the number of the part, then the row in it.
_ROW = np.dtype(
    [
        ("user", np.int32),
        ("item", np.int32),
        ("rating", np.float64),
        ("time", np.float64),
        ("order", np.int64),
        ("is_test", np.bool_),
    ]
)


@dataclass(frozen=True)
class Rules:
    """How a block is made: see the params of the same names; without `test_fraction` the input says what is test."""

    n_users: int
    n_items: int
    n_blocks: int
    duplicates: str
    test_fraction: float | None
    seed: int
    trial: Trial | None = None


class BlockCounts(NamedTuple):
    """Counts of a block; those of blocks add up."""

    n_train: int
    n_test: int
    n_duplicates: int
    n_single_users: int


class UserBlock(NamedTuple):
    """Interactions of a block's users: two csr_matrix (n_users of the block, n_items)."""

    train: Any
    test: Any
    counts: BlockCounts


def id_hashes(ids: Ids) -> NDArray[np.uint64]:
    """Return a 64-bit hash of each id."""
    return np.asarray(pd.util.hash_array(ids, categorize=False))


def cut(partitions: Sequence[tuple[int, Partition]], user_ids: Ids, item_ids: Ids, n_blocks: int) -> list[Any]:
    """Give numbered partitions the codes of all ids, and cut their rows by the user's block."""
    rows = np.concatenate([_coded(number, part, user_ids, item_ids) for number, part in partitions])
    blocks = rows["user"] % n_blocks
    return [rows[blocks == b] for b in range(n_blocks)]


def user_block(
    pieces: Sequence[Any], b: int, rules: Rules, user_hashes: NDArray[np.uint64], item_hashes: NDArray[np.uint64]
) -> UserBlock:
    """Put the pieces of block `b` together, settle repeated ratings and set test interactions apart."""
    rows = np.concatenate(pieces)
    n_rows = len(rows)
    rows = _settled(rows, rules.duplicates)
    users = rows["user"] // rules.n_blocks
    n_users = len(range(b, rules.n_users, rules.n_blocks))
    n_of_user = np.bincount(users, minlength=n_users)
    is_test = rows["is_test"]
    if rules.test_fraction is not None:
        keys = _keys(user_hashes[rows["user"]], item_hashes[rows["item"]], rules.seed)
        is_test = _drawn(users, keys, n_of_user, rules.test_fraction)
    chosen = (~is_test, is_test)
    if rules.trial is not None:
        # A pair's number is its hash: no other number of an interaction is the same for all blocks and partitions.
        pairs = _keys(user_hashes[rows["user"]], item_hashes[rows["item"]], 0)
        chosen = roles(is_test, rules.seed, pairs, rules.trial)
    train, test = (
        scipy.sparse.csr_matrix(
            (rows["rating"][kept], (users[kept], rows["item"][kept])), shape=(n_users, rules.n_items)
        )
        for kept in chosen
    )
    n_train, n_test = (int(kept.sum()) for kept in chosen)
    counts = BlockCounts(n_train, n_test, n_rows - len(rows), int((n_of_user == 1).sum()))
    return UserBlock(train, test, counts)


def _coded(number: int, partition: Partition, user_ids: Ids, item_ids: Ids) -> Any:
    rows = np.empty(len(partition.ratings), dtype=_ROW)
    rows["user"] = _positions(partition.user_ids, user_ids)[partition.users]
    rows["item"] = _positions(partition.item_ids, item_ids)[partition.items]
    rows["rating"] = partition.ratings
    rows["time"] = partition.times
    rows["order"] = (number << 32) + np.arange(len(rows))
    rows["is_test"] = partition.is_test
    return rows


def _positions(ids: Ids, of_all: Ids) -> NDArray[np.int64]:
    """Where each id stands among all, which are sorted and may be text because some other partition has text."""
    return np.searchsorted(of_all, as_text(ids) if of_all.dtype == object else ids)


def _settled(rows: Any, duplicates: str) -> Any:
    """Sort by user and item and leave one row of each pair; train and test of the input's own stay apart."""
    rows = rows[np.lexsort((rows["order"], rows["time"], rows["is_test"], rows["item"], rows["user"]))]
    is_first = np.ones(len(rows), dtype=bool)
    is_first[1:] = np.any([rows[name][1:] != rows[name][:-1] for name in ("user", "item", "is_test")], axis=0)
    starts = np.flatnonzero(is_first)
    lengths = np.diff(np.append(starts, len(rows)))
    settled = rows[starts + lengths - 1]
    if duplicates == "mean" and len(rows):
        settled["rating"] = np.add.reduceat(rows["rating"], starts) / lengths
    return settled


def _keys(users: NDArray[np.uint64], items: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """Hash user and item hashes and the seed together."""
    salted = pd.util.hash_array(users + np.uint64(seed))
    return np.asarray(pd.util.hash_array(salted ^ items))


def _drawn(
    users: NDArray[np.int64], keys: NDArray[np.uint64], n_of_user: NDArray[np.int64], fraction: float
) -> NDArray[np.bool_]:
    """The rounded share of each user's rows whose keys are lowest; one row at least is left to train on."""
    n_drawn = np.minimum(np.floor(fraction * n_of_user + 0.5).astype(np.int64), n_of_user - 1)
    first = np.cumsum(n_of_user) - n_of_user
    by_key = np.lexsort((keys, users))
    is_drawn = np.empty(len(users), dtype=bool)
    is_drawn[by_key] = np.arange(len(users)) - first[users[by_key]] < n_drawn[users[by_key]]
    return is_drawn
