"""What tells a command to stop: SIGTERM raises, and wherever it strikes, the process ends as the error's class says."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import Any

from jobs.cli import outcome
from jobs.errors import StoppedError, stop_of

# How long whoever was told to stop may take to clean up before it is told again.
TELL_AGAIN_S = 10.0
_TELL_SOON_S = 0.01
# Whether the command is about to end. Handlers look at it: to put others in their place takes so long that one strikes.
_is_over = False
# Makes what the command was last told to stop by.
_last: Callable[[], BaseException] = KeyboardInterrupt


def heeded(command: Callable[[], object], say: Callable[[str], object]) -> None:
    """Run a command whose SIGTERM is a StoppedError; one that strikes before or behind its own handling is said here.

    The signal's default would end the process at once and leave the attempt's files behind.
    """
    global _is_over
    _is_over = False
    sys.unraisablehook = _ignored
    try:
        try:
            if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
                signal.signal(signal.SIGINT, _interrupt)
            signal.signal(signal.SIGTERM, _stop)
            signal.signal(signal.SIGALRM, _again)
            command()
        finally:
            _leave()
    except BaseException as error:
        _leave()  # once more: it may be what was struck
        stop = stop_of(error)
        if stop is None or isinstance(error, SystemExit):
            raise
        say(said(stop))
        sys.exit(outcome.exit_code(stop))


def heed_no_more() -> None:
    """Pay no heed from now on to what tells the process to stop: it is about to end, and well."""
    global _is_over
    _is_over = True


def said(stop: BaseException) -> str:
    """Return what a command says of a stop."""
    return str(stop) or "interrupted"


def _leave() -> None:
    """Leave in peace what Python does at its end; an interrupt ends that at once, unless the command has ended well."""
    on_interrupt = signal.SIG_IGN if _is_over else signal.SIG_DFL
    heed_no_more()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if signal.getsignal(signal.SIGINT) is _interrupt:
        signal.signal(signal.SIGINT, on_interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0)


def _interrupt(number: int, frame: object) -> None:
    _tell(KeyboardInterrupt)


def _stop(number: int, frame: object) -> None:
    _tell(lambda: StoppedError("told to stop by SIGTERM; run the job again"))


def _again(number: int, frame: object) -> None:
    _tell(_last)


def _tell(make: Callable[[], BaseException]) -> None:
    global _last
    if not _is_over:
        # Where it strikes, it may be lost: where all that is raised is caught.
        _last = make
        signal.setitimer(signal.ITIMER_REAL, TELL_AGAIN_S)
        raise make()


def _ignored(unraisable: Any) -> None:
    """Tell again soon where Python itself ignores what is raised, such as in what it calls as memory is freed."""
    error = unraisable.exc_value
    if error is None or stop_of(error) is None:
        sys.__unraisablehook__(unraisable)
    elif not _is_over:
        signal.setitimer(signal.ITIMER_REAL, _TELL_SOON_S)
