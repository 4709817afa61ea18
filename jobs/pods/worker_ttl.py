"""A preload of the scheduler that gives up workers which hang: those that have not been heard of for so long.

Dask looks once in `distributed.scheduler.worker-ttl`, so that a worker may hang for twice as long, and that is the same
for two workers and for thousands, whose heartbeats a busy scheduler gets to late. The local cluster loads it as well.
"""

from __future__ import annotations

import time
from typing import Any

from distributed import Scheduler
from tornado.ioloop import PeriodicCallback

_LOOK_EVERY_S = 5.0
# A thousand workers have 300 s: Dask's own default, which fits such clusters.
_SILENCE_PER_WORKER_S = 0.3


def silence_s(least_s: float, n_workers: int) -> float:
    """Return how many seconds a worker may be silent where there are so many; `least_s` is what a few may be."""
    return max(least_s, _SILENCE_PER_WORKER_S * n_workers)


def dask_setup(scheduler: Scheduler) -> None:
    """Look more often, and by a time that fits the number of workers."""
    least_s = scheduler.worker_ttl
    if not least_s:
        return

    every_s, looked_at = min(_LOOK_EVERY_S, least_s / 4), time.time()

    async def look() -> None:
        nonlocal looked_at
        late_s, looked_at = time.time() - looked_at - every_s, time.time()
        if late_s > every_s:
            # It is the scheduler that was away: its machine slept, or its process was stopped or had other work.
            for worker in scheduler.workers.values():
                worker.last_seen += late_s
        scheduler.worker_ttl = silence_s(least_s, len(scheduler.workers))
        await scheduler.check_worker_ttl()

    # Dask has not started its own one yet.
    callbacks: dict[str, Any] = scheduler.periodic_callbacks
    callbacks["worker-ttl"] = PeriodicCallback(look, 1000 * every_s)
