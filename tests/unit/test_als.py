"""The factorisations solve what they say, whatever the blocks, the workers or the solver."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from distributed import Client
from numpy.testing import assert_allclose

from jobs.estimators import als
from jobs.estimators.als import ExplicitALS, ImplicitALS
from jobs.estimators.als_blocks import InteractionBlocks
from jobs.estimators.als_steps import first_step
from tests.threads import threads

N_USERS, N_ITEMS, RANK = 60, 45, 5
MODELS = [
    ExplicitALS(RANK, regularization=0.5, bias_regularization=0.2),
    ImplicitALS(RANK, regularization=0.5),
    ImplicitALS(RANK, regularization=0.5, n_cg_steps=0),
]
IDS = ["explicit", "implicit-cg", "implicit-cholesky"]


@pytest.fixture(scope="module")
def ratings() -> Any:
    """Ratings 1 to 5 of 30 % of the pairs; user 3 and item 7 have none."""
    rng = np.random.default_rng(0)
    dense = np.where(rng.random((N_USERS, N_ITEMS)) < 0.3, rng.integers(1, 6, (N_USERS, N_ITEMS)), 0)
    dense[3], dense[:, 7] = 0, 0
    return scipy.sparse.csr_matrix(dense.astype(float))


def copy_of(model: Any, **changes: Any) -> Any:
    names = {"rank", "regularization", "bias_regularization", "alpha", "n_iterations", "n_cg_steps", "seed"}
    return type(model)(**{k: v for k, v in vars(model).items() if k in names} | changes)


def test_an_explicit_iteration_solves_every_row_like_a_ridge_regression(ratings: Any) -> None:
    model = ExplicitALS(RANK, regularization=0.7, bias_regularization=0.3, n_iterations=1).fit(ratings)
    mean = ratings.data.mean()
    other, penalty = first_step(N_ITEMS, RANK, 1, 0).rows, np.diag([0.7] * RANK + [0.3])

    def solved(matrix: Any, other: Any) -> Any:
        rows = np.zeros((matrix.shape[0], RANK + 1))
        for row in range(matrix.shape[0]):
            at = matrix[row].indices
            design = np.hstack([other[at, :RANK], np.ones((len(at), 1))])
            target = matrix[row].data - mean - other[at, RANK]
            rows[row] = np.linalg.solve(design.T @ design + penalty, design.T @ target)
        return rows

    users = solved(ratings, other)
    items = solved(ratings.T.tocsr(), users)
    assert_allclose(model.user_factors_, users[:, :RANK], atol=1e-10)
    assert_allclose(model.item_factors_, items[:, :RANK], atol=1e-10)
    every = np.unravel_index(np.arange(N_USERS * N_ITEMS), (N_USERS, N_ITEMS))
    expected = mean + users[:, RANK:] + items[:, RANK] + users[:, :RANK] @ items[:, :RANK].T
    assert_allclose(model.predict_pairs(*every), expected.ravel(), atol=1e-10)


def test_an_implicit_iteration_solves_the_weighted_regression_on_all_items(ratings: Any) -> None:
    model = ImplicitALS(RANK, alpha=1.5, regularization=0.7, n_iterations=1, n_cg_steps=0).fit(ratings)

    def solved(values: Any, other: Any) -> Any:
        rows = np.zeros((len(values), RANK))
        for row, value in enumerate(values):
            confidence = np.diag(1 + 1.5 * value)
            normal = other.T @ confidence @ other + 0.7 * np.eye(RANK)
            rows[row] = np.linalg.solve(normal, other.T @ confidence @ (value > 0))
        return rows

    users = solved(ratings.toarray(), first_step(N_ITEMS, RANK, 0, 0).rows)
    assert_allclose(model.user_factors_, users, atol=1e-10)
    assert_allclose(model.item_factors_, solved(ratings.toarray().T, users), atol=1e-10)


def test_enough_conjugate_gradient_steps_equal_cholesky(ratings: Any) -> None:
    exact = ImplicitALS(RANK, regularization=0.5, n_iterations=2, n_cg_steps=0).fit(ratings)
    steps = ImplicitALS(RANK, regularization=0.5, n_iterations=2, n_cg_steps=3 * RANK).fit(ratings)
    assert_allclose(steps.user_factors_, exact.user_factors_, atol=1e-8)


@pytest.mark.parametrize("model", MODELS, ids=IDS)
def test_the_objective_never_rises(model: Any, ratings: Any) -> None:
    fitted = copy_of(model, n_iterations=25).fit(ratings)
    assert len(fitted.objective_) == 25
    assert np.diff(fitted.objective_).max() <= 1e-9 * fitted.objective_[0]
    assert fitted.objective_[-1] < fitted.objective_[0]


def test_the_explicit_objective_is_that_of_its_formula(ratings: Any) -> None:
    model = ExplicitALS(RANK, regularization=0.7, bias_regularization=0.3, n_iterations=3).fit(ratings)
    pairs = ratings.tocoo()
    error = ((pairs.data - model.predict_pairs(pairs.row, pairs.col)) ** 2).sum()
    factors = (model.user_factors_**2).sum() + (model.item_factors_**2).sum()
    biases = (model.user_vectors_[0][:, RANK] ** 2).sum() + (model.item_vectors_[:, RANK + 1] ** 2).sum()
    assert model.objective_[-1] == pytest.approx(error + 0.7 * factors + 0.3 * biases, rel=1e-12)


def test_the_implicit_objective_is_that_of_its_formula(ratings: Any) -> None:
    model = ImplicitALS(RANK, alpha=1.5, regularization=0.7, n_iterations=3).fit(ratings)
    dense = ratings.toarray()
    error = ((1 + 1.5 * dense) * ((dense > 0) - model.user_factors_ @ model.item_factors_.T) ** 2).sum()
    factors = (model.user_factors_**2).sum() + (model.item_factors_**2).sum()
    assert model.objective_[-1] == pytest.approx(error + 0.7 * factors, rel=1e-12)


def test_planted_factors_are_found_up_to_the_noise() -> None:
    rng = np.random.default_rng(1)
    truth = (
        3.0 + rng.normal(size=(200, 1)) + rng.normal(size=150) + rng.normal(size=(200, 3)) @ rng.normal(size=(3, 150))
    )
    noisy = truth + 0.1 * rng.normal(size=truth.shape)
    is_train = rng.random(truth.shape) < 0.5
    users, items = np.nonzero(is_train)
    train = scipy.sparse.csr_matrix((noisy[is_train], (users, items)), shape=truth.shape)
    model = ExplicitALS(3, regularization=0.1, bias_regularization=0.1, n_iterations=30).fit(train)
    rest = np.nonzero(~is_train)
    rmse = np.sqrt(np.mean((model.predict_pairs(*rest) - noisy[rest]) ** 2))
    assert rmse < 0.115


def test_planted_groups_are_recommended_to_their_own_users() -> None:
    rng = np.random.default_rng(2)
    group_of_user, group_of_item = np.arange(80) % 4, np.arange(60) % 4
    clicks = (group_of_user[:, None] == group_of_item) & (rng.random((80, 60)) < 0.5)
    model = ImplicitALS(8, regularization=1.0).fit(scipy.sparse.csr_matrix(clicks.astype(float)))
    scores = np.where(clicks, -np.inf, model.user_factors_ @ model.item_factors_.T)
    assert (group_of_item[scores.argmax(axis=1)] == group_of_user).mean() > 0.95
    similar, cosines = model.similar_items(5, 10)
    assert (group_of_item[similar] == group_of_item[5]).all()
    assert 5 not in similar
    assert (np.diff(cosines) <= 0).all()


@pytest.mark.parametrize("n_cg_steps", [3, 0])
@pytest.mark.parametrize("n_blocks", [1, 3])
def test_counts_in_float32_give_the_same_factors_in_float32(n_cg_steps: int, n_blocks: int, ratings: Any) -> None:
    model = ImplicitALS(RANK, regularization=0.5, n_cg_steps=n_cg_steps)
    double = copy_of(model).fit(ratings)
    single = copy_of(model).fit(InteractionBlocks.of(ratings.astype(np.float32), n_blocks))
    assert single.user_factors_.dtype == single.item_factors_.dtype == np.float32
    assert single.predict_pairs(np.arange(3), np.arange(3)).dtype == np.float32
    assert_allclose(
        single.user_factors_ @ single.item_factors_.T, double.user_factors_ @ double.item_factors_.T, atol=1e-4
    )
    assert_allclose(single.objective_, double.objective_, rtol=1e-5)
    assert_allclose(single.fold_in(ratings[10:20]), double.fold_in(ratings[10:20]), atol=1e-3)


@pytest.mark.parametrize("model", MODELS, ids=IDS)
@pytest.mark.parametrize("n_blocks", [2, 3, 7])
def test_the_result_is_the_same_for_any_number_of_blocks(model: Any, n_blocks: int, ratings: Any) -> None:
    whole = copy_of(model).fit(ratings)
    cut = copy_of(model).fit(InteractionBlocks.of(ratings, n_blocks))
    assert_allclose(cut.user_factors_, whole.user_factors_, atol=1e-9)
    assert_allclose(cut.item_factors_, whole.item_factors_, atol=1e-9)
    assert_allclose(cut.objective_, whole.objective_, rtol=1e-11)


@pytest.fixture(scope="module", params=[1, 2, 4])
def threaded_client(request: pytest.FixtureRequest) -> Iterator[Client]:
    with threads(request.param) as client:
        yield client


@pytest.mark.parametrize("is_spread", [True, False], ids=["on all workers", "on one"])
@pytest.mark.parametrize("model", MODELS[:2], ids=IDS[:2])
def test_the_result_is_the_same_for_any_number_of_workers(
    model: Any, is_spread: bool, threaded_client: Client, ratings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_spread:  # as data would be that is worth the messages
        monkeypatch.setattr(als, "_SMALL", 0)
    whole = copy_of(model).fit(ratings)
    n_blocks = len(threaded_client.nthreads())
    futures = [threaded_client.submit(lambda b=b: ratings[b::n_blocks], pure=False) for b in range(n_blocks)]
    blocks = InteractionBlocks.from_user_blocks(futures, *ratings.shape, client=threaded_client)
    seen: list[tuple[int, int]] = []
    spread = copy_of(model).fit(
        blocks, client=threaded_client, on_iteration=lambda done, of, objective: seen.append((done, of))
    )
    assert_allclose(spread.user_factors_, whole.user_factors_, atol=1e-9)
    assert_allclose(spread.item_factors_, whole.item_factors_, atol=1e-9)
    assert seen == [(i, 10) for i in range(1, 11)]


def test_a_starting_factor_depends_on_seed_and_place_alone() -> None:
    few, many = first_step(10, 4, 1, 7).rows, first_step(1000, 4, 1, 7).rows
    assert_allclose(few, many[:10], rtol=0)
    assert not np.allclose(few, first_step(10, 4, 1, 8).rows)
    assert_allclose([many[:, :4].mean(), many[:, :4].std()], [0, 0.1], atol=0.01)


@pytest.mark.parametrize("model", [MODELS[0], MODELS[2]], ids=[IDS[0], IDS[2]])
def test_folding_in_users_is_what_the_next_iteration_would_make_of_them(model: Any, ratings: Any) -> None:
    fitted = copy_of(model, n_iterations=3).fit(ratings)
    expected = copy_of(model, n_iterations=4).fit(ratings).user_vectors_[0]
    assert_allclose(fitted.fold_in(ratings[10:20]), expected[10:20], atol=1e-9)
    with pytest.raises(ValueError, match="X has 4 features"):
        fitted.fold_in(scipy.sparse.csr_matrix((1, 4)))


@pytest.mark.parametrize("model", MODELS, ids=IDS)
def test_users_and_items_without_interactions_have_factors_of_zero(model: Any, ratings: Any) -> None:
    fitted = copy_of(model, n_iterations=2).fit(ratings)
    assert not fitted.user_factors_[3].any()
    assert not fitted.item_factors_[7].any()


def test_a_stored_zero_is_a_rating() -> None:
    rated = scipy.sparse.csr_matrix((np.array([0.0, 4.0]), ([0, 1], [0, 0])), shape=(2, 1))
    model = ExplicitALS(1, bias_regularization=0.01).fit(rated)
    assert model.mean_ == 2.0
    assert model.predict_pairs(np.array([0]), np.array([0]))[0] < 0.1


@pytest.mark.parametrize(
    ("model", "values", "message"),
    [
        (MODELS[0], [1.0, np.nan], "contains NaN"),
        (MODELS[0], [], "no stored value"),
        (MODELS[1], [1.0, np.inf], "contains infinity"),
        (MODELS[1], [1.0, -2.0], "Negative values .* -2; a count is above 0"),
    ],
)
def test_values_that_cannot_be_fitted_are_refused(model: Any, values: list[float], message: str) -> None:
    at = np.arange(len(values))
    matrix = scipy.sparse.csr_matrix((np.array(values), (at, at)), shape=(3, 3))
    with pytest.raises(ValueError, match=message):
        copy_of(model).fit(matrix)


@pytest.mark.parametrize(
    ("model", "value", "dtype"),
    [
        (ExplicitALS(RANK), 1e200, np.float64),
        (ExplicitALS(RANK), -1e200, np.float64),
        (ImplicitALS(RANK), 1e200, np.float64),
        (ImplicitALS(RANK), 1e12, np.float32),
        (ImplicitALS(RANK), 3e38, np.float32),
    ],
)
def test_values_that_overflow_are_refused(model: Any, value: float, dtype: type, ratings: Any) -> None:
    spoilt = ratings.astype(dtype)
    spoilt.data[5] = value
    with pytest.raises(ValueError, match=r"interactions: values of up to .*divide them"):
        copy_of(model, n_iterations=5).fit(spoilt)
