"""How fast something goes, and when it will be done."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

PACE_WINDOW_S = 30.0


class Pace:
    """How fast something goes, from what was done in the last half minute.

    Parameters
    ----------
    clock : callable
        Returns seconds; for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._samples: deque[tuple[float, float]] = deque()

    def update(self, done: float) -> None:
        """Note that `done` units are done now; fewer than before means that another count has begun."""
        now = self._clock()
        if self._samples and done < self._samples[-1][1]:
            self._samples.clear()
        while len(self._samples) > 2 and now - self._samples[0][0] > PACE_WINDOW_S:
            self._samples.popleft()
        self._samples.append((now, done))

    def rate(self) -> float | None:
        """Units a second, or None while it is too early to say."""
        if len(self._samples) < 2:
            return None
        (start, before), (end, now) = self._samples[0], self._samples[-1]
        return (now - before) / (end - start) if end > start and now > before else None

    def left_s(self, total: float) -> float | None:
        """Seconds until `total` units are done, at this pace."""
        rate = self.rate()
        return max(total - self._samples[-1][1], 0.0) / rate if rate else None
