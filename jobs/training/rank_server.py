"""The server that forks rank processes: `python -P -m jobs.training.rank_server FD FOLDER`, started by processes.

It has one thread, so that a fork copies no lock that another thread holds, and it runs nothing of torch, only imports
it. Requests come one at a time: `fork MODULE…`, with a socket for the new process, answered by its process id, and
`end PID`, which kills it and answers how it ended (the wait status). What torch compiles lies in a folder of the
server's own within FOLDER, and goes with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import signal
import socket
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from jobs.temporary import held_folder
from jobs.training import rank_process
from jobs.training.processes import CACHES

_REQUEST_BYTES = 1 << 16
_PR_SET_PDEATHSIG = 1


def serve(control: socket.socket) -> None:
    """Answer requests until the worker's process has gone; then end all that was forked."""
    children: set[int] = set()
    with contextlib.suppress(ConnectionError):
        _answer(control, children)
    for pid in children:
        _end(pid)


def _answer(control: socket.socket, children: set[int]) -> None:
    while True:
        data, fds, _, _ = socket.recv_fds(control, _REQUEST_BYTES, 1)
        while data and not data.endswith(b"\n"):
            data += control.recv(_REQUEST_BYTES)
        if not data:
            return
        request, *arguments = data.decode().split()
        if request == "fork":
            _import(arguments)
            children.add(pid := _fork(control, fds[0]))
            control.send(str(pid).encode())
        else:
            pid = int(arguments[0])
            control.send(str(_end(pid) if pid in children else 0).encode())
            children.discard(pid)


def _import(names: list[str]) -> None:
    """Import modules that the next rank uses, and those after it; what fails here fails there, and is told there."""
    for name in names:
        if name not in sys.modules:
            with contextlib.suppress(BaseException):
                importlib.import_module(name)
    gc.freeze()  # a child that collects garbage would copy every page it looks at


def _fork(control: socket.socket, fd: int) -> int:
    server = os.getpid()
    pid = os.fork()
    if pid:
        os.close(fd)
        return pid
    control.close()
    _die_with(server)
    try:
        if torch.cuda._is_in_bad_fork():
            # A module of the model's used CUDA as it was imported, and no fork can after that: import all anew.
            os.set_inheritable(fd, True)
            os.execv(sys.executable, [sys.executable, "-P", "-m", rank_process.__name__, str(fd)])
        rank_process.main(Connection(fd))
    finally:
        os._exit(1)


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent is gone (Linux; elsewhere the closed channel tells)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _end(pid: int) -> int:
    """Kill a child unless it has ended; return its wait status."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)  # one that has ended, but was not waited for, stays what it is
    return os.waitpid(pid, 0)[1]


@contextlib.contextmanager
def _own_caches(parent: Path) -> Iterator[None]:
    """Have torch and Triton keep what they compile in a folder of this process's, unless the user names one.

    Theirs has a name that everyone knows, in a folder that everyone may write: another user who takes the name first
    keeps torch from being imported, or has it load code of theirs.
    """
    with held_folder("torch", parent) as folder:
        for name in CACHES:
            os.environ.setdefault(name, str(folder / name.partition("_")[0].lower()))
        yield


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with _own_caches(Path(sys.argv[2])):
        import torch._dynamo  # the first optimiser of a process would import it, for seconds

        serve(socket.socket(fileno=int(sys.argv[1])))
