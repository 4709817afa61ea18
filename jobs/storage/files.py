"""Reading, listing and writing by URL, with retries. Called by readers, artifacts and the trainer."""

from __future__ import annotations

import fcntl
import hashlib
import os
import random
import stat
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.core import url_to_fs

from jobs.errors import InputError, StorageDeniedError, StorageError, StorageMissingError, without_passwords
from jobs.storage.errors import Damaged, changed, mapped, s3_code
from jobs.storage.tries import retried
from jobs.urls import problem_of, without_host

# botocore would wait 60 s for a connection, and then do it again four times.
_S3_CLIENT = {"connect_timeout": 5, "read_timeout": 60, "retries": {"max_attempts": 1}}
# How S3 refuses a conditional PUT: the object is another, or is gone. A ConditionalRequestConflict is none of these:
# somebody is writing it right now, and another try will tell.
_REFUSED = {"PreconditionFailed", "NoSuchKey"}
_MARK = "daskyard-write"
# A lock is held while one small file is written; a disk that takes longer has other troubles.
_LOCK_S = 10.0
_MEMORY_LOCK = threading.Lock()


@dataclass(frozen=True)
class StoredFile:
    """One file as its storage lists it; `etag` changes whenever the content does."""

    url: str
    size: int
    etag: str


def options_fs(url: str) -> tuple[Any, str]:
    """Return the fsspec filesystem of `url` and the path in it.

    Raises
    ------
    StorageDeniedError
        When the URL holds a password or a signature: it would stand in manifests and logs.
    StorageMissingError
        When this kind of URL cannot be read here, or it names no place.
    """
    if without_passwords(url) != url:
        raise StorageDeniedError(
            f"{url}: holds a password or a signature; take it out and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "or what fsspec reads for this kind of URL (FSSPEC_<PROTOCOL>_…)"
        )
    problem = problem_of(url)
    if problem is not None:
        raise StorageMissingError(f"{url}: {problem}")
    protocol = url.partition("://")[0] if "://" in url else "file"
    with mapped(url):
        if protocol in ("s3", "s3a"):
            return _s3(url)
        if protocol == "file" or "::" not in url:
            return _other(url, protocol)
    raise StorageMissingError(f"{url}: `::` chains kinds of URLs, which is not supported; unpack the data and name it")


def _s3(url: str) -> tuple[Any, str]:
    from jobs.storage.s3 import S3, Session  # botocore takes half a second to import

    configured = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
    # Another process may write what we look for a moment later: a cached listing would hide it.
    fs = S3(
        use_listings_cache=False,
        config_kwargs={**_S3_CLIENT, **configured, "http_session_cls": Session},
        **S3._get_kwargs_from_urls(url),
    )
    return fs, str(fs._strip_protocol(url))


def _other(url: str, protocol: str) -> tuple[Any, str]:
    if protocol == "file":
        # Not `url_to_fs`: it takes a `::` in a file's name for a chain.
        fs = fsspec.filesystem("file")
        return fs, str(fs._strip_protocol(without_host(url)))
    try:
        fs, path = url_to_fs(without_host(url))
    except Exception as error:
        if isinstance(error, OSError) and type(error) is not OSError:
            raise  # the network's
        # An unknown protocol, a package that is not there, arguments that a URL does not hold: each with its own class.
        said = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise StorageMissingError(f"{url}: cannot be used here ({said}); use s3://, file:// or a path") from error
    return fs, path


@retried
def read_bytes(url: str, start: int | None = None, end: int | None = None, etag: str | None = None) -> bytes:
    """Return the bytes of `url`, or those from `start` up to, not including, `end`.

    Raises
    ------
    InputError
        When it is not the version that `etag`, of a StoredFile, is of.
    """
    fs, path = options_fs(url)
    with mapped(url):
        if _speaks(fs, "s3"):
            content, _ = fs.read(path, start, end, None if etag is None else f'"{etag}"')
            return bytes(content)
        if etag is not None:
            _refuse_another(url, fs.info(path), etag)
        return bytes(fs.cat_file(path, start=start, end=end))


@retried
def write_bytes(url: str, data: bytes) -> None:
    """Write `data` to `url`, over what was there. A local file appears whole or not at all."""
    fs, path = options_fs(url)
    with mapped(url):
        _write(fs, path, data, is_new=False)


