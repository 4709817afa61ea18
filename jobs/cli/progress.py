"""Shows a run on standard error while it goes: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from jobs.listener import Listener
from jobs.pace import Pace
from jobs.visible import visible

LOG_EVERY_S = 5.0


class LogListener(Listener):
    """Writes a line where something begins or ends, and in between one every few seconds.

    Parameters
    ----------
    console : rich.console.Console
        Where to.
    clock : callable
        Returns seconds; for tests.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._name = self._label = ""
        self._pace = Pace(clock)
        self._last = clock()

    def stage_started(self, name: str, index: int, n_stages: int) -> None:
        """Write the stage's name and number."""
        self._begin(name, f"{index + 1}/{n_stages} {name}")
        self._line(self._label)

    def stage_ended(self, name: str, seconds: float) -> None:
        """Write how long it took."""
        self._line(f"{self._label} took {duration(seconds)}")

    def progress(self, stage: str, done: float, total: float, unit: str) -> None:
        """Write share, rate and time left, unless the last such line is too fresh."""
        if stage != self._name:
            self._begin(stage, stage)
        self._pace.update(done)
        if self._clock() - self._last >= LOG_EVERY_S:
            self._last = self._clock()
            parts = [f"{done:,.0f} of {total:,.0f} {unit}", *pace_texts(self._pace, total, unit)]
            self._line(f"{self._label}: {share(done, total)}, {', '.join(parts)}")

    def message(self, text: str) -> None:
        """Write the line."""
        self._line(text)

    def _begin(self, name: str, label: str) -> None:
        self._name, self._label = name, label
        self._pace, self._last = Pace(self._clock), self._clock()

    def _line(self, text: str) -> None:
        stamp = time.strftime("%H:%M:%S")
        self._console.print(Text(f"{stamp} {visible(text)}"), highlight=False, soft_wrap=True)


class TerminalListener(Listener):
    """Shows the current stage as a bar; stages that ended stay above it as lines."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.fields[number]}", style="dim"),
            TextColumn("{task.description:<8}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[share]:>5}"),
            TextColumn("{task.fields[pace]}", style="dim"),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._name = self._number = ""
        self._pace = Pace()

    def __enter__(self) -> TerminalListener:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def stage_started(self, name: str, index: int, n_stages: int) -> None:
        """Show an empty bar."""
        self._begin(name, f"({index + 1}/{n_stages})")

    def stage_ended(self, name: str, seconds: float) -> None:
        """Replace the bar by a line."""
        line = Text.assemble((f"{self._number} ", "dim"), f"{visible(name):<9}", (duration(seconds), "green"))
        self._console.print(line)
        self._remove()

    def progress(self, stage: str, done: float, total: float, unit: str) -> None:
        """Move the bar."""
        if self._task is None or stage != self._name:
            self._begin(stage, "")
        self._pace.update(done)
        pace = "  ".join(pace_texts(self._pace, total, unit))
        if self._task is not None:
            self._bars.update(self._task, completed=done, total=total or None, share=share(done, total), pace=pace)
        if not self._number and done >= total:
            self._remove()

    def message(self, text: str) -> None:
        """Write a line above the bar."""
        self._console.print(Text(visible(text), "dim"), highlight=False, soft_wrap=True)

    def _begin(self, name: str, number: str) -> None:
        self._remove()
        self._name, self._number, self._pace = name, number, Pace()
        self._task = self._bars.add_task(visible(name), total=None, number=number, share="", pace="")

    def _remove(self) -> None:
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._task, self._name = None, ""


class _ToListener(logging.Handler):
    def __init__(self, listener: Listener) -> None:
        super().__init__()
        self._listener = listener

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._listener.message(self.format(record))
        except Exception:  # a line that cannot be written is no failure of what it is about
            self.handleError(record)


@contextmanager
def watching(console: Console) -> Iterator[Listener]:
    """Yield the listener that suits `console`; log records of Daskyard go through it as well."""
    logger = logging.getLogger("daskyard")
    with TerminalListener(console) if console.is_terminal else _plain(console) as listener:
        handler = _ToListener(listener)
        before = logger.level, logger.propagate
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.addHandler(handler)
        try:
            yield listener
        finally:
            logger.removeHandler(handler)
            logger.level, logger.propagate = before


@contextmanager
def _plain(console: Console) -> Iterator[Listener]:
    yield LogListener(console)


def share(done: float, total: float) -> str:
    """Share done as text, such as ``52 %``."""
    return f"{min(100 * done / total, 100):.0f} %" if total > 0 else ""


def pace_texts(pace: Pace, total: float, unit: str) -> list[str]:
    """Rate and time left as texts, as far as they are known."""
    rate, left = pace.rate(), pace.left_s(total)
    return [] if rate is None or left is None else [f"{_short(rate)} {unit}/s", f"{duration(left)} left"]


def duration(seconds: float) -> str:
    """Seconds for people: ``0.4 s``, ``48 s``, ``3:05 min``, ``2:01 h``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d} min"
    return f"{minutes // 60}:{minutes % 60:02d} h"


def _short(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
