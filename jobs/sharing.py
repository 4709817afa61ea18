"""Values that many tasks get: right at every size, sent to the scheduler once, and kept where it can send them again.

`Client.map` of distributed 2026.8 puts a keyword above 100,000 bytes into the graph under its bare name: the next call
with a keyword of that name meets the first one's value, or makes the scheduler refuse the graph. So no value goes
through its keywords here. Called by the estimators' runner and by `jobs.job`.

What a fit that fails has made is released here, too: Dask's client keeps the error of each of its futures, the error
its traceback, and the traceback the frames that hold the futures. Else the tasks stay on the scheduler as long as the
client lasts, and those that end workers end the workers of the next fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakSet

import dask
from dask.utils import funcname
from distributed import Future
from distributed.protocol import pickle

# Bytes up to which a value travels with every task that needs it, which is quicker than to fetch it.
SMALL = 1 << 18
# Bytes that the copies for all tasks may come to: what leaves the scheduler grows with the blocks.
_MOST_COPIED = 1 << 24

# The futures that the fit that runs has made, and those of fits that failed in a job that is yet to say why.
_made: ContextVar[WeakSet[Future] | None] = ContextVar("_made", default=None)
_failed: ContextVar[list[Future] | None] = ContextVar("_failed", default=None)


@contextmanager
def release_on_error() -> Iterator[None]:
    """Release the futures that are made inside, and noted here, when an error leaves the outermost of these.

    Each future is released by itself: one of the user's, of the same task, keeps the task.
    """
    if _made.get() is not None:
        yield
        return
    made: WeakSet[Future] = WeakSet()
    before = _made.set(made)
    try:
        yield
    except BaseException:
        failed = _failed.get()
        if failed is None:
            _release(made)
        else:
            failed += made
        raise
    finally:
        _made.reset(before)


@contextmanager
def defer_release() -> Iterator[None]:
    """Have fits that fail inside release their futures at the end of this: till then the scheduler can tell of them."""
    failed: list[Future] = []
    before = _failed.set(failed)
    try:
        yield
    finally:
        _failed.reset(before)
        _release(failed)


def note(futures: Iterable[Future]) -> None:
    """Add to what `release_on_error` releases."""
    made = _made.get()
    if made is not None:
        made.update(futures)


def _release(futures: Iterable[Future]) -> None:
    for future in list(futures):
        future.release()


def pickled_size(value: Any) -> int:
    """Return the bytes of a value when it travels; arrays are not copied to find out.

    It is not `dask.sizeof`, which takes an object of a class that it does not know for some 50 bytes.
    """
    buffers: list[Any] = []
    return len(pickle.dumps(value, buffer_callback=buffers.append)) + sum(buffer.raw().nbytes for buffer in buffers)


def share(client: Any, value: Any, n_tasks: int = 1) -> Any:
    """Return a value that `n_tasks` tasks are given: itself where it is small, else a future of it.

    The scheduler can have the future's value again when a worker is lost, as it could not of scattered data. It forgets
    it when neither the future nor a task needs it any more.
    """
    return value if _has_futures(value) or _is_small(pickled_size(value), n_tasks) else _remote(client, value)


def submit_each(
    client: Any, function: Callable[..., Any], columns: Sequence[Sequence[Any]], shared: Mapping[str, Any]
) -> list[Future]:
    """Submit ``function(*row, **shared)`` for each row of the columns, all in one message.

    Parameters
    ----------
    client : Client
        Of the cluster that has the futures.
    function : callable
        May be a `functools.partial`; what it holds counts as shared.
    columns : sequence of sequences
        All of one length: futures, lists of them, or small values.
    shared : mapping
        Keywords of any name, size and kind; futures among them are replaced by their values.
    """
    later = {name: value for name, value in shared.items() if _has_futures(value)}
    call = _Call(function, {name: value for name, value in shared.items() if name not in later}, tuple(later))
    n_rows = len(columns[0])
    rows = [*columns, *([value] * n_rows for value in later.values())]
    name = funcname(function)
    is_small = _is_small(pickled_size(call), n_rows)
    columns, task = (rows, call) if is_small else ([[_remote(client, call)] * n_rows, *rows], _called)
    futures = list(client.map(task, *columns, key=name, pure=False))
    note(futures)
    return futures


@dataclass(frozen=True, eq=False, repr=False)
class _Call:
    """A function with its keywords; values of those in `later` come as the last arguments."""

    function: Callable[..., Any]
    shared: dict[str, Any]
    later: tuple[str, ...]

    def __call__(self, *args: Any) -> Any:
        n = len(args) - len(self.later)
        return self.function(*args[:n], **self.shared, **dict(zip(self.later, args[n:], strict=True)))

    def __repr__(self) -> str:
        # For Dask's log, which would have the values as well.
        return funcname(self.function)

    def __sizeof__(self) -> int:
        # For Dask, which asks how much of a worker's memory it takes.
        return pickled_size((self.function, self.shared))


def _is_small(n_bytes: int, n_tasks: int) -> bool:
    return n_bytes <= SMALL and n_bytes * n_tasks <= _MOST_COPIED


def _has_futures(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_futures, value.values()))
    return isinstance(value, Future) or (isinstance(value, (list, tuple, set)) and any(map(_has_futures, value)))


def _remote(client: Any, value: Any) -> Future:
    """Submit a task whose result is the value. Dask does not look into it: to it, the value is part of a function."""
    with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 GiB"}):
        future: Future = client.submit(partial(_itself, value), pure=False)
    note([future])
    return future


def _itself(value: Any) -> Any:
    return value


def _called(call: _Call, *args: Any) -> Any:
    return call(*args)
