"""How a run, or its preflight, ended, as a small JSON document in a file: for whoever started it, such as Kubernetes.

{"outcome": "running"}
{"outcome": "committed", "run_url": "s3://demo/runs/a", "was_committed": false, "metrics": {"r2": 0.61}}
{"outcome": "ready"}
{"outcome": "failed", "error": "StorageDeniedError", "exit_code": 2, "message": "s3://demo/…: access denied …"}

"running" is there from the first moment on; where it stays, the process was killed before it could say more.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from jobs.artifacts import Manifest
from jobs.errors import DaskyardError, SpecError, StoppedError, stop_of
from jobs.plain import plain_tree
from jobs.visible import visible

# What Kubernetes keeps of a container's termination message.
MAX_BYTES = 4096
_MESSAGE_CHARACTERS = 1000
_MOST_BLANK = 1 << 20
INTERRUPTED = 130

READY = {"outcome": "ready"}
RUNNING = {"outcome": "running"}
_OUTCOMES = ("running", "ready", "committed", "failed")

Tell = Callable[[dict[str, Any]], None]


@contextmanager
def told_in(file: Path | None) -> Iterator[Tell]:
    """Give a function that takes note of how it ended; write that, or the error that leaves the block, to `file`.

    Raises
    ------
    SpecError
        When nothing can be written there, or what it holds is no result; before the block begins. Later that is a
        warning: the run has its outcome.
    """
    if file is None:
        yield lambda document: None
        return
    document: dict[str, Any] = {}

    try:
        if not _may_be_replaced(file):
            # The job file, or its data: a slip of the keyboard must not cost them.
            raise SpecError(f"--result: {file}: holds something else than a result; name another file, or remove it")
        _write(file, RUNNING)
    except OSError as error:
        raise SpecError(f"--result: {file}: cannot be written ({error.strerror}); name another file") from error
    try:
        yield document.update
    except BaseException as error:
        _write_last(file, document or failure(error))
        raise
    _write_last(file, document)


def committed(run_url: str, was_committed: bool, manifest: Manifest) -> dict[str, Any]:
    """Return what is told of a committed run."""
    return {
        "outcome": "committed",
        "run_url": run_url,
        "was_committed": was_committed,
        "metrics": manifest.metrics,
    }


def failure(error: BaseException) -> dict[str, Any]:
    """Return what is told of an error."""
    error = stop_of(error) or error
    message = visible(" ".join(str(error).split()))[:_MESSAGE_CHARACTERS]
    return {"outcome": "failed", "error": type(error).__name__, "exit_code": exit_code(error), "message": message}


def exit_code(error: BaseException) -> int:
    """Return the exit code of an error's class, or of the stop that led to it; what is no error of ours is a defect."""
    error = stop_of(error) or error
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return error.exit_code if isinstance(error, DaskyardError | StoppedError) else DaskyardError.exit_code


def encoded(document: dict[str, Any]) -> bytes:
    """Return the document as JSON of at most `MAX_BYTES`: the last metrics are left out where they are too many."""
    document = plain_tree(document)
    metrics = dict(document.get("metrics", {}))
    while len(data := _json(document)) > MAX_BYTES and metrics:
        metrics.popitem()
        document = {**document, "metrics": metrics}
    return data


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, allow_nan=False).encode(errors="backslashreplace")


def _write_last(file: Path, document: dict[str, Any]) -> None:
    try:
        _write(file, document)
    except OSError as error:
        with suppress(OSError):
            sys.stderr.write(f"warning: --result: {file}: cannot be written ({error.strerror}); it tells no end\n")


def _write(file: Path, document: dict[str, Any]) -> None:
    """Put the document into the file so that whoever reads meanwhile finds this one or the one before, nothing else."""
    data = encoded(document)
    if not os.path.lexists(file) or (stat.S_ISREG(file.lstat().st_mode) and file.lstat().st_nlink == 1):
        try:
            _replace(file, data)
            return
        except OSError as error:
            # A mount, such as Kubernetes makes for termination messages, and a folder that one may not write.
            if not file.exists():
                raise error
    # Of a pipe that nobody reads, the plain way would wait for a reader.
    descriptor = os.open(file, os.O_WRONLY | os.O_NONBLOCK)
    try:
        os.set_blocking(descriptor, True)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.write(descriptor, data)
            return
        # Never empty. What is left of a longer one is blank, which JSON does not mind, until it is cut off.
        os.pwrite(descriptor, data.ljust(min(status.st_size, _MOST_BLANK)), 0)
        os.ftruncate(descriptor, len(data))
    finally:
        os.close(descriptor)


def _may_be_replaced(file: Path) -> bool:
    """Whether there is no file, or one that is empty or holds a result; what is no file can be written to."""
    if not file.is_file() or file.stat().st_size == 0:
        return True
    with file.open("rb") as opened:
        data = opened.read(_MOST_BLANK + MAX_BYTES + 1)
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and document.get("outcome") in _OUTCOMES


def _replace(file: Path, data: bytes) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        if file.exists():
            temporary.chmod(stat.S_IMODE(file.stat().st_mode))
        os.replace(temporary, file)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
