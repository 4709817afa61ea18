"""Ends a wait for what will never come: keys that a client waits for and that no task of the scheduler leads to.

A scheduler that fails in the middle of taking a graph goes on as if nothing had been, and Dask's client waits for ever.
One watch for whatever waits (gather, as_completed, wait): it asks the scheduler, and fails the futures at the client.
Called by the runner; ADR 11.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

from distributed import Client, Scheduler
from distributed.protocol.pickle import dumps

from jobs.errors import WorkersLostError
from jobs.settings import seconds_of

# A setting of Dask: how long the client may wait for a key that cannot come.
STALLED_AFTER = "daskyard.stalled-after"
_STALLED_AFTER_S = 60.0
_LOOKS = 12
# So many keys are asked for in a look, the oldest first; and so many tasks looked at for them.
_N_KEYS, _N_TASKS = 1_000, 20_000
# What a worker has that can still become a result; "memory" and "released" cannot.
_BUSY = frozenset(
    {"executing", "long-running", "ready", "constrained", "waiting", "fetch", "flight", "missing", "resumed"}
)
# A worker that was silent for so long tells nothing about what it does: `worker-ttl` is for those.
_SILENT_S = 15.0

_N_LOGS, _N_CHARACTERS = 100, 300

_log = logging.getLogger("daskyard.cluster")

# A dead end: the key of a task, and the state that nothing leads out of.
DeadEnd = tuple[str, str]


@contextmanager
def watched(client: Client) -> Iterator[None]:
    """Watch what the client waits for, for as long as the block lasts.

    Raises
    ------
    SpecError
        When `STALLED_AFTER` is no time.
    """
    watch = _Watch(client, seconds_of(STALLED_AFTER) or _STALLED_AFTER_S)
    client.loop.add_callback(watch.start)
    try:
        yield
    finally:
        with contextlib.suppress(RuntimeError):  # the loop has ended with its client
            client.loop.add_callback(watch.stop)


def dead_ends(keys: Sequence[Any], dask_scheduler: Scheduler) -> list[tuple[Any, DeadEnd]]:
    """Return those of the keys that nothing leads to as it stands, each with where it ends. Runs in the scheduler.

    Waiting for workers, running, or waiting for what runs is no dead end. A result or an error that the client has not
    heard of is one, and passes as any other does that was seen in a moment of change.
    """
    if dask_scheduler._active_graph_updates > 0:
        return []
    known: dict[str, DeadEnd | None] = {}
    found = []
    for key in keys:
        task = dask_scheduler.tasks.get(key)
        end = (str(key), "unknown") if task is None else _dead_end(task, known)
        if end is not None:
            found.append((key, end))
    return found


def _dead_end(task: Any, known: dict[str, DeadEnd | None]) -> DeadEnd | None:
    """Return a dead end among what the task waits for; one is enough for it never to run."""
    path, seen = [task], {task.key}
    while path:
        each = path.pop()
        if each.key in known:
            end = known[each.key]
        elif each.state == "waiting" and each.waiting_on:
            end = None
            fresh = [other for other in each.waiting_on if other.key not in seen]
            if len(seen) < _N_TASKS:
                path += fresh
                seen |= {other.key for other in fresh}
        else:
            end = known[each.key] = None if _goes_on(each) else (str(each.key), str(each.state))
        if end is not None:
            known[task.key] = end
            return end
    known |= dict.fromkeys(seen)
    return None


def _goes_on(task: Any) -> bool:
    if task.state in ("queued", "no-worker"):
        return True
    worker = task.processing_on
    if task.state != "processing" or worker is None:
        return False
    counts: Mapping[Any, int] | None = worker.metrics.get("task_counts")
    if counts is None or time.time() - worker.last_seen > _SILENT_S:
        return True
    return any(n for state, n in counts.items() if state in _BUSY)


def _last_line(logs: Sequence[tuple[str, str]]) -> str:
    """Return the last line of the scheduler's last error, or of its log; `logs` begin with the newest entry."""
    errors = [text for level, text in logs if level in ("ERROR", "CRITICAL")]
    lines = [line.strip() for line in (errors or [text for _, text in logs] or [""])[0].splitlines() if line.strip()]
    return lines[-1][:_N_CHARACTERS] if lines else "nothing"


class _Watch:
    """Counts for how long each key has been in the same dead end, by looks that are a while apart."""

    def __init__(self, client: Client, limit_s: float) -> None:
        self._client, self._limit_s, self._every_s = client, limit_s, limit_s / _LOOKS
        self._task: asyncio.Task[None] | None = None
        self._pending: Collection[Any] = ()
        self._stalled_s: dict[tuple[Any, DeadEnd], float] = {}

    def start(self) -> None:
        """Begin; in the client's loop."""
        self._task = asyncio.ensure_future(self._run())

    def stop(self) -> None:
        """End; in the client's loop."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(self._every_s)
            now = time.monotonic()
            # A loop that this process has kept from its work, with whatever it computes, has not looked for so long.
            passed_s, last = min(now - last, 2 * self._every_s), now
            # A scheduler that is gone fails the futures itself; one without this package cannot be asked.
            with contextlib.suppress(OSError, ImportError):
                await self._look(passed_s)

    async def _look(self, passed_s: float) -> None:
        # Another thread may add some: a copy is made in one go.
        pending = {key: None for key, state in list(self._client.futures.items()) if state.status == "pending"}
        # Most keys are here for a moment: those of the last look are asked for.
        keys = list(islice((key for key in pending if key in self._pending), _N_KEYS))
        self._pending = pending.keys()
        comm = self._client.scheduler_comm
        if not keys or comm is None or comm.buffer:  # what is not sent yet cannot be known there
            self._stalled_s.clear()
            return
        found = await self._ask(keys)
        self._stalled_s = {each: self._stalled_s.get(each, 0.0) + passed_s for each in found}
        stalled = [each for each, seconds in self._stalled_s.items() if seconds >= self._limit_s]
        if stalled:
            await self._fail(stalled)

    async def _ask(self, keys: Sequence[Any]) -> list[tuple[Any, DeadEnd]]:
        answer = await self._client.scheduler.run_function(
            function=dumps(dead_ends), args=dumps((keys,)), kwargs=dumps({}), wait=True
        )
        if answer["status"] != "OK":
            _log.debug("the scheduler does not tell what it waits for: %s", answer.get("exception"))
            return []
        found: list[tuple[Any, DeadEnd]] = answer["result"]
        return found

    async def _fail(self, stalled: Sequence[tuple[Any, DeadEnd]]) -> None:
        key, (end, state) = stalled[0]
        said = _last_line(await self._client.scheduler.logs(n=_N_LOGS))
        place = f"{end} is {state}" if str(key) == end else f"it waits for {end}, which is {state}"
        error = WorkersLostError(
            f"scheduler: nothing has led to {key} for {self._limit_s:g} s ({place}); "
            f"its log ends with: {said}; run the job again"
        )
        for key, _ in stalled:
            future = self._client.futures.get(key)
            if future is not None and future.status == "pending":
                future.set_error(error, None)
