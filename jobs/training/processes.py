"""Processes of their own for the ranks, forked from a server that has torch imported already.

A rank that crashes, or is killed for its memory, takes neither the Dask worker nor what lies there with it, and a new
one is there in milliseconds: importing torch takes seconds, and is done once for each worker, by `rank_server`. The
worker's own process does not need torch for a fit. Called by keeper.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pickletools
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from multiprocessing.connection import Connection
from pathlib import Path

import dask
import fsspec.config

import jobs
from jobs.errors import WorkersLostError

# The server has to import torch, which a slow disk can make last.
_START_TIMEOUT_S = 120.0
_END_TIMEOUT_S = 2.0
# glibc keeps what a step frees: the next one takes as much, and to have the system clear each page anew took as long as
# the arithmetic. What Dask and the images set is for workers, which are to give memory back.
_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(4 << 30)}
# Asked for GPUs, torch asks CUDA, and no process forked after that can use it; asked this way, it asks the driver.
_CUDA = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
# torch warns, with a C++ stack, of each connection to a rank that was lost: the driver has told of that in one line.
_LOG = {"TORCH_CPP_LOG_LEVEL": "ERROR"}
# Where torch and Triton keep what they compile: the server has folders of its own, which its ranks share.
CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
_N_TRIES = 2
_ANSWER_BYTES = 64

_lock = threading.Lock()


@dataclass(frozen=True)
class Surroundings:
    """What a process finds by itself, and one that was forked long ago does not: it may have changed since."""

    search_path: tuple[str, ...]
    environment: Mapping[str, str]
    temporary_directory: str | None

    @classmethod
    def here(cls) -> Surroundings:
        """Return those of this process."""
        return cls(_search_path(), dict(os.environ), dask.config.get("temporary-directory", None))

    def take(self) -> None:
        """Make them this process's."""
        sys.path[:] = self.search_path
        caches = {name: os.environ[name] for name in CACHES if name in os.environ}
        os.environ.clear()
        os.environ.update({**caches, **self.environment})
        fsspec.config.set_conf_env(fsspec.config.conf)
        dask.config.set({"temporary-directory": self.temporary_directory})


@dataclass(frozen=True)
class Start:
    """The first message: who this is, at which address others reach it, and what to do (as the driver pickled it).

    `surroundings` are the worker's: what is found where, and which credentials storage takes.
    """

    member: str
    host: str
    plan: bytes = field(repr=False)
    data: bytes | None = field(repr=False)
    n_threads: int
    is_on_cpu: bool
    surroundings: Surroundings = field(repr=False)


@dataclass(frozen=True)
class RankProcess:
    """A process that waits for the first message on its channel; see `rank_process.main` for what it does then."""

    pid: int
    channel: Connection

    def leave(self) -> None:
        """Ask it to go at the end of its step."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)

    def end(self) -> str:
        """Kill it, if it still runs; return how it ended, for people."""
        with _lock:
            status = _server.ask(f"end {self.pid}") if _server is not None else ""
        self.channel.close()
        return _told(status)


def fork_rank(modules: Sequence[str] = ()) -> RankProcess:
    """Start a process that has `modules` imported: what its server imports once, no rank has to.

    Raises
    ------
    WorkersLostError
        When the server cannot be started on this machine.
    """
    global _server
    with _lock:
        ours, theirs = socket.socketpair()
        with theirs:
            pid = ""
            for _ in range(_N_TRIES):  # a server may have been killed since it was last used
                if _server is None:
                    _server = _Server()
                pid = _server.ask(f"fork {' '.join(modules)}", theirs)
                if pid:
                    break
                _server.end()
                _server = None
    if not pid:
        ours.close()
        raise WorkersLostError("training: no process can be started for a rank on this worker; see the worker's log")
    return RankProcess(int(pid), Connection(ours.detach()))


def _search_path() -> tuple[str, ...]:
    # Models may be defined anywhere.
    return tuple(path or os.getcwd() for path in sys.path)


def _path_to_ours() -> tuple[str, ...]:
    """Return the search path, with our own package before another `jobs` on it.

    This process may have imported ours before its working folder was another one.
    """
    path, ours = _search_path(), Path(jobs.__file__).resolve()
    found = PathFinder.find_spec(jobs.__name__, path)
    is_ours = found is not None and found.origin is not None and Path(found.origin).resolve() == ours
    return path if is_ours else (str(ours.parent.parent), *path)


@atexit.register
def _end_server() -> None:
    if _server is not None:
        _server.end()


class _Server:
    """The process that forks; it ends, with all that it has forked, when this process does."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(_START_TIMEOUT_S)
        folder = dask.config.get("temporary-directory", None) or tempfile.gettempdir()
        with theirs:
            self._process = subprocess.Popen(
                # -P: the working folder may have a `jobs` of its own, or a file with the name of any module.
                [sys.executable, "-P", "-m", "jobs.training.rank_server", str(theirs.fileno()), str(folder)],
                pass_fds=[theirs.fileno()],
                env={**_LOG, **os.environ, **_MEMORY, **_CUDA, "PYTHONPATH": os.pathsep.join(_path_to_ours())},
                start_new_session=True,  # Ctrl-C is for the driver, which ends its ranks in order
            )

    def end(self) -> None:
        self._socket.close()
        try:
            self._process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def ask(self, question: str, channel: socket.socket | None = None) -> str:
        """Return the answer, or nothing where there is no server any more."""
        fds = [channel.fileno()] if channel is not None else []
        try:
            socket.send_fds(self._socket, [question.encode() + b"\n"], fds)
            return self._socket.recv(_ANSWER_BYTES).decode()
        except OSError:
            return ""


def modules_in(pickled: bytes) -> tuple[str, ...]:
    """Return the names of modules that a pickle made in this process mentions."""
    mentioned = {argument for _, argument, _ in pickletools.genops(pickled) if isinstance(argument, str)}
    return tuple(sorted(mentioned & sys.modules.keys() - {"__main__"}))


def _told(status: str) -> str:
    if not status:
        return "its process is gone"
    code = os.waitstatus_to_exitcode(int(status))
    if code >= 0:
        return f"its process ended with exit code {code}"
    name = signal.Signals(-code).name
    return f"its process was killed by {name}{' (out of memory?)' if -code == signal.SIGKILL else ''}"


_server: _Server | None = None
