"""Reading, listing and writing by URL, with retries. Called by readers, artifacts and the trainer."""

from __future__ import annotations

import functools
import os
import random
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ParamSpec, TypeVar

import fsspec
from fsspec.core import url_to_fs

from jobs.errors import StorageError, StorageMissingError
from jobs.storage.errors import mapped, s3_code

P = ParamSpec("P")
T = TypeVar("T")

# s3fs tries a request again by itself for about two seconds; these tries come on top of its own.
N_TRIES = 4
FIRST_PAUSE_S = 0.25
# botocore would wait 60 s for a connection, and then do it again four times.
_S3_CLIENT = {"connect_timeout": 5, "read_timeout": 60, "retries": {"max_attempts": 1}}


@dataclass(frozen=True)
class StoredFile:
    """One file as its storage lists it; `etag` changes whenever the content does."""

    url: str
    size: int
    etag: str


def options_fs(url: str) -> tuple[Any, str]:
    """Return the fsspec filesystem of `url` and the path in it."""
    options: dict[str, Any] = {}
    if url.startswith(("s3://", "s3a://")):
        configured = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
        # Another process may write what we look for a moment later: a cached listing would hide it.
        options = {"use_listings_cache": False, "config_kwargs": {**_S3_CLIENT, **configured}}
    with mapped(url):
        fs, path = url_to_fs(url, **options)
        return fs, path


def _retried(function: Callable[P, T]) -> Callable[P, T]:
    """Try again, with growing pauses, where the error's class says that it is worth it."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        for attempt in range(N_TRIES - 1):
            try:
                return function(*args, **kwargs)
            except StorageError as error:
                if error.exit_code != StorageError.exit_code:
                    raise
                # Jitter keeps workers that failed together from coming back together.
                time.sleep(FIRST_PAUSE_S * 2**attempt * random.uniform(0.5, 1.5))
        return function(*args, **kwargs)

    return wrapper


@_retried
def read_bytes(url: str, start: int | None = None, end: int | None = None) -> bytes:
    """Return the bytes of `url`, or those from `start` up to, not including, `end`."""
    fs, path = options_fs(url)
    with mapped(url):
        return bytes(fs.cat_file(path, start=start, end=end))


@_retried
def write_bytes(url: str, data: bytes) -> None:
    """Write `data` to `url`, over what was there. A local file appears whole or not at all."""
    fs, path = options_fs(url)
    with mapped(url):
        if _is_local(fs):
            with _temporary_beside(path, data) as temporary:
                os.replace(temporary, path)
        else:
            fs.pipe_file(path, data)


@_retried
def create(url: str, data: bytes) -> bool:
    """Create `url` unless it exists; True where this call made it.

    Atomic: of many callers exactly one gets True (S3: a PUT with If-None-Match; local disks: a hard link).
    """
    fs, path = options_fs(url)
    with mapped(url):
        try:
            if _is_local(fs):
                with _temporary_beside(path, data) as temporary:
                    os.link(temporary, path)
            else:
                fs.pipe_file(path, data, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            if s3_code(error) == "PreconditionFailed":
                return False
            raise
        return True


@_retried
def exists(url: str) -> bool:
    """Whether there is a file or folder at `url`."""
    fs, path = options_fs(url)
    with mapped(url):
        try:
            fs.info(path)
        except FileNotFoundError:
            return False
        return True


@_retried
def list_files(url: str, suffixes: Sequence[str] = ()) -> list[StoredFile]:
    """List the file at `url`, the files under that folder, or those that match the glob, sorted by URL.

    Files whose name begins with ``.`` or ``_`` are left out: writers put their markers there.

    Raises
    ------
    StorageMissingError
        When there is nothing.
    """
    fs, path = options_fs(url)
    with mapped(url):
        if any(character in path for character in "*?["):
            found = fs.glob(path, detail=True)
        else:
            found = fs.find(path, detail=True)
            if not found and not fs.exists(path):
                raise FileNotFoundError(path)
    files = [
        StoredFile(fs.unstrip_protocol(name), int(info.get("size") or 0), _etag(info))
        for name, info in found.items()
        if info.get("type") != "directory"
        and not _relative_is_hidden(name, path)
        and (not suffixes or name.lower().endswith(tuple(suffixes)))
    ]
    if not files:
        what = f"no files that end in {', '.join(suffixes)}" if suffixes else "no files there"
        raise StorageMissingError(f"{url}: {what}; correct the URL or put the data there")
    return sorted(files, key=lambda file: file.url)


@_retried
def remove_tree(url: str) -> None:
    """Remove the folder or file at `url` with all that is in it; nothing there is fine."""
    fs, path = options_fs(url)
    with mapped(url):
        try:
            fs.rm(path, recursive=True)
        except FileNotFoundError:
            return


@contextmanager
def open_input(url: str, mode: str = "rb", **options: Any) -> Iterator[IO[Any]]:
    """Open `url` for reading, seekable; errors while reading are mapped as well."""
    fs, path = options_fs(url)
    with mapped(url), fs.open(path, mode, **options) as file:
        yield file


def join(url: str, *parts: str) -> str:
    """Append path parts to a URL."""
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in parts)])


def _is_local(fs: Any) -> bool:
    return "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)


@contextmanager
def _temporary_beside(path: str, data: bytes) -> Iterator[str]:
    folder = os.path.dirname(path) or "."
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".daskyard-{uuid.uuid4().hex}")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        Path(temporary).unlink(missing_ok=True)


def _relative_is_hidden(name: str, root: str) -> bool:
    """Hidden below what the user named: a hidden folder that they name themselves is meant."""
    relative = name[len(root) :] if name.startswith(root) else name.rsplit("/", 1)[-1]
    return any(part.startswith((".", "_")) for part in relative.split("/") if part)


def _etag(info: dict[str, Any]) -> str:
    for key in ("ETag", "etag", "md5Hash"):
        if info.get(key):
            return str(info[key]).strip('"')
    changed = info.get("mtime") or info.get("created") or info.get("LastModified") or ""
    return f"{changed}-{info.get('size')}"
