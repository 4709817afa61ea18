from itertools import pairwise

import numpy as np
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.decomposition import NMF as Oracle

from jobs.estimators.nmf import NMF
from tests.threads import threads


def rows(n: int = 150, n_features: int = 60, n_topics: int = 5, noise: float = 0.3) -> sparse.csr_array:
    random = np.random.default_rng(7)
    shares = random.gamma(0.3, size=(n, n_topics))
    topics = random.gamma(0.2, size=(n_topics, n_features))
    x = shares @ topics + noise * random.random((n, n_features))
    return sparse.csr_array(np.where(random.random(x.shape) < 0.4, x, 0).astype(np.float32))


@pytest.mark.parametrize("n_components", [2, 4, 8])
def test_the_error_is_at_most_one_percent_above_that_of_scikit_learn(n_components: int) -> None:
    x = rows()
    ours = NMF(n_components).fit(x)
    theirs = Oracle(n_components, init="nndsvda", max_iter=2000).fit(x)
    assert ours.reconstruction_err_ <= 1.01 * theirs.reconstruction_err_


def test_factors_are_not_negative_and_their_product_has_the_error_that_is_told() -> None:
    x = rows()
    model = NMF(4, tol=1e-9, max_iter=1000)
    shares = model.fit_transform(x)
    assert shares.min() >= 0
    assert model.components_.min() >= 0
    np.testing.assert_allclose(np.linalg.norm(model.components_, axis=1), 1)
    error = np.linalg.norm(x.toarray() - shares @ model.components_)
    assert error == pytest.approx(model.reconstruction_err_, rel=1e-4)
    assert model.norm_ == pytest.approx(sparse.linalg.norm(x), rel=1e-6)


def test_topics_that_share_no_term_are_found_exactly() -> None:
    topics = np.kron(np.eye(3), np.ones(4)) * np.array([1, 2, 3, 4] * 3)
    shares = np.random.default_rng(0).gamma(0.5, size=(50, 3))
    model = NMF(3, tol=1e-12, max_iter=1000).fit(sparse.csr_array(shares @ topics))
    assert model.reconstruction_err_ / model.norm_ < 1e-4
    supports = {tuple(np.flatnonzero(row > 1e-2)) for row in model.components_}
    assert supports == {(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11)}


@pytest.mark.parametrize("size", [11, 80])
def test_the_result_does_not_depend_on_how_rows_are_cut(size: int) -> None:
    x = rows()
    whole = NMF(4).fit(x)
    blocks = [x[at : at + size] for at in range(0, x.shape[0], size)]
    cut = NMF(4).fit(blocks)
    assert cut.n_iter_ == whole.n_iter_
    np.testing.assert_allclose(cut.components_, whole.components_, atol=1e-8)
    np.testing.assert_allclose(np.vstack(cut.transform(blocks)), whole.transform(x), atol=1e-7)


@pytest.mark.parametrize("n_workers", [1, 2, 4])
def test_the_result_does_not_depend_on_the_number_of_workers(n_workers: int) -> None:
    x = rows()
    with threads(n_workers) as client:
        model = NMF(4).fit([client.submit(x.__getitem__, slice(at, at + 13)) for at in range(0, 150, 13)])
    np.testing.assert_allclose(model.components_, NMF(4).fit(x).components_, atol=1e-8)


def test_iterations_are_told_and_the_error_never_grows() -> None:
    told: list[float] = []
    model = NMF(4).fit(rows(), on_iteration=lambda step, error: told.append(error))
    assert len(told) == model.n_iter_ < 200
    assert all(after <= before + 1e-12 for before, after in pairwise(told))


def test_a_seed_changes_the_start_alone() -> None:
    first, second = NMF(4, seed=1).fit(rows()), NMF(4, seed=2).fit(rows())
    assert first.reconstruction_err_ == pytest.approx(second.reconstruction_err_, rel=1e-3)


@pytest.mark.parametrize("n_components", [0, 61])
def test_more_topics_than_rows_or_columns_are_an_error(n_components: int) -> None:
    with pytest.raises(ValueError, match=f"n_components={n_components} should be .* n_samples=150 and n_features=60"):
        NMF(n_components).fit(rows())


def test_nothing_but_zeros_has_no_topics() -> None:
    with pytest.raises(ValueError, match="zero throughout"):
        NMF(2).fit(sparse.csr_array((5, 5), dtype=np.float32))


def test_init_only_stores() -> None:
    model = NMF(3, seed=4)
    assert clone(model).get_params() == model.get_params()
    assert not [name for name in vars(model) if name.endswith("_")]
