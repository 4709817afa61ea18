"""A preload of the scheduler that lets Dask's operator scale one group of workers without touching the others.

The operator's autoscaler asks the scheduler how many workers it wants (`adaptive_target`) and which to close
(`workers_to_close`), and applies both answers to its default group, whichever group they speak of. With Dask's setting
`daskyard.autoscaled-group` (DASK_DASKYARD__AUTOSCALED_GROUP) the scheduler answers for the workers of that group.
"""

from __future__ import annotations

import logging
import re

import dask
from distributed import Scheduler
from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.scheduler import WorkerState

SETTING = "daskyard.autoscaled-group"

_log = logging.getLogger("distributed.daskyard.groups")


class AutoscaledGroup(SchedulerPlugin):
    """Lets only the workers of one group be closed, and only its size be asked for.

    Parameters
    ----------
    group : str
        Name of the worker group; its workers are named ``<group>-worker-<id>``.
    """

    name = "daskyard-autoscaled-group"

    def __init__(self, group: str) -> None:
        # Another group's name may begin with this one's: `a` and `a-worker-gpu`.
        self._named = re.compile(re.escape(group) + "-worker-[^-]+").fullmatch

    def is_member(self, worker: WorkerState) -> bool:
        """Whether a worker belongs to the group."""
        return self._named(str(worker.name)) is not None

    def valid_workers_downscaling(self, scheduler: Scheduler, workers: list[WorkerState]) -> list[WorkerState]:
        """Return those of `workers` that may be closed."""
        return [worker for worker in workers if self.is_member(worker)]

    def target(self, scheduler: Scheduler, target_duration: float | None = None) -> int:
        """Return how many workers the group should have: what the cluster should have, less the others."""
        n_others = sum(not self.is_member(worker) for worker in scheduler.workers.values())
        return max(scheduler.adaptive_target(target_duration) - n_others, 0)


def dask_setup(scheduler: Scheduler) -> None:
    """Answer for one group, where the setting names one."""
    group = dask.config.get(SETTING, None)
    if not group:
        return
    plugin = AutoscaledGroup(group)
    scheduler.add_plugin(plugin)

    def adaptive_target(target_duration: float | None = None) -> int:
        return plugin.target(scheduler, target_duration)

    scheduler.handlers["adaptive_target"] = adaptive_target
    _log.info("Autoscaling is for the workers of group %s", group)
