"""Tries again what failed for want of storage, workers or a scheduler; nothing else, and never once told to stop."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from jobs.errors import DaskyardError, OutOfMemoryError, WorkersLostError, stop_of
from jobs.listener import Listener

MAX_RETRIES = 20
_FIRST_PAUSE_S = 5.0
_LONGEST_PAUSE_S = 60.0
# Jobs that lost the same storage or scheduler should not all come back at the same moment.
_SHORTEST_SHARE = 0.8

T = TypeVar("T")


def with_retries(
    attempt: Callable[[], T], n_retries: int, listener: Listener, pause: Callable[[float], None] = time.sleep
) -> T:
    """Call `attempt` until it returns, or fails in a way that another try would not mend.

    Parameters
    ----------
    attempt : callable
        Starts afresh each time it is called.
    n_retries : int
        How often it is called again after its first failure, at most.
    listener : Listener
        Is told which try failed, and why.
    pause : callable
        Waits for so many seconds; for tests.

    Raises
    ------
    BaseException
        What the last try raised.
    """
    for number in range(1, n_retries + 1):
        try:
            return attempt()
        except DaskyardError as error:
            if not is_worth_a_retry(error):
                raise
            seconds = pause_s(number)
            listener.message(f"try {number} of {n_retries + 1} failed: {error}; again in {seconds:.0f} s")
        pause(seconds)
    return attempt()


def is_worth_a_retry(error: BaseException) -> bool:
    """Whether another try may do better: storage, workers or the scheduler were lost, and nobody said stop.

    Where memory ran out it may not: the next try has as much. Kubernetes' controller, which can give more, does.
    """
    is_lost = isinstance(error, DaskyardError) and error.exit_code == WorkersLostError.exit_code
    return is_lost and not isinstance(error, OutOfMemoryError) and stop_of(error) is None


def pause_s(number: int) -> float:
    """Seconds to wait after the failure of the `number`-th try, counted from 1: twice as long each time."""
    longest = min(_FIRST_PAUSE_S * 2 ** (number - 1), _LONGEST_PAUSE_S)
    return longest * random.uniform(_SHORTEST_SHARE, 1.0)
