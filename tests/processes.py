"""A Dask cluster of processes, started as in the pods of a cluster and killed when a test wants it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path


class Processes:
    """A scheduler, whose address stays the same when it is started again, and workers, each with its nanny."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{self.port}"
        self._scheduler: subprocess.Popen[bytes] | None = None
        self._all: list[subprocess.Popen[bytes]] = []

    def start_scheduler(self, *more: str, **environment: str) -> None:
        options = ("--host", "127.0.0.1", "--port", str(self.port), "--dashboard-address", "127.0.0.1:0", *more)
        self._scheduler = self._start(environment, "scheduler", *options)

    def start_worker(self, *more: str) -> subprocess.Popen[bytes]:
        options = ("--nthreads", "1", "--no-dashboard", "--death-timeout", "30", *more)
        return self._start({}, "worker", self.address, *options)

    def _start(self, environment: dict[str, str], *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / "cluster.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", *arguments],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=os.environ | environment,
            )
        self._all.append(process)
        return process

    def pause_scheduler(self) -> None:
        assert self._scheduler is not None
        self._scheduler.send_signal(signal.SIGSTOP)

    def kill_scheduler(self) -> None:
        assert self._scheduler is not None
        self._scheduler.kill()
        self._scheduler.wait()

    def kill(self) -> None:
        """End all at once; workers go with their nannies."""
        for process in self._all:
            process.kill()
        for process in self._all:
            process.wait()

    def stop(self) -> None:
        for process in reversed(self._all):
            process.terminate()
        for process in self._all:
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
