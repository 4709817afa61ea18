"""How long an operation on storage may take, over all its tries: no longer than something moves.

Each layer below tries again by itself (botocore twice, s3fs five times, `retried` four times), and each of those tries
may wait a minute for an answer. One `Watch` is kept over all of them. What it watches ends when less than 64 KiB came
or went within `stall_seconds`, which job files set (`storage.stall_seconds`). A variable of the environment carries the
value: processes that workers start inherit it, and no call needs another argument.
"""

from __future__ import annotations

import functools
import math
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import ParamSpec, Protocol, TypeVar

from jobs.environment import restored
from jobs.errors import SpecError, StorageError, StorageStalledError

P = ParamSpec("P")
T = TypeVar("T")

# s3fs tries a request again by itself for about two seconds; these tries come on top of its own.
N_TRIES = 4
FIRST_PAUSE_S = 0.25
STALL_VARIABLE = "DASKYARD_STORAGE_STALL_SECONDS"
DEFAULT_STALL_S = 300.0
LEAST_BYTES = 64 << 10

_current: ContextVar[Watch | None] = ContextVar("storage_watch", default=None)


class Stalled(Exception):
    """An operation moved too little; `jobs.storage.errors` says at which URL."""


class Connection(Protocol):
    """What carries requests of an operation."""

    def n_sent(self) -> int:
        """Bytes that have gone to the system."""

    def end(self, watch: Watch) -> None:
        """End at once, if it still works for the operation that is watched; what waits to be sent is dropped."""


class Watch:
    """Whether one operation still moves; its connections report to it."""

    def __init__(self, stall_s: float) -> None:
        self.stall_s = stall_s
        self._since = time.monotonic()
        self._n_bytes = 0
        self._sent: dict[Connection, int] = {}

    @property
    def tick_s(self) -> float:
        """How often to look."""
        return min(1.0, self.stall_s / 20)

    def received(self, n_bytes: int) -> None:
        """Note bytes that came."""
        self._n_bytes += n_bytes
        if self._n_bytes >= LEAST_BYTES:
            self._n_bytes, self._since = 0, time.monotonic()

    def follow(self, connection: Connection) -> None:
        """Look at what goes out over a connection, too."""
        self._sent[connection] = connection.n_sent()

    def end_connections(self) -> None:
        """End what carries its requests: to close it would wait until all is sent, to a silent store for ever."""
        for connection in self._sent:
            connection.end(self)

    def check(self) -> None:
        """Raise Stalled where too little moved for too long."""
        for connection, before in self._sent.items():
            now = connection.n_sent()
            self.received(max(now - before, 0))
            self._sent[connection] = now
        if time.monotonic() - self._since > self.stall_s:
            raise Stalled(
                f"less than {LEAST_BYTES >> 10} KiB moved in {self.stall_s:g} s, which is storage.stall_seconds"
            )


def current_watch() -> Watch | None:
    """Return the watch over the operation that this thread or task is at, if any."""
    return _current.get()


@contextmanager
def watched() -> Iterator[Watch]:
    """Keep one watch over all that is done inside, or go on with the one that is kept."""
    standing = _current.get()
    if standing is not None:
        yield standing
        return
    watch = Watch(stall_seconds())
    try:
        # Within: a stop may strike at any line, and a watch that stays would end what comes later.
        _current.set(watch)
        yield watch
    finally:
        _current.set(None)


def retried(function: Callable[P, T]) -> Callable[P, T]:
    """Try again, with growing pauses, where the error's class says that it is worth it and something still moves."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        with watched() as watch:
            for attempt in range(N_TRIES - 1):
                try:
                    return function(*args, **kwargs)
                except StorageError as error:
                    if error.exit_code != StorageError.exit_code or isinstance(error, StorageStalledError):
                        raise
                    # Jitter keeps workers that failed together from coming back together.
                    pause_s = FIRST_PAUSE_S * 2**attempt * random.uniform(0.5, 1.5)
                    time.sleep(min(pause_s, watch.stall_s))
            return function(*args, **kwargs)

    return wrapper


def stall_seconds() -> float:
    """Return after how many seconds without 64 KiB an operation ends.

    Raises
    ------
    SpecError
        When the variable holds no such number.
    """
    text = os.environ.get(STALL_VARIABLE)
    if text is None:
        return DEFAULT_STALL_S
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise SpecError(f"{STALL_VARIABLE}: {text!r} is no number of seconds above 0; write for example 300")
    return seconds


@contextmanager
def stalling_after(seconds: float) -> Iterator[None]:
    """Let operations of this process, and of those it starts meanwhile, end after so many seconds."""
    with restored([STALL_VARIABLE]):
        os.environ[STALL_VARIABLE] = f"{seconds:g}"
        yield
