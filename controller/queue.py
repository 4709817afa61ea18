"""Keys that are to be looked at: each once, never by two threads at a time, now or after a while."""

from __future__ import annotations

import heapq
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Queue(Generic[K]):
    """A queue of keys.

    A key that is added again while somebody works on it is handed out again afterwards, so no change is missed.

    Parameters
    ----------
    clock
        Returns seconds; for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._ready: deque[K] = deque()
        self._waiting: set[K] = set()
        self._in_work: set[K] = set()
        self._again: set[K] = set()
        self._due: dict[K, float] = {}
        self._later: list[tuple[float, int, K]] = []
        self._n = 0
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._ready)

    def add(self, key: K) -> None:
        """Have it looked at as soon as possible."""
        with self._changed:
            self._add(key)

    def add_after(self, key: K, seconds: float) -> None:
        """Have it looked at after so many seconds, or sooner where that was asked before."""
        with self._changed:
            due = self._clock() + seconds
            if due < self._due.get(key, float("inf")):
                self._due[key] = due
                self._n += 1  # keys need not be comparable
                heapq.heappush(self._later, (due, self._n, key))
                self._changed.notify()

    def take(self) -> K | None:
        """Wait for a key and return it; None once the queue is closed. `done` must follow."""
        with self._changed:
            while not self._is_closed:
                pause = self._move_due()
                if self._ready:
                    key = self._ready.popleft()
                    self._waiting.discard(key)
                    self._in_work.add(key)
                    # Who looks at it now sees what it was to be looked at for.
                    self._due.pop(key, None)
                    return key
                self._changed.wait(pause)
            return None

    def done(self, key: K) -> None:
        """Say that the work on a key has ended."""
        with self._changed:
            self._in_work.discard(key)
            if key in self._again:
                self._again.discard(key)
                self._add(key)

    def close(self) -> None:
        """Let everybody go who waits."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _add(self, key: K) -> None:
        if key in self._in_work:
            self._again.add(key)
        elif key not in self._waiting:
            self._waiting.add(key)
            self._ready.append(key)
            self._changed.notify()

    def _move_due(self) -> float | None:
        """Move keys whose time has come; return the seconds to the next one, None where there is none."""
        now = self._clock()
        while self._later:
            due, _, key = self._later[0]
            if due > now:
                return due - now
            heapq.heappop(self._later)
            if self._due.get(key) == due:
                del self._due[key]
                self._add(key)
        return None
