"""Does a fit go on, to the same result, when a worker is killed in the middle of it?"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from distributed import Client, LocalCluster
from scipy import sparse

from jobs.estimators import NMF, ImplicitALS, InteractionBlocks, LogisticRegression, als

N_BLOCKS = 4


def rows(block: int) -> sparse.csr_array:
    random = np.random.default_rng(block)
    dense = random.gamma(0.3, size=(100, 5)) @ np.random.default_rng(9).gamma(0.2, size=(5, 40))
    return sparse.csr_array(np.where(random.random(dense.shape) < 0.5, dense + 0.01, 0))


def classes(block: int) -> Any:
    return np.random.default_rng(50 + block).integers(0, 3, 100)


def fit_nmf(client: Client, listen: Callable[..., None]) -> Any:
    return NMF(4, max_iter=12).fit(client.map(rows, range(N_BLOCKS)), on_iteration=listen).components_


def fit_logistic(client: Client, listen: Callable[..., None]) -> Any:
    blocks = client.map(rows, range(N_BLOCKS)), client.map(classes, range(N_BLOCKS))
    return LogisticRegression(tol=1e-11).fit(*blocks, on_iteration=listen).coef_


def fit_als(client: Client, listen: Callable[..., None]) -> Any:
    blocks = InteractionBlocks.from_user_blocks(client.map(rows, range(N_BLOCKS)), 100 * N_BLOCKS, 40, client)
    return ImplicitALS(4).fit(blocks, client=client, on_iteration=listen).item_factors_


@pytest.mark.slow
@pytest.mark.parametrize("fit", [fit_nmf, fit_logistic, fit_als])
def test_a_fit_outlives_a_worker(fit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(als, "_SMALL", 0)  # else there would be one task, before anybody is told of an iteration
    n_told = 0

    def listen(*progress: Any) -> None:
        nonlocal n_told
        n_told += 1
        if n_told == 3:
            os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)

    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=logging.CRITICAL
        ) as cluster,
        Client(cluster) as client,
    ):
        expected = fit(client, lambda *progress: None)
        found = fit(client, listen)
    assert n_told > 3
    np.testing.assert_allclose(found, expected, atol=1e-9 * np.abs(expected).max())
