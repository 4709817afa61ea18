"""What another user of this machine can bring about, tried for real: a process that stops being root."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

NOBODY = 65534

# It may not be able to read Python itself any more: what it looks up by name later is imported before.
_BECOME_NOBODY = f"""
import encodings.idna, os
os.setgroups([])
os.setresgid({NOBODY}, {NOBODY}, {NOBODY})
os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
os.chdir("/")
"""


def run_as_stranger(imports: str, code: str, *arguments: object) -> list[str]:
    """Run `code` as another user, after `imports`, and return the lines that it prints."""
    if os.getuid() != 0:
        pytest.skip("needs root, to become another user")
    script = textwrap.dedent(imports) + _BECOME_NOBODY + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def listeners_of(pid: int) -> set[tuple[str, int]]:
    """Addresses and ports at which a process listens."""
    inodes = set()
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # one that has ended listens no more
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                inodes.add(os.readlink(fd).removeprefix("socket:[").removesuffix("]"))
    found = set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                address, port = fields[1].split(":")
                packed = b"".join(bytes.fromhex(address[i : i + 8])[::-1] for i in range(0, len(address), 8))
                family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
                found.add((socket.inet_ntop(family, packed), int(port, 16)))
    return found
