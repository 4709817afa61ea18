"""The workers of a cluster: who they are, and how much of their memory a run takes.

Called by the runner, which reports it, and wherever work is cut to what a worker can hold.
"""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from distributed import Client

_STATUS = Path("/proc/self/status")
# Writing 5 there makes Linux forget how large the process has been (proc_pid_clear_refs(5)).
_CLEAR = Path("/proc/self/clear_refs")


def workers_of(client: Client) -> dict[str, Any]:
    """Return what the scheduler knows of each worker now, by address.

    `Client.scheduler_info` would do, were it not that the client's own refresh, which asks for no workers, can come
    between its question and its answer: then it tells of none.
    """
    identity = client.sync(client.scheduler.identity, n_workers=-1)
    return dict(identity["workers"])


def memory_limit(client: Client) -> int:
    """Return the bytes that the smallest worker may take; 0 where none has a limit."""
    limits = [int(worker["memory_limit"] or 0) for worker in workers_of(client).values()]
    return min((limit for limit in limits if limit), default=0)


class Memory(NamedTuple):
    """Bytes of one worker: allowed, taken at most, and over a time written to its disk and read back from there."""

    limit: int
    peak: int
    n_written: int
    n_read: int


def begin_memory(client: Client) -> Mapping[str, Memory]:
    """Let every worker forget its peak; return what `end_memory` needs to count from here on."""
    return _of_workers(client, True)


def end_memory(client: Client, begun: Mapping[str, Memory]) -> dict[str, Memory]:
    """Return, by address, what each worker has taken since; one that came later is counted from its start."""
    nothing = Memory(0, 0, 0, 0)
    return {
        address: Memory(
            now.limit,
            now.peak,
            now.n_written - begun.get(address, nothing).n_written,
            now.n_read - begun.get(address, nothing).n_read,
        )
        for address, now in _of_workers(client, False).items()
    }


def _of_workers(client: Client, is_begin: bool) -> dict[str, Memory]:
    # A worker that leaves while it is asked has nothing to tell.
    told = client.run(_memory, is_begin, on_error="return")
    return {address: memory for address, memory in told.items() if isinstance(memory, Memory)}


def _memory(is_begin: bool, dask_worker: Any) -> Memory:
    """Tell of the worker that Dask passes."""
    if is_begin:
        with contextlib.suppress(OSError):
            _CLEAR.write_text("5")
    # Without a limit there is no spilling, and data is a plain dictionary.
    moved = getattr(dask_worker.data, "cumulative_metrics", {})
    return Memory(
        int(dask_worker.memory_manager.memory_limit or 0),
        _peak(),
        int(moved.get(("disk-write", "bytes"), 0)),
        int(moved.get(("disk-read", "bytes"), 0)),
    )


def _peak() -> int:
    """Return the most bytes that this process has had in memory."""
    with contextlib.suppress(OSError, StopIteration):
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
