"""Copies a pod's logs beside a run, whether it was committed or not. They are no part of what a commit lists."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from jobs import storage
from jobs.errors import InputError

FOLDER = "logs"
MAX_FILES = 64
MAX_BYTES = 8 << 20


@dataclass(frozen=True)
class SavedLogs:
    """URLs and sizes of the copies, and how many files were left out because there are too many."""

    files: list[tuple[str, int]]
    n_left_out: int


def save(folder: Path, run_url: str) -> SavedLogs:
    """Copy the regular files below `folder` to ``<run_url>/logs/…``: the latest `MAX_FILES`, the end of long ones.

    Raises
    ------
    InputError
        When the folder or a file cannot be read.
    StorageError
        When storage does not take them.
    """
    found = sorted(_regular_files(folder), key=lambda file: file[1].st_mtime_ns, reverse=True)
    saved = []
    for path, _ in sorted(found[:MAX_FILES]):
        url = storage.join(run_url, FOLDER, path.relative_to(folder).as_posix())
        data = _end_of(path)
        storage.write_bytes(url, data)
        saved.append((url, len(data)))
    return SavedLogs(saved, max(len(found) - MAX_FILES, 0))


def _regular_files(folder: Path) -> list[tuple[Path, os.stat_result]]:
    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror}); name a folder") from error

    paths = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        # Where Kubernetes keeps what the links of a mounted ConfigMap lead to.
        folders[:] = [name for name in folders if not name.startswith("..")]
        paths += [Path(parent, name) for name in names]
    # A link may lead out of the folder, to what nobody meant to publish.
    inside = [path for path in paths if path.resolve().is_relative_to(folder.resolve()) and path.exists()]
    found = [(path, path.stat()) for path in inside]
    return [(path, status) for path, status in found if stat.S_ISREG(status.st_mode)]


def _end_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(max(os.fstat(file.fileno()).st_size - MAX_BYTES, 0))
            return file.read(MAX_BYTES)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); grant access to it") from error
