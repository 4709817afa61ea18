"""Gives the memory that workers have freed back to the system before Dask takes it for used.

Registered by the runner on every cluster it uses. glibc keeps what is freed below what is still used, whatever its
settings: on a worker of 512 MiB that read tables, up to 260. Dask, which looks at the whole process, then writes data
to disk for nothing, and a worker above its pause threshold that has nothing more to write does no task ever again.
"""

from __future__ import annotations

import ctypes
import time
from contextlib import suppress

from distributed import Client, Worker, WorkerPlugin
from tornado.ioloop import PeriodicCallback

# Of the time, what is spent on it at most: while all memory is in use, it is tried again and again.
_SHARE_OF_TIME = 0.02


def give_freed_memory_back(client: Client) -> None:
    """Register `FreedMemory` for the workers that there are and those that come."""
    # A worker that leaves while it is told is none of them.
    with suppress(OSError):
        client.register_plugin(FreedMemory())


class FreedMemory(WorkerPlugin):
    """Has glibc return free memory (malloc_trim(3)) while the process is above what Dask wants it to be.

    Workers without a limit, and those whose C library is another, are left alone. It stays on a cluster that outlives
    the job; another job's takes its place.
    """

    name = "daskyard-freed-memory"

    _callback: PeriodicCallback | None = None

    def setup(self, worker: Worker) -> None:
        """Look as often as the worker's own monitor, which acts a step above."""
        manager, trim = worker.memory_manager, getattr(ctypes.CDLL(None), "malloc_trim", None)
        fraction = manager.memory_target_fraction or manager.memory_spill_fraction or manager.memory_pause_fraction
        if not manager.memory_limit or not fraction or trim is None:
            return
        threshold, not_before = fraction * manager.memory_limit, 0.0

        def look() -> None:
            nonlocal not_before
            begin = time.monotonic()
            if begin >= not_before and worker.monitor.get_process_memory() > threshold:
                trim(0)
                now = time.monotonic()
                not_before = now + (now - begin) / _SHARE_OF_TIME

        self._callback = PeriodicCallback(look, manager.memory_monitor_interval * 1000)
        self._callback.start()

    def teardown(self, worker: Worker) -> None:
        """Look no more."""
        if self._callback is not None:
            self._callback.stop()
