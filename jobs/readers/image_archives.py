"""Files of an image data set by relative name, wherever they lie: in storage one by one, or inside archives.

A zip is read where it is. The other archives can only be read from front to back, so one task copies their members
into plain zips of a few dozen megabytes in a scratch folder, from which others then decode in parallel.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import IO, Any

from jobs import storage
from jobs.errors import InputError
from jobs.storage import StoredFile

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2")
_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    EOFError,
    lzma.LZMAError,
    gzip.BadGzipFile,
    zlib.error,
    NotImplementedError,  # a zip that is encrypted or packed by a method that Python lacks
)
_ZIP_BYTES = 32 << 20
_ZIP_MEMBERS = 4096
_N_READERS = 8


@dataclass(frozen=True)
class Entry:
    """One file: its name below the input, the object that holds it, and the member's name where that is a zip."""

    name: str
    url: str
    member: str | None
    size: int

    @property
    def place(self) -> str:
        """What an error message calls it."""
        return f"{self.url}!{self.member}" if self.member else self.url


def list_entries(url: str, files: Sequence[StoredFile], scratch: str) -> list[Entry]:
    """List all files below the input `url`, archives opened; sorted by name, hidden ones left out.

    Raises
    ------
    InputError
        When an archive is truncated or damaged.
    """
    entries: list[Entry] = []
    folder = _folder_of(url)
    for number, file in enumerate(files):
        name = file.url.lower()
        if name.endswith(".zip"):
            entries += _damage_named(file.url, _list_zip, file.url)
        elif name.endswith(ARCHIVE_SUFFIXES):
            entries += _damage_named(file.url, _unpack_tar, file.url, storage.join(scratch, f"{number:05d}"))
        else:
            entries.append(Entry(_relative(file.url, folder), file.url, None, file.size))
    return sorted((e for e in entries if not _is_hidden(e.name)), key=lambda e: (e.name, e.url))


def read_entries(entries: Sequence[Entry]) -> Iterator[tuple[Entry, bytes]]:
    """Yield each entry with its bytes, in order; several requests are under way at a time."""
    for (url, is_zip), group in groupby(entries, key=lambda e: (e.url, e.member is not None)):
        if is_zip:
            yield from _damage_named(url, _read_zip, url, list(group))
        else:
            with ThreadPoolExecutor(_N_READERS) as pool:
                several = list(group)
                yield from zip(several, pool.map(lambda e: storage.read_bytes(e.url), several), strict=True)


def _list_zip(url: str) -> list[Entry]:
    with storage.open_input(url) as file, zipfile.ZipFile(file) as archive:
        return [Entry(i.filename, url, i.filename, i.file_size) for i in archive.infolist() if not i.is_dir()]


def _read_zip(url: str, entries: list[Entry]) -> Iterator[tuple[Entry, bytes]]:
    with storage.open_input(url) as file, zipfile.ZipFile(file) as archive:
        for entry in entries:
            yield entry, archive.read(str(entry.member))


def _unpack_tar(url: str, scratch: str) -> list[Entry]:
    entries: list[Entry] = []
    zips = _Zips(scratch)
    with _decompressed(url) as stream:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isfile() else None
                if content is not None and not _is_hidden(member.name):
                    entries.append(zips.add(member.name, content.read()))
        while stream.read(1 << 20):  # a check sum at the end tells whether the file is whole
            pass
    zips.flush()
    return entries


class _Zips:
    """Writes members into zips of limited size, uncompressed."""

    def __init__(self, folder: str) -> None:
        self._folder, self._n = folder, 0
        self._open()

    def _open(self) -> None:
        self._buffer = io.BytesIO()
        self._zip = zipfile.ZipFile(self._buffer, "w", zipfile.ZIP_STORED)
        self._url = storage.join(self._folder, f"{self._n:05d}.zip")
        self._n += 1

    def add(self, name: str, content: bytes) -> Entry:
        """Add one member; return where it will be."""
        number = str(len(self._zip.namelist()))  # names may repeat in a tar
        self._zip.writestr(zipfile.ZipInfo(number), content)
        entry = Entry(name, self._url, number, len(content))
        if self._buffer.tell() >= _ZIP_BYTES or len(self._zip.namelist()) >= _ZIP_MEMBERS:
            self.flush()
        return entry

    def flush(self) -> None:
        """Write what was added since the last time."""
        self._zip.close()
        storage.write_bytes(self._url, self._buffer.getvalue())
        self._open()


@contextmanager
def _decompressed(url: str) -> Iterator[IO[bytes]]:
    """Open an archive as its plain bytes; unlike tarfile's own streams these notice a truncated file."""
    openers: dict[str, Callable[..., Any]] = {"gz": gzip.open, "xz": lzma.open, "z2": bz2.open}
    with storage.open_input(url) as file:
        opener = openers.get(url.lower()[-2:])
        if opener is None:
            yield file
        else:
            with opener(file, "rb") as stream:
                yield stream


def _damage_named(url: str, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function that reads an archive; a generator's errors are named as well."""
    try:
        result = function(*args)
        return result if isinstance(result, list) else list(result)
    except _DAMAGED as error:
        raise InputError(
            f"{url}: truncated or damaged archive ({error or type(error).__name__}); put it there again"
        ) from error
    except OSError as error:
        # bz2 reports bad data so; what storage raised has another class by now.
        raise InputError(f"{url}: truncated or damaged archive ({error}); put it there again") from error


def _folder_of(url: str) -> str:
    """Return the URL of an input as storage spells it; of a glob, that of the folder before its first wildcard."""
    fs, path = storage.options_fs(url)
    fixed = re.split(r"[*?\[]", path, maxsplit=1)[0]
    return str(fs.unstrip_protocol(path if fixed == path else fixed.rpartition("/")[0]))


def _relative(url: str, folder: str) -> str:
    return url.removeprefix(folder).strip("/") or url.rsplit("/", 1)[-1]


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "_")) and part not in (".", "..") for part in name.split("/"))
