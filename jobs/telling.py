"""Tells the scheduler of a run's cluster how far the run is; `jobs.pods.state` serves it to whoever asks.

It never holds up the run: one message is under way at most, the newest waits behind it, and what fails is forgotten.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from distributed import Client

from jobs.listener import Listener
from jobs.pace import Pace
from jobs.plain import plain

TOPIC = "daskyard-progress"
EVERY_S = 1.0


class Telling(Listener):
    """Passes everything on to another listener, and stages and progress to the scheduler as Dask events.

    Parameters
    ----------
    listener : Listener
        Who is told as well, and first.
    client : distributed.Client
        A client of the cluster.
    clock : callable
        Returns seconds; for tests.
    """

    def __init__(self, listener: Listener, client: Client, clock: Callable[[], float] = time.monotonic) -> None:
        self._listener = listener
        self._events = _Events(client)
        self._clock = clock
        self._pace = Pace(clock)
        self._told_at = -math.inf
        self._now: dict[str, Any] = {
            "stage": None,
            "index": None,
            "n_stages": None,
            "percent": None,
            "seconds_left": None,
            "metrics": {},
        }

    def stage_started(self, name: str, index: int, n_stages: int) -> None:
        """Tell the stage's name and number."""
        self._listener.stage_started(name, index, n_stages)
        self._pace = Pace(self._clock)
        self._tell(stage=name, index=index, n_stages=n_stages, percent=None, seconds_left=None)

    def stage_ended(self, name: str, seconds: float) -> None:
        """Tell that the stage is done."""
        self._listener.stage_ended(name, seconds)
        self._tell(percent=100, seconds_left=0.0)

    def progress(self, stage: str, done: float, total: float, unit: str) -> None:
        """Tell share and time left, unless the last message is too fresh."""
        self._listener.progress(stage, done, total, unit)
        if stage != self._now["stage"]:
            return
        self._pace.update(done)
        if self._clock() - self._told_at >= EVERY_S:
            share = done / total if total > 0 else math.nan
            percent = min(int(100 * share), 100) if math.isfinite(share) else None
            self._tell(percent=percent, seconds_left=plain(self._pace.left_s(total)))

    def metrics(self, values: Mapping[str, float | int | str]) -> None:
        """Tell them with whatever is told from now on."""
        self._listener.metrics(values)
        self._now = {**self._now, "metrics": {name: plain(value) for name, value in values.items()}}

    def message(self, text: str) -> None:
        """Pass it on."""
        self._listener.message(text)

    def _tell(self, **changes: Any) -> None:
        self._told_at = self._clock()
        self._now = {**self._now, **changes}
        self._events.send(self._now)


class _Events:
    """Logs events at a scheduler without waiting for it."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._is_under_way = False
        self._waiting: dict[str, Any] | None = None
        self._task: asyncio.Task[None] | None = None

    def send(self, document: dict[str, Any]) -> None:
        with self._lock:
            self._waiting = document
            if self._is_under_way:
                return
            self._is_under_way = True
        # Where the loop has ended, so has the client, and the run is about to.
        with suppress(RuntimeError):
            self._client.loop.asyncio_loop.call_soon_threadsafe(self._start)

    def _start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._send_all())  # held, or it might be collected

    async def _send_all(self) -> None:
        while (document := self._newest()) is not None:
            # A scheduler that is gone is for the run itself to find out.
            with suppress(Exception):
                # In the client's own loop this returns something to wait for, where elsewhere it waits.
                await self._client.log_event(TOPIC, document)

    def _newest(self) -> dict[str, Any] | None:
        with self._lock:
            document, self._waiting = self._waiting, None
            self._is_under_way = document is not None
            return document
