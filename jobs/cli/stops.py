"""What tells a command to stop raises, and wherever it strikes, the process ends as the error's class says.

SIGINT, SIGTERM and SIGHUP. One within an import waits for its end: there is nothing to clean up, libraries take what is
raised there for a failure of theirs, and Python dies of modules that are half there. One that is told twice in a second
is one: a terminal tells the whole group, and whoever started the command passes it on.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

from jobs.cli import outcome
from jobs.errors import StoppedError, stop_of

# How long whoever was told to stop may take to clean up before it is told again.
TELL_AGAIN_S = 10.0
# How long one that strikes an import may wait for its end.
IMPORT_S = 5.0
_SAME_S = 1.0
_TELL_SOON_S = 0.01
_IMPORTING = frozenset({"<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>"})
# What they log once somebody has stopped them is of no use to him.
_LIBRARIES = ("asyncio", "bokeh", "concurrent", "distributed", "tornado")
# Whether the command is about to end. Handlers look at it: to put others in their place takes so long that one strikes.
_is_over = False
# Makes what the command was last told to stop by, and when that was.
_last: Callable[[], BaseException] = KeyboardInterrupt
_told_at: float | None = None
# Whether one waits for the end of an import.
_is_waiting = False
_is_quiet = True


def heeded(command: Callable[[], object], say: Callable[[str], object], *, is_quiet: bool = True) -> None:
    """Run a command whose SIGTERM is a StoppedError; one that strikes before or behind its own handling is said here.

    The signal's default would end the process at once and leave the attempt's files behind. `is_quiet` has libraries
    log nothing once there was one.
    """
    global _is_over, _is_quiet, _told_at, _is_waiting
    _is_over, _is_quiet, _told_at, _is_waiting = False, is_quiet, None, False
    sys.unraisablehook = _ignored
    try:
        try:
            if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
                signal.signal(signal.SIGINT, _interrupt)
            # `nohup` has it ignored, and means it.
            if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
                signal.signal(signal.SIGHUP, _stop)
            signal.signal(signal.SIGTERM, _stop)
            signal.signal(signal.SIGALRM, _again)
            command()
        finally:
            _leave()
    except BaseException as error:
        _leave()  # once more: it may be what was struck
        stop: BaseException | None = stop_of(error)
        if isinstance(error, SystemExit):
            stop = _last() if _is_waiting and not error.code else None
            if stop is None and _was_told() and isinstance(error.code, int):
                _end(error.code)
        if stop is None:
            raise
        say(said(stop))
        _end(outcome.exit_code(stop))


def heed_no_more() -> None:
    """Pay no heed from now on to what tells the process to stop: it is about to end, and well."""
    global _is_over, _is_waiting
    _is_over, _is_waiting = True, False


def said(stop: BaseException) -> str:
    """Return what a command says of a stop."""
    return str(stop) or "interrupted"


def _leave() -> None:
    """Leave in peace what Python does at its end; an interrupt ends that at once, unless the command has ended well."""
    global _is_over
    on_interrupt = signal.SIG_IGN if _is_over else signal.SIG_DFL
    _is_over = True
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if signal.getsignal(signal.SIGINT) is _interrupt:
        signal.signal(signal.SIGINT, on_interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0)


def _was_told() -> bool:
    return _told_at is not None


def _end(code: int) -> NoReturn:
    """End after a stop, without what Python does last: threads that a stop left in libraries make it crash there."""
    with suppress(BaseException):
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _interrupt(number: int, frame: FrameType | None) -> None:
    _tell(KeyboardInterrupt, frame)


def _stop(number: int, frame: FrameType | None) -> None:
    name = signal.Signals(number).name
    _tell(lambda: StoppedError(f"told to stop by {name}; run the job again"), frame)


def _again(number: int, frame: FrameType | None) -> None:
    _tell(_last, frame, is_new=False)


def _tell(make: Callable[[], BaseException], frame: FrameType | None, *, is_new: bool = True) -> None:
    global _last, _told_at, _is_waiting
    if _is_over:
        return
    now = time.monotonic()
    if is_new:
        if _told_at is not None and now - _told_at < _SAME_S:
            return
        _last, _told_at = make, now
    if _told_at is not None and now - _told_at < IMPORT_S and _is_importing(frame):
        _is_waiting = True
        signal.setitimer(signal.ITIMER_REAL, _TELL_SOON_S)
        return
    _is_waiting = False
    # Where it strikes, it may be lost: where all that is raised is caught.
    signal.setitimer(signal.ITIMER_REAL, TELL_AGAIN_S)
    if _is_quiet:
        _quieten()
    raise make()


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename in _IMPORTING:
            return True
        frame = frame.f_back
    return False


def _quieten() -> None:
    for name in [*logging.root.manager.loggerDict, *_LIBRARIES]:
        if name.partition(".")[0] in _LIBRARIES:
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def _ignored(unraisable: Any) -> None:
    """Tell again soon where Python itself ignores what is raised, such as in what it calls as memory is freed."""
    error = unraisable.exc_value
    if error is None or stop_of(error) is None:
        sys.__unraisablehook__(unraisable)
    elif not _is_over:
        signal.setitimer(signal.ITIMER_REAL, _TELL_SOON_S)
