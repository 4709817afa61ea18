"""How much of one input may be in memory at once, and the refusal of what promises, or turns out, to be more.

A few hundred bytes can stand for gigabytes: in an archive, a picture, a Parquet file. Readers ask here before they
decode, and while they do where a file's own promises cannot be trusted. It is a bound on what has to be in memory at
once, not on the size of an input. Called by the readers, on a worker or in the runner.
"""

from __future__ import annotations

import io
from typing import Any

from dask.utils import format_bytes
from distributed import get_worker
from distributed.system import MEMORY_LIMIT

from jobs.errors import InputError

# The other half is for libraries, results and what the next task gets.
_SHARE = 2
_PIECE = 1 << 20


def room() -> int:
    """Return how many bytes one task may take for what it reads: half of the worker's share for a thread.

    Outside a task, or where the worker has no limit, it is half of what this machine or container has.
    """
    try:
        worker = get_worker()
    except ValueError:
        return int(MEMORY_LIMIT // _SHARE)
    limit = int(worker.memory_manager.memory_limit or MEMORY_LIMIT)
    return limit // max(worker.state.nthreads, 1) // _SHARE


def refuse_beyond_room(place: str, n_bytes: int, what: str, remedy: str) -> None:
    """Do nothing where `n_bytes` fit.

    Raises
    ------
    InputError
        When they do not; it says how many bytes `what` takes, and what there are.
    """
    there = room()
    if n_bytes > there:
        raise InputError(
            f"{place}: {what} takes {format_bytes(n_bytes)} of memory, and a task has {format_bytes(there)}; "
            f"{remedy}, or give the workers more memory"
        )


def read_within(file: Any, most: int, place: str, what: str, remedy: str, piece: int = _PIECE) -> bytes:
    """Read a file that unpacks itself to its end, in pieces, as its promises may be wrong.

    Raises
    ------
    InputError
        When there are more than `most` bytes; no more than a piece of them is read.
    """
    content = io.BytesIO()
    while data := file.read(piece):
        content.write(data)
        if content.tell() > most:
            raise InputError(
                f"{place}: {what} is longer than {format_bytes(most)} unpacked, and a task has {format_bytes(room())} "
                f"of memory; {remedy}, or give the workers more memory"
            )
    return content.getvalue()