@retried
def create(url: str, data: bytes) -> bool:
    """Create `url` unless it exists; True where this call made it.

    Atomic: of many callers exactly one gets True (S3: a PUT with If-None-Match; local disks: a hard link).
    """
    fs, path = options_fs(url)
    with mapped(url):
        try:
            _write(fs, path, data, is_new=True)
        except FileExistsError:
            return False
        except OSError as error:
            if s3_code(error) == "PreconditionFailed":
                return False
            raise
        return True


@retried
def read_versioned(url: str) -> tuple[bytes, str]:
    """Return the bytes of `url` and their version, for `replace`: S3's ETag, elsewhere the SHA-256 of the bytes.

    Raises
    ------
    StorageMissingError
        When there is nothing.
    """
    fs, path = options_fs(url)
    with mapped(url):
        if _speaks(fs, "s3"):
            content, answer = fs.read(path)
            return content, str(answer["ETag"])
        content = bytes(fs.cat_file(path))
        return content, _sha256(content)


def replace(url: str, data: bytes, version: str | None) -> str | None:
    """Write `data` to `url` if its version is still `version`, or if there is nothing and `version` is None.

    Atomic: of many callers with the same `version` exactly one gets the new version, the others get None (S3: a PUT
    with If-Match; local disks: a lock on a hidden file beside it). For small files: one PUT holds all of it.

    Raises
    ------
    StorageDeniedError
        When this kind of storage has no conditional writes.
    """
    # The mark tells our own write from another of the same bytes, where its answer was lost and it is tried again.
    return _replace(url, data, version, mark=uuid.uuid4().hex)


@retried
def exists(url: str) -> bool:
    """Whether there is a file or folder at `url`."""
    fs, path = options_fs(url)
    with mapped(url):
        try:
            fs.info(path)
        except FileNotFoundError:
            return False
        return True


@retried
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
            if not found:
                fs.info(path)  # not `exists`: a bucket that may not be seen is one that does not exist to it
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
    for file in files:
        if not file.url.isascii():
            _refuse_name(file.url)
    return sorted(files, key=lambda file: file.url)


def _refuse_name(url: str) -> None:
    """Refuse a name of bytes that are no UTF-8: a manifest could not name the file at the end of the run."""
    try:
        url.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{url}: its name is not UTF-8; rename it") from error


@retried
def list_sizes(url: str) -> dict[str, int]:
    """Return the bytes of all files below the folder `url`, hidden ones too, by name relative to it; {} without any."""
    fs, path = options_fs(url)
    with mapped(url):
        try:
            found = fs.find(path, detail=True)
        except FileNotFoundError:
            return {}
    sizes = {name[len(path) :].lstrip("/"): int(info.get("size") or 0) for name, info in found.items()}
    return {name: size for name, size in sorted(sizes.items()) if name}


@retried
def size_of(url: str) -> int | None:
    """Return the bytes of the file at `url`; None where there is none."""
    fs, path = options_fs(url)
    with mapped(url):
        try:
            found = fs.info(path)
        except FileNotFoundError:
            return None
    return None if found.get("type") == "directory" else int(found.get("size") or 0)


def oddity(url: str) -> str | None:
    """Return what stands at a path of this machine and is no file to read, such as "a pipe"; None where there is none.

    To open one may wait for ever, and to read one may never end.
    """
    fs, path = options_fs(url)
    if not _speaks(fs, "file") or not os.path.lexists(path):
        return None
    with mapped(url):
        try:
            mode = os.stat(path).st_mode
        except OSError as error:
            if not os.path.islink(path) or isinstance(error, PermissionError):
                raise
            return "a link that leads to nothing"
    if stat.S_ISREG(mode):
        return None
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


@retried
def remove_tree(url: str) -> None:
    """Remove the folder or file at `url` with all that is in it; nothing there is fine."""
    fs, path = options_fs(url)
    with mapped(url):
        try:
            fs.rm(path, recursive=True)
        except FileNotFoundError:
            return


