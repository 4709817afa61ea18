"""A preload of the nannies that tells the scheduler why each worker process ended.

A scheduler knows that a worker is gone; its nanny sees the exit code, and whether the kernel has killed for memory.
Where a nanny goes with its worker, as when a pod or a node is lost, nothing is told. Loaded in pods and by the local
cluster; `jobs.deaths` reads it.
"""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path
from typing import Any

from distributed import Nanny
from distributed.core import Status

TOPIC = "daskyard-ends"
# Why: for the memory it took, by its nanny or the kernel; because somebody told it to; by itself; or nobody can know.
MEMORY, TOLD, CRASH, UNKNOWN = "memory", "told to end", "crash", "unknown"
_POLITE = frozenset({0, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP})
_KEY = "oom_kill"
# Ends by the kernel for memory that a nanny of this process has told of: those of one machine share the kernel's count.
_n_told = 0


def dask_setup(nanny: Nanny) -> None:
    """Tell of each end of the nanny's worker, before the nanny starts another one."""
    inner: Any = nanny
    go_on, end, ended_pid = inner._on_worker_exit_sync, inner.kill, inner.memory_manager._last_terminated_pid
    is_asked = False
    _count_from_now()

    async def kill(*args: Any, **options: Any) -> None:
        # Somebody wants the worker to end, such as a scheduler that has not heard of it for long.
        nonlocal is_asked
        is_asked = True
        try:
            await end(*args, **options)
        finally:
            is_asked = False

    def tell(exit_code: int) -> None:
        nonlocal ended_pid
        is_for_memory = inner.memory_manager._last_terminated_pid != ended_pid
        ended_pid = inner.memory_manager._last_terminated_pid
        reason = TOLD if is_asked else why(exit_code, is_for_memory)
        if inner.status == Status.running:  # one that closes has nothing to tell
            event = {"worker": inner.worker_address, "why": reason, "exit_code": exit_code}
            inner._ongoing_background_tasks.call_soon(_send, inner, event)
        go_on(exit_code)

    inner.kill = inner.handlers["kill"] = kill
    inner._on_worker_exit_sync = tell


async def _send(nanny: Any, event: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # the scheduler is gone: nobody will ask
        await nanny.scheduler.log_event(topic=TOPIC, msg=event)


def why(exit_code: int, is_for_memory: bool) -> str:
    """Return why a process ended with an exit code, negative for a signal; its nanny may have done it for memory."""
    global _n_told
    if is_for_memory:
        return MEMORY
    if exit_code in _POLITE:
        return TOLD
    if exit_code != -signal.SIGKILL:
        return CRASH
    n = n_killed_for_memory()
    if n is None:
        return UNKNOWN
    if n > _n_told:
        _n_told += 1
        return MEMORY
    return CRASH


def n_killed_for_memory() -> int | None:
    """Return how many processes the kernel has killed for memory, in this control group or else on this machine."""
    for file in (*_of_group(), Path("/proc/vmstat")):
        with contextlib.suppress(OSError, ValueError, StopIteration):
            lines = file.read_text().splitlines()
            return int(next(line for line in lines if line.split()[0] == _KEY).split()[1])
    return None


def _count_from_now() -> None:
    global _n_told
    _n_told = n_killed_for_memory() or 0


def _of_group() -> list[Path]:
    """Return the files that may have the count, of both versions of control groups, as the host or a container sees."""
    files = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            root, name = Path("/sys/fs/cgroup"), "memory.events"
            if "memory" in controllers.split(","):
                root, name = root / "memory", "memory.oom_control"
            elif controllers:
                continue
            files += [root / group.lstrip("/") / name, root / name]
    return files
