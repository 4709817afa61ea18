"""What a data set is, and how a file is told to be the right one."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from jobs.errors import InputError
from jobs.listener import Listener

CHUNK = 1 << 20


class Source(Protocol):
    """A place from which source files can be had."""

    def get(self, names: list[str], folder: Path, listener: Listener) -> None:
        """Put the files `names` into `folder`, or raise a DaskyardError that says why not."""


@dataclass(frozen=True)
class Dataset:
    """A public data set.

    Attributes
    ----------
    name, title, licence : str
        What the user types; one line on what it is; one sentence on its terms.
    rows : mapping of str to int
        Rows of each part, such as ``{"train": 60000, "test": 10000}``.
    files : mapping of str to str
        The source files and the SHA-256 of each; of what is inside for ``.gz``, since packagers compress again.
    sources : sequence of Source
        Where to ask for them, in this order.
    convert : callable
        ``convert(source_folder, target_folder)`` writes the files that pipelines read.
    substitutes : sequence of mappings like `files`
        Other forms of the same data, taken as they are if DASKYARD_DATA_DIR holds them.
    version : int
        Goes up when `convert` writes something else, so that older caches are not used.
    """

    name: str
    title: str
    licence: str
    rows: Mapping[str, int]
    files: Mapping[str, str]
    sources: tuple[Source, ...]
    convert: Callable[[Path, Path], None]
    substitutes: tuple[Mapping[str, str], ...] = ()
    version: int = 1


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hex; for ``.gz`` that of its content."""
    digest = hashlib.sha256()
    try:
        with gzip.open(path) if path.suffix == ".gz" and ".tar" not in path.name else path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
    except (gzip.BadGzipFile, EOFError) as error:
        raise InputError(f"{path}: not a whole gzip file ({error}); remove it and fetch it again") from error
    return digest.hexdigest()


def check(path: Path, expected: str) -> None:
    """Raise an InputError unless `path` has the expected SHA-256."""
    found = sha256(path)
    if found != expected:
        raise InputError(
            f"{path.name}: SHA-256 is {found[:16]}…, expected {expected[:16]}…; "
            f"it is not the file that this version of Daskyard knows: replace {path} or update Daskyard"
        )
