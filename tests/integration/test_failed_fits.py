"""A fit that fails leaves no task on the cluster of its client, nor takes the user's own from it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client, LocalCluster, wait
from scipy import sparse

from jobs import sharing
from jobs.estimators import (
    NMF,
    KMeans,
    LinearRegression,
    LogisticRegression,
    Ridge,
    TfidfVectorizer,
)
from jobs.training.mlp_estimators import MLPClassifier
from tests.threads import threads

N_BLOCKS = 6
GONE_WITHIN_S = 20.0


@pytest.fixture
def client() -> Iterator[Client]:
    with threads(2) as client:
        yield client


def tasks_of(client: Client) -> set[str]:
    found = client.run_on_scheduler(lambda dask_scheduler: sorted(map(str, dask_scheduler.tasks)))
    return set(found)


def assert_no_more_than(client: Client, tasks: set[str]) -> None:
    deadline = time.monotonic() + GONE_WITHIN_S
    while more := tasks_of(client) - tasks:
        assert time.monotonic() < deadline, more
        time.sleep(0.05)
    assert tasks_of(client) == tasks


def rows(block: int, bad: Any = None) -> Any:
    if block == N_BLOCKS - 1 and bad is not None:
        bad()
    return np.random.default_rng(block).random((50, 3))


def classes(block: int) -> Any:
    return np.random.default_rng(block).integers(0, 2, 50)


def texts(block: int, bad: Any = None) -> Any:
    rows(block, bad)
    return ["one two three", "two three four"]


def interactions(block: int, bad: Any = None) -> Any:
    return sparse.csr_matrix(rows(block, bad))


def break_down() -> None:
    raise ValueError("a block that cannot be made")


def crash() -> None:
    os._exit(1)


def delayed(make: Callable[..., Any], bad: Any = None) -> list[Any]:
    return [dask.delayed(make)(block, bad) if bad else dask.delayed(make)(block) for block in range(N_BLOCKS)]


FITS: dict[str, tuple[Callable[[list[Any]], Any], Callable[..., Any]]] = {
    "KMeans": (lambda blocks: KMeans(2).fit(blocks), rows),
    "LinearRegression": (lambda blocks: LinearRegression().fit(blocks, delayed(classes)), rows),
    "Ridge": (lambda blocks: Ridge().fit(blocks, delayed(classes)), rows),
    "LogisticRegression": (lambda blocks: LogisticRegression().fit(blocks, delayed(classes)), rows),
    "MLPClassifier": (lambda blocks: MLPClassifier(max_iter=1).fit(blocks, delayed(classes)), rows),
    "NMF": (lambda blocks: NMF(2, max_iter=3).fit(blocks), interactions),
    "TfidfVectorizer": (lambda blocks: TfidfVectorizer().fit(blocks), texts),
    "TfidfVectorizer's rows": (lambda blocks: TfidfVectorizer(mode="hashed").fit_transform(blocks), texts),
}


@pytest.mark.parametrize("how", FITS)
def test_a_fit_whose_blocks_cannot_be_made_leaves_no_task(client: Client, how: str) -> None:
    fit, make = FITS[how]
    before = tasks_of(client)
    # The error is kept, as an interpreter keeps the last one.
    with pytest.raises(ValueError, match="a block that cannot be made") as raised:
        client.gather(fit(delayed(make, break_down)))
    assert_no_more_than(client, before)
    assert raised.value is not None
    if how != "MLPClassifier":  # whose threads here would train in processes
        fit(delayed(make))


def test_a_fit_whose_values_are_refused_leaves_the_users_own_futures_alone(client: Client) -> None:
    blocks = client.map(rows, range(N_BLOCKS), pure=False)
    bad = client.submit(np.full, (50, 3), np.nan, pure=False)
    wait([*blocks, bad])
    before = tasks_of(client)
    for fit in (KMeans(2).fit, lambda x: LinearRegression().fit(x, client.map(classes, range(N_BLOCKS + 1)))):
        with pytest.raises(ValueError, match="NaN"):
            fit([*blocks, bad])
    assert_no_more_than(client, before)
    assert KMeans(2).fit(blocks).cluster_centers_.shape == (2, 3)
    assert np.isfinite(client.gather(blocks)).all()


@pytest.mark.parametrize("is_known", [True, False], ids=["known chunks", "unknown chunks"])
def test_what_the_user_has_persisted_stays_after_a_failed_fit(client: Client, is_known: bool) -> None:
    values = np.random.default_rng(0).random((60, 3))
    array = da.from_array(values, chunks=(10, 3))
    array = (array if is_known else array[array[:, 0] > -1]).persist()
    wait(array)
    before = tasks_of(client)
    with pytest.raises(ValueError, match="Negative") as raised:
        NMF(2).fit(array - 1)
    assert_no_more_than(client, before)
    assert raised.value is not None
    np.testing.assert_array_equal(array.compute(), values)


def test_delayed_blocks_that_the_user_has_computed_stay_after_a_failed_fit(client: Client) -> None:
    blocks = delayed(rows)
    mine = client.compute(blocks)
    wait(mine)
    before = tasks_of(client)
    with pytest.raises(ValueError, match="alpha"):
        Ridge(alpha=-1).fit(blocks, delayed(classes))
    with pytest.raises(ValueError, match=r"rows|blocks|shape|lengths"):
        Ridge().fit(blocks, delayed(classes)[:-1])
    assert_no_more_than(client, before)
    assert len(client.gather(mine)) == N_BLOCKS


def test_a_job_can_ask_about_the_tasks_of_a_failed_fit_until_its_end(client: Client) -> None:
    before = tasks_of(client)
    with sharing.defer_release():
        with pytest.raises(ValueError, match="cannot be made"):
            KMeans(2).fit(delayed(rows, break_down))
        assert tasks_of(client) > before
    assert_no_more_than(client, before)


def test_a_fit_whose_blocks_end_workers_does_not_end_those_of_the_next_fit() -> None:
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=logging.CRITICAL
        ) as cluster,
        Client(cluster) as client,
    ):
        bad = [dask.delayed(rows)(N_BLOCKS - 1, crash) for _ in range(4)]
        with pytest.raises(Exception, match="Attempted to run task") as raised:
            KMeans(2).fit(bad)
        assert_no_more_than(client, set())
        client.wait_for_workers(2, timeout=60)
        assert KMeans(2).fit(delayed(rows)).cluster_centers_.shape == (2, 3)
        assert raised.value is not None
