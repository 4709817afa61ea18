"""A preload of the scheduler that serves what an autoscaler and a watcher need to know, as JSON at /daskyard/state.

    {"demands": [{"needs": {"GPU": 1.0}, "n_tasks": 12, "seconds": 340.5}],
     "workers": [{"name": "bio-1-gpu-worker-x", "n_tasks": 1, "idle_s": 0.0, "offers": {"GPU": 1.0}, "n_threads": 4}],
     "progress": {"stage": "fit", "index": 2, "n_stages": 5, "percent": 42, "seconds_left": 31.0, "metrics": {}}}

Progress is what a run told last, null where none has; percent and seconds left are null where they are not known.
Demands are tasks that run, or could run on any worker if there were one, by the Dask resources that they need. An
answer costs a bounded time: of many tasks, a part is looked at and counted for the rest.
"""

from __future__ import annotations

import time
from collections import defaultdict
from itertools import islice
from typing import Any

from distributed import Scheduler
from distributed.http.utils import RequestHandler

from jobs.telling import TOPIC

PATH = "/daskyard/state"
# So many tasks of a worker, or of a queue, are looked at.
_N_LOOKED_AT = 1_000

Needs = frozenset[tuple[str, float]]


class State:
    """What an autoscaler and a watcher ask of one scheduler."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._idle_since: dict[str, float] = {}

    def answer(self) -> dict[str, Any]:
        """Return demands, workers and progress."""
        return {"demands": self._demands(), "workers": self._workers(), "progress": self._progress()}

    def _progress(self) -> Any:
        """Return what was told last; Dask keeps so many events of a topic and no more."""
        events = self._scheduler.get_events(TOPIC)
        return events[-1][1] if events else None

    def _demands(self) -> list[dict[str, Any]]:
        scheduler = self._scheduler
        n_tasks: defaultdict[Needs, float] = defaultdict(float)
        seconds: defaultdict[Needs, float] = defaultdict(float)
        processing = [worker.processing for worker in scheduler.workers.values()]
        for tasks in (scheduler.queued, scheduler.unrunnable, *processing):
            weight = max(len(tasks) / _N_LOOKED_AT, 1.0)
            for task in islice(tasks, _N_LOOKED_AT):
                if task.worker_restrictions and not task.loose_restrictions:
                    continue  # such as a rank of a training: no worker that is still to come could take it
                needs = frozenset((task.resource_restrictions or {}).items())
                n_tasks[needs] += weight
                seconds[needs] += weight * scheduler._get_prefix_duration(task.prefix)
        return [
            {"needs": dict(sorted(needs)), "n_tasks": round(n), "seconds": float(seconds[needs])}
            for needs, n in sorted(n_tasks.items(), key=lambda item: sorted(item[0]))
        ]

    def _workers(self) -> list[dict[str, Any]]:
        now, workers = time.monotonic(), self._scheduler.workers
        idle = {address for address, ws in workers.items() if not ws.processing and not ws.long_running}
        self._idle_since = {address: self._idle_since.get(address, now) for address in idle}
        return [
            {
                "name": str(ws.name),
                "n_tasks": len(ws.processing) + len(ws.long_running),
                "idle_s": now - self._idle_since.get(address, now),
                "offers": dict(ws.resources),
                "n_threads": ws.nthreads,
            }
            for address, ws in workers.items()
        ]


class StateHandler(RequestHandler):
    """Answers a GET."""

    def initialize(self, state: State) -> None:
        """Take the state to tell."""
        self._state = state

    def get(self) -> None:
        """Write the answer as JSON."""
        self.set_header("Cache-Control", "no-store")
        self.write(self._state.answer())


def dask_setup(scheduler: Scheduler) -> None:
    """Serve the state beside the scheduler's own pages."""
    scheduler.http_application.add_handlers(".*$", [(PATH, StateHandler, {"state": State(scheduler)})])
