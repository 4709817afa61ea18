"""The split is drawn by user and item, repeated ratings are settled, and no cut of the input changes either."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from numpy.testing import assert_array_equal

from jobs.readers.interaction_blocks import Rules, UserBlock, cut, id_hashes, user_block
from jobs.readers.interactions import Partition, union

N = 3000


def partition_of(users: Any, items: Any, ratings: Any, times: Any = None, is_test: bool = False) -> Partition:
    user_ids, user_codes = np.unique(np.asarray(users), return_inverse=True)
    item_ids, item_codes = np.unique(np.asarray(items), return_inverse=True)
    times = np.full(len(ratings), -np.inf) if times is None else np.asarray(times, dtype=float)
    return Partition(user_ids, item_ids, user_codes, item_codes, np.asarray(ratings, dtype=float), times, 0, is_test)


def blocks_of(partitions: list[Partition], n_blocks: int = 1, **rules: Any) -> list[UserBlock]:
    user_ids, item_ids = (union([getattr(p, name) for p in partitions]) for name in ("user_ids", "item_ids"))
    made = replace(Rules(len(user_ids), len(item_ids), n_blocks, "last", 0.2, 0), **rules)
    cuts = [cut([numbered], user_ids, item_ids, n_blocks) for numbered in enumerate(partitions)]
    hashes = id_hashes(user_ids), id_hashes(item_ids)
    return [user_block([pieces[b] for pieces in cuts], b, made, *hashes) for b in range(n_blocks)]


def whole(blocks: list[UserBlock], name: str) -> Any:
    parts = [getattr(block, name).toarray() for block in blocks]
    dense = np.zeros((sum(len(part) for part in parts), parts[0].shape[1]))
    for b, part in enumerate(parts):
        dense[b :: len(parts)] = part
    return dense


@pytest.fixture(scope="module")
def rows() -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 50, N) ** 2, rng.integers(0, 80, N), rng.integers(1, 6, N).astype(float)


def partitions_of(rows: tuple[Any, Any, Any], n: int) -> list[Partition]:
    return [partition_of(*(column[at] for column in rows)) for at in np.array_split(np.arange(N), n)]


@pytest.mark.parametrize("duplicates", ["last", "mean"])
@pytest.mark.parametrize(("n_partitions", "n_blocks"), [(1, 2), (7, 1), (40, 5), (3, 64)])
def test_partitions_and_blocks_do_not_change_the_split(
    rows: Any, duplicates: str, n_partitions: int, n_blocks: int
) -> None:
    expected = blocks_of(partitions_of(rows, 1), 1, duplicates=duplicates)
    found = blocks_of(partitions_of(rows, n_partitions), n_blocks, duplicates=duplicates)
    for name in ("train", "test"):
        assert_array_equal(whole(found, name), whole(expected, name))
    assert np.sum([block.counts for block in found], axis=0).tolist() == list(expected[0].counts)


def test_every_interaction_is_in_train_or_test_and_each_user_gives_the_rounded_share(rows: Any) -> None:
    (block,) = blocks_of(partitions_of(rows, 1), test_fraction=0.3)
    train, test = block.train.toarray() > 0, block.test.toarray() > 0
    assert not (train & test).any()
    users, items = np.unique(rows[0], return_inverse=True)[1], np.unique(rows[1], return_inverse=True)[1]
    expected = np.zeros_like(train)
    expected[users, items] = True
    assert_array_equal(train | test, expected)
    assert_array_equal(test.sum(axis=1), np.floor(0.3 * expected.sum(axis=1) + 0.5))
    assert (block.counts.n_train, block.counts.n_test) == (train.sum(), test.sum())


def test_another_seed_draws_another_test_set_and_other_users_do_not_matter(rows: Any) -> None:
    (block,) = blocks_of(partitions_of(rows, 1))
    (other,) = blocks_of(partitions_of(rows, 1), seed=1)
    both = (block.test.toarray() > 0) & (other.test.toarray() > 0)
    assert 0.1 < both.sum() / block.counts.n_test < 0.3  # a fifth, if independent
    few = rows[0] <= 100
    (alone,) = blocks_of([partition_of(*(column[few] for column in rows))])
    n_users, n_items = alone.test.shape
    assert n_items == block.test.shape[1]
    assert_array_equal(alone.test.toarray(), block.test.toarray()[:n_users])


def test_the_last_rating_stands_by_time_then_by_place() -> None:
    early, late = partition_of([1, 1], [1, 2], [5, 5], [9, 0]), partition_of([1, 1], [1, 2], [1, 2], [3, 0])
    (block,) = blocks_of([early, late], test_fraction=0.01)
    assert block.train.toarray().tolist() == [[5, 2]]
    assert block.counts.n_duplicates == 2


def test_the_mean_of_repeated_ratings_stands_if_asked() -> None:
    (block,) = blocks_of(
        [partition_of([1, 1, 1], [1, 1, 2], [5, 2, 4]), partition_of([1], [1], [2])],
        test_fraction=0.01,
        duplicates="mean",
    )
    assert block.train.toarray().tolist() == [[3, 4]]


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.99])
def test_a_user_with_one_rating_goes_to_train_and_is_counted(fraction: float) -> None:
    (block,) = blocks_of([partition_of([1, 2, 2, 2], [1, 1, 2, 3], [3, 4, 5, 1])], test_fraction=fraction)
    assert block.train.toarray()[0].tolist() == [3, 0, 0]
    assert block.train[1].nnz >= 1
    assert block.counts.n_single_users == 1


def test_a_test_set_of_its_own_is_kept_apart_and_a_zero_rating_is_kept() -> None:
    train, test = partition_of([1, 2], [1, 1], [0, 4]), partition_of([1, 3], [1, 2], [2, 5], is_test=True)
    (block,) = blocks_of([train, test], test_fraction=None)
    assert (block.train.nnz, block.test.nnz, block.counts.n_duplicates) == (2, 2, 0)
    assert block.test.toarray().tolist() == [[2, 0], [0, 0], [0, 5]]


def test_integer_and_text_ids_of_different_partitions_meet_as_text() -> None:
    text = Partition(
        np.array(["7", "x"], dtype=object), np.array([1]), np.array([0, 1]), np.array([0, 0]),
        np.array([2.0, 3.0]), np.zeros(2), 0, False,
    )  # fmt: skip
    (block,) = blocks_of([partition_of([7, 10], [1, 1], [1, 1], [1, 1]), text])
    assert scipy.sparse.issparse(block.train)
    assert block.train.toarray().ravel().tolist() == [1, 1, 3]  # "10", "7", "x": the later rating of 7 stands
