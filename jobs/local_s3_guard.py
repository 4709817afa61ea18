"""Keeps a server no longer than the process that wanted it; run by path, so it needs the standard library alone.

`jobs.local_s3` starts this file as the leader of a session of its own, with the server as its child, and ends both
with a SIGTERM. A parent that is killed cannot do that, nor remove its files: then this does. Where this one is killed,
the kernel ends the server (Linux).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable

POLL_S = 0.25
_PR_SET_PDEATHSIG = 1


def remove(paths: list[str]) -> None:
    """Remove files and folders, whether they exist or not."""
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.unlink(path)


def guard(parent: int, command: list[str], leftovers: list[str]) -> int:
    """Run `command` while process `parent` lives, and return its exit code.

    Parameters
    ----------
    parent : int
        Process id of whoever started this one.
    command : list of str
        The server with its arguments.
    leftovers : list of str
        Files and folders to remove once the parent is gone.
    """
    # What the server makes, sockets among it, is its owner's alone.
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, umask=0o077, preexec_fn=_die_with(os.getpid()))
    try:
        while server.poll() is None:
            if os.getppid() != parent:
                server.kill()
                server.wait()
                remove(leftovers)
            time.sleep(POLL_S)
        return server.returncode
    finally:
        # Its store is a log and survives being killed; a polite stop takes it 15 s.
        server.kill()
        server.wait()


def _die_with(parent: int) -> Callable[[], None]:
    with contextlib.suppress(OSError, AttributeError):
        prctl = ctypes.CDLL(None).prctl

        def ask() -> None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)

        return ask
    return lambda: None


if __name__ == "__main__":
    # Ctrl-C on the terminal is for the parent, which may still be writing to the server.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    sys.exit(guard(int(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])))
