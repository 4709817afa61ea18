"""Top-k lists and their metrics equal those found by brute force, one user at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.metrics import ndcg_score

from jobs.estimators import ranking
from jobs.estimators.ranking import RankingSums, ranking_sums, top_k, total

N_USERS, N_ITEMS = 70, 40


@pytest.fixture(scope="module")
def case() -> tuple[Any, Any, Any, Any]:
    """Vectors with many equal scores; seen and relevant items overlap; some users have none of either."""
    rng = np.random.default_rng(0)
    users = rng.integers(0, 3, (N_USERS, 2)).astype(float)
    items = rng.integers(0, 3, (N_ITEMS, 2)).astype(float)
    seen = scipy.sparse.csr_matrix(rng.random((N_USERS, N_ITEMS)) < rng.random((N_USERS, 1)))
    relevant = scipy.sparse.csr_matrix(rng.random((N_USERS, N_ITEMS)) < rng.choice([0, 0.05, 0.5], (N_USERS, 1)))
    return users, items, seen, relevant


def brute_force_lists(users: Any, items: Any, seen: Any, k: int) -> list[list[int]]:
    scores, is_seen = users @ items.T, seen.toarray()
    return [
        sorted((i for i in range(len(items)) if not is_seen[u, i]), key=lambda i: (-scores[u, i], i))[:k]
        for u in range(len(users))
    ]


@pytest.mark.parametrize("k", [1, 5, N_ITEMS])
def test_top_k_is_the_sorted_list_without_what_was_seen(case: Any, k: int) -> None:
    users, items, seen, _ = case
    best, scores = top_k(users, items, seen, k)
    for u, expected in enumerate(brute_force_lists(users, items, seen, k)):
        assert best[u, : len(expected)].tolist() == expected
        assert (best[u, len(expected) :] == -1).all()
        assert_array_equal(scores[u, : len(expected)], items[expected] @ users[u])
        assert np.isneginf(scores[u, len(expected) :]).all()


@pytest.mark.parametrize("k", [1, 3, 10, N_ITEMS])
def test_metrics_equal_brute_force(case: Any, k: int) -> None:
    users, items, seen, relevant = case
    expected = np.zeros(4)
    n_users = 0
    for u, found in enumerate(brute_force_lists(users, items, seen, k)):
        wanted = set(relevant[u].indices) - set(seen[u].indices)
        if not wanted:
            continue
        n_users += 1
        hits = [item in wanted for item in found]
        gain = sum(1 / math.log2(j + 2) for j, hit in enumerate(hits) if hit)
        ideal = sum(1 / math.log2(j + 2) for j in range(min(k, len(wanted))))
        average = sum(sum(hits[: j + 1]) / (j + 1) for j, hit in enumerate(hits) if hit) / min(k, len(wanted))
        expected += [sum(hits) / k, sum(hits) / len(wanted), gain / ideal, average]
    sums = ranking_sums(users, items, seen, relevant, k)
    assert 0 < sums.n_users == n_users < N_USERS
    assert_allclose([sums.precision, sums.recall, sums.ndcg, sums.average_precision], expected, rtol=1e-12)


def test_ndcg_equals_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    users, items = rng.normal(size=(20, 4)), rng.normal(size=(30, 4))
    relevant = rng.random((20, 30)) < 0.3
    sums = ranking_sums(users, items, scipy.sparse.csr_matrix((20, 30)), scipy.sparse.csr_matrix(relevant), 10)
    assert sums.metrics(10)["ndcg@10"] == pytest.approx(ndcg_score(relevant, users @ items.T, k=10))


def test_sums_of_blocks_and_of_chunks_add_up_to_the_whole(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    users, items, seen, relevant = case
    whole = ranking_sums(users, items, seen, relevant, 5)
    monkeypatch.setattr(ranking, "_N_SCORES", 3 * N_ITEMS)
    blocks = [ranking_sums(users[b::4], items, seen[b::4], relevant[b::4], 5) for b in range(4)]
    summed = total(blocks).metrics(5)
    assert summed == pytest.approx(whole.metrics(5), rel=1e-12)
    assert total(blocks).n_users == whole.n_users


def test_a_perfect_list_has_ndcg_and_map_of_one_even_with_fewer_relevant_items_than_k() -> None:
    relevant = scipy.sparse.csr_matrix(np.array([[1, 1, 0, 0, 0]]))
    nothing = scipy.sparse.csr_matrix((1, 5))
    metrics = ranking_sums(np.ones((1, 1)), np.arange(5.0, 0, -1)[:, None], nothing, relevant, 4).metrics(4)
    assert metrics == {"ndcg@4": 1.0, "precision@4": 0.5, "recall@4": 1.0, "map@4": 1.0}


def test_without_relevant_items_all_metrics_are_zero() -> None:
    assert set(RankingSums(0, 0.0, 0.0, 0.0, 0.0).metrics(3).values()) == {0.0}


@pytest.mark.parametrize("k", [0, N_ITEMS + 1])
def test_a_k_beyond_the_items_is_refused(case: Any, k: int) -> None:
    with pytest.raises(ValueError, match=f"k: {k} is not between 1 and the number of items, 40"):
        top_k(*case[:3], k)
