"""What tells a command to stop: SIGTERM raises, and wherever it strikes, the process ends as the error's class says."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

from jobs.cli import outcome
from jobs.errors import StoppedError, stop_of

# How long whoever was told to stop may take to clean up before it is told again.
TELL_AGAIN_S = 10.0


def heeded(command: Callable[[], object], say: Callable[[str], object]) -> None:
    """Run a command whose SIGTERM is a StoppedError; one that strikes before or behind its own handling is said here.

    The signal's default would end the process at once and leave the attempt's files behind.
    """
    try:
        try:
            _replace(signal.SIG_DFL, signal.default_int_handler)
            signal.signal(signal.SIGTERM, _stop)
            signal.signal(signal.SIGALRM, _stop)
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
    """Pay no heed to what tells the process to stop: it is about to end, and well."""
    if signal.getsignal(signal.SIGTERM) is not _stop:
        return  # called by other code than `heeded`, whose signals are its own
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, 0)


def said(stop: BaseException) -> str:
    """Return what a command says of a stop."""
    return str(stop) or "interrupted"


def _leave() -> None:
    """Leave in peace what Python does at its end; an interrupt ends that at once."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _replace(signal.default_int_handler, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, 0)


def _replace(old: object, new: Callable[..., object] | signal.Handlers) -> None:
    """Change what an interrupt does, but where whoever started the process has it ignored."""
    if signal.getsignal(signal.SIGINT) is old:
        signal.signal(signal.SIGINT, new)


def _stop(number: int, frame: object) -> None:
    # Where it strikes, it may be lost: in what is called as memory is freed, or where all that is raised is caught.
    signal.setitimer(signal.ITIMER_REAL, TELL_AGAIN_S)
    raise StoppedError("told to stop by SIGTERM; run the job again")
