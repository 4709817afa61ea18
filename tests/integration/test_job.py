"""What a job does with its tasks where one of them fails."""

from __future__ import annotations

import time
from typing import Any

import pytest
from distributed import LocalCluster

from tests.conftest import JobFactory
from tests.threads import threads


def fail_first(number: int) -> int:
    if not number:
        raise ZeroDivisionError("the first one")
    time.sleep(0.05)
    return number


def test_a_failure_among_very_many_tasks_leaves_none_at_a_cost_in_proportion(
    job_factory: JobFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    n, n_released = 1_500, 0
    with threads(2) as client:
        assert isinstance(client.cluster, LocalCluster)
        scheduler: Any = client.cluster.scheduler
        release = scheduler.client_releases_keys

        def count(keys: Any, **options: Any) -> None:
            nonlocal n_released
            n_released += len(keys)
            release(keys=keys, **options)

        monkeypatch.setattr(scheduler, "client_releases_keys", count)
        job = job_factory("kmeans", {"n_clusters": 2}, {"url": "none"}, client=client)
        with pytest.raises(ZeroDivisionError, match="the first one"):
            job.map(fail_first, range(n))
        deadline = time.monotonic() + 30
        while scheduler.tasks and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not scheduler.tasks
    assert n_released <= 110 * n
