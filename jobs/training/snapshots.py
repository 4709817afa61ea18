"""Stores a rank's state now and then, while it trains on. Called by rank, on the first rank of a generation."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

from jobs.errors import DaskyardError
from jobs.training.checkpoints import Checkpoints
from jobs.training.control import thread_name

_log = logging.getLogger("daskyard.training")
# The last state of a fit waits so long for the one before it.
_END_TIMEOUT_S = 120.0


class Snapshots:
    """Writes states to `checkpoints` in a thread, one at a time; without checkpoints it does nothing."""

    def __init__(self, checkpoints: Checkpoints | None, every_s: float) -> None:
        self._checkpoints, self._every_s = checkpoints, every_s
        self._last = time.monotonic()
        self._thread: threading.Thread | None = None
        self._notes: Mapping[str, Any] = {"torch": version("torch"), "daskyard": version("daskyard")}

    def last(self) -> bytes | None:
        """Return the last state that was stored, by whatever process."""
        found = self._checkpoints.read() if self._checkpoints is not None else None
        if found is None:
            return None
        _log.info("training goes on from step %d", found[0].position)
        return found[1]

    def offer(self, position: int, state_fn: Callable[[], bytes], is_due: bool) -> None:
        """Store the state if it is time for it and the one before is stored; `state_fn` copies it, at once."""
        if self._checkpoints is None or (self._thread is not None and self._thread.is_alive()):
            return
        if is_due or time.monotonic() - self._last >= self._every_s:
            self._last = time.monotonic()
            arguments = (self._checkpoints, position, state_fn(), self._notes)
            self._thread = threading.Thread(target=_write_aside, args=arguments, name="checkpoint", daemon=True)
            self._thread.start()

    def end(self, position: int, state_fn: Callable[[], bytes]) -> None:
        """Store the last state; it is there when this returns, unless storage fails."""
        if self._checkpoints is None:
            return
        if self._thread is not None:
            self._thread.join(_END_TIMEOUT_S)
        _write(self._checkpoints, position, state_fn(), self._notes)


def _write_aside(checkpoints: Checkpoints, position: int, state: bytes, notes: Mapping[str, Any]) -> None:
    with thread_name() as name:
        name.write(b"rank: writes")
    _write(checkpoints, position, state, notes)


def _write(checkpoints: Checkpoints, position: int, state: bytes, notes: Mapping[str, Any]) -> None:
    # Training does not need it: storage that fails now may be there for the next one, or for the results.
    try:
        checkpoints.write(position, state, notes)
    except DaskyardError as error:
        _log.warning("step %d is not stored: %s", position, error)
