"""Tells this process and the workers after how long an operation on storage ends. Called by the runner."""

from __future__ import annotations

import os
from contextlib import suppress

from distributed import Client, Worker, WorkerPlugin

from jobs.storage.tries import STALL_VARIABLE


def limit_storage_of_workers(client: Client, stall_seconds: float) -> None:
    """Register `StorageLimits` for the workers that there are and those that come."""
    # A worker that leaves while it is told is none of them.
    with suppress(OSError):
        client.register_plugin(StorageLimits(stall_seconds))


class StorageLimits(WorkerPlugin):
    """Sets the variable that storage reads in a worker's process; the processes that it starts inherit it.

    It stays on a cluster that outlives the job; another job's takes its place.
    """

    name = "daskyard-storage-limits"

    def __init__(self, stall_seconds: float) -> None:
        self.stall_seconds = stall_seconds

    def setup(self, worker: Worker) -> None:
        """Set it."""
        os.environ[STALL_VARIABLE] = f"{self.stall_seconds:g}"
