"""What it means that workers died while they ran a task: whose fault it is, and which input it read.

Called by whatever waits for tasks, through `jobs.job.workers_lost`.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from distributed import Client, Scheduler
from distributed.scheduler import KilledWorker

from jobs.ends import CRASH, MEMORY, TOPIC
from jobs.errors import DaskyardError, OutOfMemoryError, PoisonTaskError, SpecError, WorkersLostError
from jobs.local_worker import NO_ROOM_TOPIC
from jobs.storage import StoredFile

# A nanny tells of an end a moment after the scheduler has heard of it.
_TOLD_WITHIN_S = 5.0
_POLL_S = 0.2
# Of the tasks that a task follows from, and of the values in one, so many are looked at for input files.
_N_TASKS, _N_VALUES = 1_000, 1_000
_N_NAMED = 3
# Nannies of Dask tell here of each worker that they end for its memory.
_RESTARTS_TOPIC = "worker-restart-memory"
_MORE = "give each worker more (--memory, or fewer of them: --workers), or cut the input smaller"

# A scheduler that is gone, takes no functions, or does not have this package.
_NO_ANSWER = (OSError, RuntimeError, TimeoutError, ValueError, ImportError, AttributeError)

Event = Mapping[str, Any]


def explain(client: Client, error: KilledWorker) -> DaskyardError:
    """Return the error that a task whose workers died amounts to.

    Parameters
    ----------
    client : distributed.Client
        That still holds the task.
    error : KilledWorker
        What Dask says of it.

    Returns
    -------
    DaskyardError
        PoisonTaskError where each worker ended by itself: another attempt would go the same way. OutOfMemoryError where
        one was ended for its memory. WorkersLostError where workers were told to end, hung, or went with their nannies.
    """
    whys: list[str] = []
    files: list[str] = []
    with contextlib.suppress(*_NO_ANSWER):
        whys = _whys(client, error)
        files = client.run_on_scheduler(input_files, error.task)
    n = error.allowed_failures + 1
    what = f"workers: {n} died while they ran {error.task}{_of(files)}"
    if MEMORY in whys:
        return OutOfMemoryError(f"{what}, {whys.count(MEMORY)} of them for the memory they took; {_MORE}")
    if len(whys) == n and set(whys) == {CRASH}:
        return PoisonTaskError(f"{what}; it is not tried again: look at that input and into the workers' logs")
    return WorkersLostError(f"{what}; look into their logs, then run the job again")


def no_room(client: Client) -> SpecError | None:
    """Return the error that workers without room on their disk amount to, if any has told of that.

    What cannot be spilled stays in memory, until a worker takes no more tasks or is ended for what it takes.
    """
    events: Any = ()
    with contextlib.suppress(*_NO_ANSWER):
        events = client.get_events(NO_ROOM_TOPIC)
    if not events:
        return None
    return SpecError(
        f"{events[-1][1]['folder']}: no room for what does not fit into the workers' memory; "
        "make room, have TMPDIR name another folder, or give the workers more memory (--memory)"
    )


def ended_for_memory(client: Client) -> OutOfMemoryError | None:
    """Return the error that no worker being left amounts to where nannies have ended some for what they took."""
    events: Any = ()
    with contextlib.suppress(*_NO_ANSWER):
        events = client.get_events(_RESTARTS_TOPIC)
    if not events:
        return None
    return OutOfMemoryError(
        f"workers: none left that can run the job's tasks; {len(events)} were ended for the memory they took; {_MORE}"
    )


def whys_of(task: Any, n: int, everything: Sequence[Event], ends: Sequence[Event]) -> list[str]:
    """Return why the last `n` workers that had the task ended, as far as their nannies have told.

    `everything` and `ends` are the events of the scheduler and of the nannies, in their order. A worker started anew
    may have the address of the one before it: the last of its ends are those of the last of its deaths.
    """
    deaths = [
        str(event["worker"])
        for event in everything
        if event.get("action") == "remove-worker"
        and str(task) in map(str, event["processing-tasks"])
        and not event.get("expected", False)
    ][-n:]
    whys: list[str] = []
    for address, n_deaths in Counter(deaths).items():
        whys += [str(end["why"]) for end in ends if end["worker"] == address][-n_deaths:]
    return whys


def input_files(task: Any, dask_scheduler: Scheduler) -> list[str]:
    """Return the URLs of the input files that a task reads, or those that it follows from. Runs in the scheduler."""
    found: dict[str, None] = {}
    seen: set[Any] = set()
    waiting = [dask_scheduler.tasks[task]] if task in dask_scheduler.tasks else []
    while waiting and len(seen) < _N_TASKS:
        each = waiting.pop()
        if each.key not in seen:
            seen.add(each.key)
            found |= dict.fromkeys(file.url for file in _files(each.run_spec))
            waiting += each.dependencies
    return list(found)


def _files(value: Any) -> Iterator[StoredFile]:
    waiting = [getattr(value, "args", ()), getattr(value, "kwargs", {})]
    for _ in range(_N_VALUES):
        if not waiting:
            return
        each = waiting.pop()
        if isinstance(each, StoredFile):
            yield each
        elif isinstance(each, dict):
            waiting += each.values()
        elif isinstance(each, (list, tuple)):
            waiting += each
        elif is_dataclass(each) and not isinstance(each, type):
            waiting += [getattr(each, field.name) for field in fields(each)]
        elif hasattr(each, "args"):  # a task within the task, such as a list of futures
            waiting.append(each.args)


def _whys(client: Client, error: KilledWorker) -> list[str]:
    n = error.allowed_failures + 1
    deadline = time.monotonic() + _TOLD_WITHIN_S
    while True:
        events: Any = client.get_events()
        everything, ends = ([event for _, event in events.get(topic, ())] for topic in ("all", TOPIC))
        whys = whys_of(error.task, n, everything, ends)
        if len(whys) == n or time.monotonic() > deadline:
            return whys
        time.sleep(_POLL_S)


def _of(files: Sequence[str]) -> str:
    if not files:
        return ""
    if len(files) <= _N_NAMED:
        return f" on {', '.join(files)}"
    return f" on one of {len(files)} input files, the first is {files[0]}"
