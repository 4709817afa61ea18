"""Standard streams that are there, and a standard error that fails nothing: what it cannot write is forgotten."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import Any


def prepare() -> None:
    """Open those that are closed, have them take every character, and forgive what cannot be told of a run."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, _opened(number))
    for stream in (sys.stdout, sys.stderr):
        # What a terminal's encoding has no sign for must not end a job that is done.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.stderr = Forgiving(sys.stderr)


class Forgiving:
    """A text stream whose errors of writing are forgotten: the disk of a log is full, or its reader has left."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write as much as can be written."""
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write as much as can be written."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Write what waits; what cannot be written waits on."""
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _opened(number: int) -> Any:
    """Have a closed descriptor lead to nothing: the next file would get its number, and what is told of the run."""
    try:
        os.fstat(number)
    except OSError:
        descriptor = os.open(os.devnull, os.O_RDWR)
        if descriptor != number:
            os.dup2(descriptor, number)
            os.close(descriptor)
    os.set_inheritable(number, True)
    return open(os.devnull, "w" if number else "r")
