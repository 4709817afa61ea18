"""Holds the files of a committed run against its manifest: are they there, and are they what was written.

`look` asks storage for names and sizes and costs a listing; `verify` reads every byte. Called by the preflight, the
runner and `daskyard show --verify`.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

from jobs import storage
from jobs.artifacts import MANIFEST, FileRecord, Manifest, attempt_url
from jobs.errors import DaskyardError, OutputError, StorageDeniedError, StorageMissingError, StorageStalledError
from jobs.storage.errors import is_damage, is_forbidden

_BLOCK_BYTES = 16 << 20
# A byte may be spoilt on its way as well; what is read a second time and still wrong is wrong in storage.
_N_READS = 2
_MOST_STALLS = 3
_log = logging.getLogger("daskyard.verify")


@dataclass(frozen=True)
class Damage:
    """A file of a run that is not as it was written, or of which that cannot be said, and what is wrong with it."""

    name: str
    url: str
    problem: str
    is_proved: bool = True

    def __str__(self) -> str:
        return f"{self.url}: {self.problem}"


def refuse_damaged(manifest: Manifest, run_url: str) -> None:
    """Look whether the files of a committed run are there, in their sizes.

    Raises
    ------
    OutputError
        When they are not.
    StorageError
        When that cannot be known, unless these credentials may not look: that is told, and is no error.
    """
    try:
        damage = look(manifest, run_url)
    except StorageDeniedError as error:
        if not is_forbidden(error):
            raise
        _log.warning("%s: committed; whether its files are there cannot be looked at (%s)", run_url, error)
        return
    if damage:
        more = f" (and {len(damage) - 1} more files)" if len(damage) > 1 else ""
        raise OutputError(
            f"{run_url}: committed before, but damaged: {damage[0]}{more}; put back what is missing, or remove "
            f"{storage.join(run_url, MANIFEST)} to run it again"
        )


def look(manifest: Manifest, run_url: str) -> list[Damage]:
    """Return the files that are missing, or of another size than was written."""
    folder = attempt_url(run_url, manifest.attempt)
    found = storage.list_sizes(folder)
    # A listing may be older than a file: the file itself is asked for before it is called missing.
    doubtful = [file for file in manifest.files if found.get(file.name) != file.size]
    problems = [(file, _size_problem(file, storage.join(folder, file.name))) for file in doubtful]
    return [_damage(file, folder, problem) for file, problem in problems if problem is not None]


def verify(
    manifest: Manifest, run_url: str, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> list[Damage]:
    """Read every file; return those whose bytes are not what was written, and those that cannot be read.

    What is wrong with one file keeps none of the others from being read. Only where storage stalls at several, one
    after the other, the rest counts as files that cannot be read: each of them might take as long again.

    Parameters
    ----------
    manifest : Manifest
        What was written.
    run_url : str
        Where the run is now: it may have been copied from where it was made.
    on_progress : callable
        Is told how many bytes of how many were read.
    """
    folder = attempt_url(run_url, manifest.attempt)
    damage, done = [], 0
    n_stalls = 0
    total = sum(file.size for file in manifest.files)
    for file in manifest.files:
        try:
            if n_stalls >= _MOST_STALLS:
                raise StorageStalledError(f"storage stalled at the {n_stalls} files before it")
            problem, is_proved, n_stalls = _content_problem(file, storage.join(folder, file.name)), True, 0
        except DaskyardError as error:
            problem, is_proved = _unread(error)
            if isinstance(error, StorageStalledError) and n_stalls < _MOST_STALLS:
                n_stalls += 1
        if problem is not None:
            damage.append(_damage(file, folder, problem, is_proved))
        done += file.size
        on_progress(done, total)
    return damage


def _damage(file: FileRecord, folder: str, problem: str, is_proved: bool = True) -> Damage:
    return Damage(file.name, storage.join(folder, file.name), problem, is_proved)


def _unread(error: DaskyardError) -> tuple[str, bool]:
    """Return what the error of reading a file says about the file, and whether it proves that it is damaged."""
    if isinstance(error, StorageMissingError):
        return "missing", True
    return (str(error), True) if is_damage(error) else (f"cannot be read ({error})", False)


def _size_problem(file: FileRecord, url: str) -> str | None:
    oddity = storage.oddity(url)
    if oddity is not None:
        return f"{oddity} in place of a file"
    size = storage.size_of(url)
    if size is None:
        return "missing"
    return None if size == file.size else f"{size:,} bytes in place of {file.size:,}"


def _content_problem(file: FileRecord, url: str) -> str | None:
    problem = _size_problem(file, url)
    if problem is not None:
        return problem
    for _ in range(_N_READS):
        digest = hashlib.sha256()
        for start in range(0, file.size, _BLOCK_BYTES):
            digest.update(storage.read_bytes(url, start, min(start + _BLOCK_BYTES, file.size)))
        if digest.hexdigest() == file.sha256:
            return None
    return "the content is not what was written (its SHA-256 is another)"
