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
import struct
import tarfile
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import IO, Any, Self

from jobs import storage
from jobs.errors import InputError
from jobs.readers.room import read_within, refuse_beyond_room, room
from jobs.storage import StoredFile

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2")
_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    EOFError,
    lzma.LZMAError,
    gzip.BadGzipFile,
    zlib.error,
    RuntimeError,  # a zip that is encrypted or packed by a method that Python lacks
    ValueError,  # names that are no text, sizes below 0
    struct.error,
)
_BAD_BZIP2 = "Invalid data stream"  # bz2 has no class of its own for it
_ZIP_BYTES = 32 << 20
_ZIP_MEMBERS = 4096
_N_READERS = 8
# Of the members that hold a longer name, and the like, for the next one.
_LONGEST_TAR_HEADER = 1 << 20
_NO_FILES = frozenset({*b"LKxgX"})
# A member is there as it is unpacked, in its zip, and as that zip's bytes.
_TAR_COPIES = 3
_PIECE = 1 << 20
# zipfile bounds what one call of these gives by nothing but what it is given; 40 bytes of bzip2 can be 46 MB.
_UNBOUNDED, _SMALL_PIECE = {zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA}, 32
_SMALLEST_READ = 4096
_REMEDY = "take it out of the input"


@dataclass(frozen=True)
class Entry:
    """One file: its name below the input, the object that holds it, and the member's name where that is a zip.

    Where that zip is a copy in the scratch folder, `tar` is the archive that users know.
    """

    name: str
    url: str
    member: str | None
    size: int
    tar: str | None = None

    @property
    def place(self) -> str:
        """What an error message calls it."""
        if self.tar is not None:
            return f"{self.tar}!{self.name}"
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
            with _damage_named(file.url):
                entries += _list_zip(file.url)
        elif name.endswith(ARCHIVE_SUFFIXES):
            with _damage_named(file.url):
                entries += _unpack_tar(file.url, storage.join(scratch, f"{number:05d}"))
        else:
            entries.append(Entry(_relative(file.url, folder), file.url, None, file.size))
    return sorted((e for e in entries if not _is_hidden(e.name)), key=lambda e: (e.name, e.url))


def read_entries(entries: Sequence[Entry]) -> Iterator[tuple[Entry, bytes]]:
    """Yield each entry with its bytes, in order; several requests are under way at a time.

    Raises
    ------
    InputError
        When one is larger than a task's memory, or an archive is damaged.
    """
    for url, group in groupby(entries, key=lambda e: e.url if e.member is not None else None):
        if url is not None:
            with _damage_named(url):
                yield from _read_zip(url, list(group))
        else:
            yield from _read_files(list(group))


def _read_files(entries: Sequence[Entry]) -> Iterator[tuple[Entry, bytes]]:
    # As many are read ahead as there are readers: the whole part might not fit into memory.
    with ThreadPoolExecutor(_N_READERS) as pool:
        reads: deque[tuple[Entry, Future[bytes]]] = deque()
        for entry in entries:
            refuse_beyond_room(entry.place, entry.size, "a file", _REMEDY)
            reads.append((entry, pool.submit(storage.read_bytes, entry.url)))
            if len(reads) > _N_READERS:
                first, read = reads.popleft()
                yield first, read.result()
        for entry, read in reads:
            yield entry, read.result()


def _list_zip(url: str) -> list[Entry]:
    with storage.open_input(url) as file, zipfile.ZipFile(file) as archive:
        return [Entry(i.filename, url, i.filename, i.file_size) for i in archive.infolist() if not i.is_dir()]


def _read_zip(url: str, entries: list[Entry]) -> Iterator[tuple[Entry, bytes]]:
    with storage.open_input(url) as file, zipfile.ZipFile(file) as archive:
        for entry in entries:
            refuse_beyond_room(entry.place, entry.size, "a member", _REMEDY)
            member = archive.getinfo(str(entry.member))
            piece = _SMALL_PIECE if member.compress_type in _UNBOUNDED else _PIECE
            with archive.open(member) as file:
                setattr(file, "MIN_READ_SIZE", min(piece, _SMALLEST_READ))  # noqa: B010 - unknown to the type's stub
                yield entry, read_within(file, room(), entry.place, "a member", _REMEDY, piece)