@contextmanager
def open_input(
    url: str, mode: str = "rb", etag: str | None = None, size: int | None = None, **options: Any
) -> Iterator[IO[Any]]:
    """Open `url` for reading, seekable; errors while reading are mapped as well.

    On S3 all that is read is of one version.

    Raises
    ------
    InputError
        When it is not the version that `etag`, of a StoredFile, is of, or becomes another.
    StorageError
        When its size is not `size`, bytes, as it was listed.
    """
    fs, path = options_fs(url)
    with mapped(url), fs.open(path, mode, **options) as file:
        if etag is not None:
            _refuse_another(url, file.details if _speaks(fs, "s3") else fs.info(path), etag)
        if size is not None and size != (found := int(file.details["size"] if _speaks(fs, "s3") else fs.size(path))):
            raise Damaged(f"its size is {found:,} bytes, not {size:,} as it was listed")
        yield file


@retried
def refuse_resized(file: StoredFile) -> None:
    """Refuse a file whose size is another than listed: whoever cuts it by that size would lose its end.

    Raises
    ------
    InputError
        When it has changed.
    StorageError
        When the storage's listing contradicts the content.
    """
    fs, path = options_fs(file.url)
    with mapped(file.url):
        if _speaks(fs, "s3"):
            fs.refuse_another_size(path, file.size)
        elif int(fs.info(path).get("size") or 0) != file.size:
            raise changed(file.url)


def _speaks(fs: Any, protocol: str) -> bool:
    return protocol in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)


def _refuse_another(url: str, info: dict[str, Any], etag: str) -> None:
    if _etag(info) != etag:
        raise changed(url)


def _write(fs: Any, path: str, data: bytes, is_new: bool) -> None:
    """Write a file whole; where it `is_new`, raise FileExistsError (or what S3 says) rather than write over another."""
    if _speaks(fs, "file"):
        with _temporary_beside(path, data) as temporary:
            (os.link if is_new else os.replace)(temporary, path)
    else:
        fs.pipe_file(path, data, mode="create" if is_new else "overwrite")


@retried
def _replace(url: str, data: bytes, version: str | None, mark: str) -> str | None:
    fs, path = options_fs(url)
    with mapped(url):
        if _speaks(fs, "s3"):
            return _put_if(fs, path, data, version, mark)
        if not _speaks(fs, "file") and not _speaks(fs, "memory"):
            raise StorageDeniedError(f"{url}: this storage has no conditional writes; use s3:// or a path")
        if version is not None and not fs.exists(path):
            return None  # before the lock, which would make a folder anew that somebody removed
        with _locked_beside(path) if _speaks(fs, "file") else _MEMORY_LOCK:
            try:
                if version is not None and _sha256(fs.cat_file(path)) != version:
                    return None
                _write(fs, path, data, is_new=version is None)
            except (FileExistsError, FileNotFoundError):
                return None
        return _sha256(data)


def _put_if(fs: Any, path: str, data: bytes, version: str | None, mark: str) -> str | None:
    bucket, key, _ = fs.split_path(path)
    condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
    try:
        # Not pipe_file: it cuts large files into parts, and then sends no condition.
        answer = fs.call_s3("put_object", Bucket=bucket, Key=key, Body=data, Metadata={_MARK: mark}, **condition)
        return str(answer["ETag"])
    except Exception as error:
        if s3_code(error) not in _REFUSED:
            raise
    # s3fs and `retried` repeat a PUT whose answer was lost: what refuses the second may be the first.
    try:
        standing = fs.call_s3("head_object", Bucket=bucket, Key=key)
    except FileNotFoundError:
        return None
    return str(standing["ETag"]) if standing.get("Metadata", {}).get(_MARK) == mark else None


@contextmanager
def _locked_beside(path: str) -> Iterator[None]:
    """Hold a lock between processes. Its file stays, as removing it would let two processes lock two files."""
    folder, name = os.path.split(path)
    os.makedirs(folder or ".", exist_ok=True)
    with open(os.path.join(folder, f".{name}.lock"), "ab") as file:
        deadline = time.monotonic() + _LOCK_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise StorageError(
                        f"{path}: another process has held {file.name} for {_LOCK_S:.0f} s; end it, then try again"
                    ) from error
                time.sleep(random.uniform(0.001, 0.01))
        yield  # closing the file gives the lock back


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


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
    modified = info.get("mtime") or info.get("created") or info.get("LastModified") or ""
    if isinstance(modified, datetime):  # memory:// tells the same time in two ways
        modified = modified.timestamp()
    return f"{modified}-{info.get('size')}"
