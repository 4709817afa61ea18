"""Temporary folders and files that a killed process does not leave for ever: the next one that makes some removes them.

Who made one holds a lock on it, which the kernel releases with the process, however it ends. What nobody holds is
nobody's: process ids, which are used again, are not asked. Called by whoever needs a temporary folder.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

# No name of a folder that is not locked begins so.
_PREFIX = "daskyard-held-"
# A file in such a folder with paths, one a line, of what lies elsewhere and is to go with it.
_ELSEWHERE = "elsewhere.txt"
# Folders, and the processes that made them: forked ones know of them as well.
_held: dict[Path, int] = {}


@contextlib.contextmanager
def held_folder(what: str, parent: Path | None = None) -> Iterator[Path]:
    """Yield a new folder that its owner alone can read, and remove it; before, remove those that killed processes left.

    Parameters
    ----------
    what
        A word of its name, for people.
    parent
        Where; by default the folder for temporary files.

    Raises
    ------
    OSError
        When it cannot be made.
    """
    parent = parent or Path(tempfile.gettempdir())
    remove_unheld(parent)
    folder, lock = _made(what, parent)
    try:
        yield folder
    finally:
        _remove(folder)
        os.close(lock)


@atexit.register
def _remove_the_rest() -> None:
    """Remove what a stop kept from being removed, and what a thread that went on made anew to write a file into it."""
    for folder, owner in list(_held.items()):
        if owner == os.getpid():
            _remove(folder)


def add_elsewhere(folder: Path, paths: list[str]) -> None:
    """Have these files go with a held folder, whoever removes it."""
    with (folder / _ELSEWHERE).open("a") as file:
        file.writelines(f"{path}\n" for path in paths)


def remove_unheld(parent: Path) -> None:
    """Remove the folders in `parent` that this user's killed processes left."""
    with contextlib.suppress(OSError), os.scandir(parent) as entries:
        for path in [Path(entry.path) for entry in entries if entry.name.startswith(_PREFIX)]:
            with contextlib.suppress(OSError), _unheld(path, os.O_DIRECTORY):
                _remove(path)


@contextlib.contextmanager
def held_file(folder: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """Yield a new file in `folder`, which is this user's alone, and its path; remove it unless it was moved away.

    What killed processes left of such files is removed before.
    """
    for path in folder.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError), _unheld(path, 0):
            path.unlink()
    while True:
        handle, name = tempfile.mkstemp(prefix=_PREFIX, dir=folder)
        with os.fdopen(handle, "wb") as file:
            if not _hold(handle, Path(name)):
                continue
            try:
                yield file, Path(name)
            finally:
                Path(name).unlink(missing_ok=True)
            return


def _made(what: str, parent: Path) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{what}-", dir=parent))
        with contextlib.suppress(FileNotFoundError):  # another process took it for left behind already
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            if _hold(lock, folder):
                _held[folder] = os.getpid()
                return folder, lock
            os.close(lock)


def _hold(handle: int, path: Path) -> bool:
    """Lock what was just made; False where another process took it for left behind, and removed it, before that."""
    with contextlib.suppress(OSError):  # on a file system without locks nobody can tell, and nothing is removed
        fcntl.flock(handle, fcntl.LOCK_EX)
    return _is_at(handle, path)


@contextlib.contextmanager
def _unheld(path: Path, flags: int) -> Iterator[None]:
    """Hold what is this user's and nobody holds. OSError where it is not."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | flags)
    try:
        if os.fstat(handle).st_uid != os.geteuid():
            raise PermissionError(path)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_at(handle, path):
            raise FileNotFoundError(path)
        yield
    finally:
        os.close(handle)


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.lstat())
    except FileNotFoundError:
        return False


def _remove(folder: Path) -> None:
    with contextlib.suppress(OSError):
        for line in (folder / _ELSEWHERE).read_text().splitlines():
            with contextlib.suppress(OSError):
                if not stat.S_ISDIR(os.lstat(line).st_mode):
                    os.unlink(line)
    shutil.rmtree(folder, ignore_errors=True)
