"""How a run, or its preflight, ended, as a small JSON document in a file: for whoever started it, such as Kubernetes.

{"outcome": "committed", "run_url": "s3://demo/runs/a", "was_committed": false, "metrics": {"r2": 0.61}}
{"outcome": "ready"}
{"outcome": "failed", "error": "StorageDeniedError", "exit_code": 2, "message": "s3://demo/…: access denied …"}
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jobs.artifacts import Manifest
from jobs.errors import DaskyardError, SpecError, StoppedError, stop_of
from jobs.visible import visible

# What Kubernetes keeps of a container's termination message.
MAX_BYTES = 4096
_MESSAGE_CHARACTERS = 1000
INTERRUPTED = 130

READY = {"outcome": "ready"}

Tell = Callable[[dict[str, Any]], None]


@contextmanager
def told_in(file: Path | None) -> Iterator[Tell]:
    """Give a function that takes note of how it ended; write that, or the error that leaves the block, to `file`.

    Raises
    ------
    SpecError
        When nothing can be written there; before the block begins.
    """
    if file is None:
        yield lambda document: None
        return
    document: dict[str, Any] = {}

    _write(file, {})
    try:
        yield document.update
    except BaseException as error:
        _write(file, failure(error))
        raise
    _write(file, document)


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
    metrics = dict(document.get("metrics", {}))
    while (
        len(data := json.dumps(document, ensure_ascii=False).encode(errors="backslashreplace")) > MAX_BYTES and metrics
    ):
        metrics.popitem()
        document = {**document, "metrics": metrics}
    return data


def _write(file: Path, document: dict[str, Any]) -> None:
    # In place: the file may be a mount, which nothing can be renamed to.
    try:
        file.write_bytes(encoded(document) if document else b"")
    except OSError as error:
        raise SpecError(f"--result: {file}: cannot be written ({error.strerror}); name another file") from error
