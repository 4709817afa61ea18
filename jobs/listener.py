"""Who watches a run: the terminal, the log, a test. The runner calls; the base class does nothing."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress


class Listener:
    """Receives what happens in a run. Override what you need."""

    def stage_started(self, name: str, index: int, n_stages: int) -> None:
        """Stage `name`, the `index`-th (from 0) of `n_stages`, begins."""

    def stage_ended(self, name: str, seconds: float) -> None:
        """Stage `name` ended after `seconds`."""

    def progress(self, stage: str, done: float, total: float, unit: str) -> None:
        """Of `total` `unit` in `stage`, `done` are done."""

    def metrics(self, values: Mapping[str, float | int | str]) -> None:
        """Take note of what the run was measured to be."""

    def message(self, text: str) -> None:
        """Pass on one line for the person who watches."""


class Forgiving(Listener):
    """Passes everything on to a listener, and forgets what that one cannot write: a full disk fails no run by it."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    def stage_started(self, name: str, index: int, n_stages: int) -> None:
        """Pass it on."""
        with suppress(OSError):
            self._listener.stage_started(name, index, n_stages)

    def stage_ended(self, name: str, seconds: float) -> None:
        """Pass it on."""
        with suppress(OSError):
            self._listener.stage_ended(name, seconds)

    def progress(self, stage: str, done: float, total: float, unit: str) -> None:
        """Pass it on."""
        with suppress(OSError):
            self._listener.progress(stage, done, total, unit)

    def metrics(self, values: Mapping[str, float | int | str]) -> None:
        """Pass them on."""
        with suppress(OSError):
            self._listener.metrics(values)

    def message(self, text: str) -> None:
        """Pass it on."""
        with suppress(OSError):
            self._listener.message(text)