def _unpack_tar(url: str, scratch: str) -> list[Entry]:
    entries: list[Entry] = []
    with closing(_Zips(url, scratch)) as zips, _decompressed(url) as stream:
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=_BoundedTarInfo) as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isfile() else None
                if content is not None and not _is_hidden(member.name):
                    place = f"{url}!{member.name}"
                    refuse_beyond_room(place, _TAR_COPIES * member.size, "a member", _REMEDY)
                    entries.append(zips.add(_checked_name(place, member.name), content.read()))
        while stream.read(1 << 20):  # a check sum at the end tells whether the file is whole
            pass
        zips.flush()
    return entries


class _Zips:
    """Writes members of a tar into zips of limited size, uncompressed."""

    def __init__(self, tar: str, folder: str) -> None:
        self._tar, self._folder, self._n = tar, folder, 0
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
        entry = Entry(name, self._url, number, len(content), self._tar)
        if self._buffer.tell() >= _ZIP_BYTES or len(self._zip.namelist()) >= _ZIP_MEMBERS:
            self.flush()
        return entry

    def flush(self) -> None:
        """Write what was added since the last time."""
        self._zip.close()
        storage.write_bytes(self._url, self._buffer.getvalue())
        self._open()

    def close(self) -> None:
        """Forget what was not written."""
        self._zip.close()


class _BoundedTarInfo(tarfile.TarInfo):
    """A tar's header; those that only say more about the next one are read whole by tarfile, whatever they promise."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Read a header, and refuse one that promises too much."""
        header = super().frombuf(buf, encoding, errors)
        if header.type[0] in _NO_FILES and header.size > _LONGEST_TAR_HEADER:
            raise tarfile.ReadError(f"a header of {header.size:,} bytes")
        return header


class _Xz(io.RawIOBase):
    """The plain bytes of an xz file. Python's own has no bound on the memory that a file asks for."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._open()

    def _open(self) -> None:
        self._decompressor = lzma.LZMADecompressor(memlimit=room())

    def readable(self) -> bool:
        """Say yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer, or a part of it; 0 at the end."""
        while True:
            if self._decompressor.eof:
                piece = (self._decompressor.unused_data or self._file.read(_PIECE)).lstrip(b"\0")
                if not piece:
                    return 0
                self._open()  # streams may follow one another
            else:
                piece = self._file.read(_PIECE) if self._decompressor.needs_input else b""
                if self._decompressor.needs_input and not piece:
                    raise EOFError("the file ends before its end mark")
            data = self._decompressor.decompress(piece, len(buffer))
            if data:
                buffer[: len(data)] = data
                return len(data)


@contextmanager
def _decompressed(url: str) -> Iterator[IO[bytes]]:
    """Open an archive as its plain bytes; unlike tarfile's own streams these notice a truncated file."""
    openers: dict[str, Callable[[IO[bytes]], Any]] = {
        "gz": gzip.open,
        "xz": lambda file: io.BufferedReader(_Xz(file)),
        "z2": bz2.open,
    }
    with storage.open_input(url) as file:
        opener = openers.get(url.lower()[-2:])
        if opener is None:
            yield file
            return
        try:
            with opener(file) as stream:
                yield stream
        except OSError as error:
            # To storage, which maps what leaves this block, it would be an answer worth another try.
            if isinstance(error, gzip.BadGzipFile) or str(error) == _BAD_BZIP2:
                raise zlib.error(str(error)) from error
            raise


@contextmanager
def _damage_named(url: str) -> Iterator[None]:
    """Name the archive in what its readers raise."""
    try:
        yield
    except (*_DAMAGED, OSError) as error:
        # bz2 reports bad data as OSError; what storage raised has another class by now.
        if "emory usage limit" in str(error):
            raise InputError(
                f"{url}: packed such that unpacking takes more memory than a task has; pack it with a smaller "
                "dictionary, or give the workers more memory"
            ) from error
        raise InputError(
            f"{url}: truncated or damaged archive ({error or type(error).__name__}); put it there again"
        ) from error


def _checked_name(place: str, name: str) -> str:
    """Return the name, which may become a class's."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{place}: its name is not UTF-8; rename it and pack the archive again") from error
    return name


def _folder_of(url: str) -> str:
    """Return the URL of an input as storage spells it; of a glob, that of the folder before its first wildcard."""
    fs, path = storage.options_fs(url)
    fixed = re.split(r"[*?\[]", path, maxsplit=1)[0]
    return str(fs.unstrip_protocol(path if fixed == path else fixed.rpartition("/")[0]))


def _relative(url: str, folder: str) -> str:
    return url.removeprefix(folder).strip("/") or url.rsplit("/", 1)[-1]


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "_")) and part not in (".", "..") for part in name.split("/"))
