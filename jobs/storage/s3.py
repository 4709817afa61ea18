"""S3 by way of s3fs, with what a job has to rely on: a deadline, content that is checked, and reasons for refusals.

`jobs.storage.files` makes one in place of s3fs's own file system. Differences:

- each call ends when too little moves (`jobs.storage.tries`), wherever it waits: name, connection, answer, body;
- what is read whole is compared with its checksum or its ETag, and an object that changes under its reader is an error;
- a range is what was asked for, whatever the store makes of it;
- a HEAD that is refused is asked again as a GET, whose answer says why;
- removing many objects fails where one of them was not removed;
- a certificate that is not trusted is not tried again.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import inspect
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import aiohttp.client_proto
import botocore.exceptions
import s3fs
import s3fs.core
from aiobotocore.httpsession import AIOHTTPSession

from jobs.errors import StorageError
from jobs.storage.errors import Damaged, Untrusted, mapped, s3_code, s3_header
from jobs.storage.settings import refuse_unusable
from jobs.storage.tries import Watch, current_watch, retried, watched

# Objects up to this size are read whole, whatever range is asked for: only whole ones can be compared with an ETag.
WHOLE_BYTES = 8 << 20
# Larger reads are cut into ranges that come side by side.
_RANGE_BYTES = 50 << 20
_N_RANGES = 10
_MD5 = re.compile(r"[0-9a-f]{32}")
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_BEHIND_ITS_END = {"InvalidRange", "416"}
_CANCEL_S = 5.0
# What a HEAD can say of a refusal: without a body there is no code but the status.
_BARE = {"400", "403", "Bad Request", "Forbidden"}
_SAME_AS_GET: dict[str, tuple[str, dict[str, Any]]] = {
    "head_object": ("get_object", {"Range": "bytes=0-0"}),
    "head_bucket": ("list_objects_v2", {"MaxKeys": 1}),
}


class S3(s3fs.S3FileSystem):
    """S3 as a file system whose calls end, and say why."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        refuse_unusable(self)
        for name, _ in inspect.getmembers(type(self), inspect.iscoroutinefunction):
            # fsspec has made a blocking method of each of them, which waits for ever.
            if name[1:] not in vars(S3) and name.startswith("_") and callable(getattr(self, name[1:], None)):
                setattr(self, name[1:], functools.partial(self.run, getattr(self, name)))

    def run(self, function: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
        """Call a coroutine function on the loop of file systems, and wait for it as long as something moves.

        Raises
        ------
        Stalled
            When too little moved.
        """
        with watched() as watch:
            future = asyncio.run_coroutine_threadsafe(_run(watch, function, args, kwargs), self.loop)
            try:
                return future.result()
            except BaseException:
                # Whoever is told to stop does not want it to go on behind his back.
                future.cancel()
                raise

    def read(
        self, path: str, start: int | None = None, end: int | None = None, etag: str | None = None
    ) -> tuple[bytes, dict[str, Any]]:
        """Return content, or a range of it, and the answer, all of one version of the object; checked where it can be.

        With an `etag`, the object must be that version.
        """
        try:
            content, answer = self.run(self._read_object, path, start, end, etag)
        except OSError as error:
            if s3_code(error) not in _BEHIND_ITS_END:
                raise
            # It begins behind the end: as of files, there is nothing.
            return b"", {
                "ETag": etag or "",
                "ContentRange": s3_header(error, "content-range") or "",
                "ContentLength": 0,
            }
        size = _total(answer)
        if (start is None and end is None) or len(content) == size:
            check(answer, content)
        elif content and size <= WHOLE_BYTES and _md5_of(answer):
            whole, answer = self.run(self._read_object, path, None, None, answer["ETag"])
            check(answer, whole)
            content = whole[start:end]
        return content, answer

    def refuse_another_size(self, path: str, size: int) -> None:
        """Raise Damaged where the object has another size."""
        try:
            _, answer = self.run(self._read_object, path, *((0, 1) if size else (None, None)), None)
        except OSError as error:
            if s3_code(error) not in _BEHIND_ITS_END:
                raise
            answer = {"ContentLength": 0}
        refuse_another_size(answer, size)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        """Return the bytes of an object, or a range of them."""
        return self.read(path, start, end)[0]

    async def _read_object(
        self, path: str, start: int | None, end: int | None, etag: str | None
    ) -> tuple[bytes, dict[str, Any]]:
        bucket, key, version = self.split_path(path)
        options = {"Bucket": bucket, "Key": key, **({"VersionId": version} if version else {})}
        if start is not None or end is not None:
            options["Range"] = await self._process_limits(path, start, end)
        content, answer = await self._get_object(options, etag)
        if content is not None:
            return content, answer
        # Too long for one answer. Each range must be of the version that the first answer was of.
        size, etag = _total(answer), str(answer["ETag"])
        buffer = bytearray(size)
        turns = asyncio.Semaphore(_N_RANGES)

        async def fill(start: int) -> None:
            stop = min(start + _RANGE_BYTES, size)
            async with turns:
                part, _ = await self._get_object({**options, "Range": f"bytes={start}-{stop - 1}"}, etag)
            if part is None or len(part) != stop - start:
                raise Damaged(f"an object of {size:,} bytes ends in its bytes {start:,} to {stop:,}")
            buffer[start:stop] = part

        await _all(fill(start) for start in range(0, size, _RANGE_BYTES))
        return bytes(buffer), answer

    async def _get_object(self, options: dict[str, Any], etag: str | None) -> tuple[bytes | None, dict[str, Any]]:
        """Return the answer to a GET with its content, or with None where all of a large object was asked for.

        The content is that which was asked for; a store may ignore a range, and send all.

        Raises
        ------
        Damaged
            When it is another range, or more than can be kept was sent.
        """
        condition = {"IfMatch": etag} if etag else {}
        asked = options.get("Range")

        async def get() -> tuple[bytes | None, dict[str, Any]]:
            answer = await self._call_s3("get_object", **options, **condition)
            try:
                is_all = "ContentRange" not in answer
                if is_all and asked is None and _total(answer) > _RANGE_BYTES:
                    return None, answer
                if is_all and asked is not None and _total(answer) > _RANGE_BYTES:
                    raise Damaged(f"storage sent all of {_total(answer):,} bytes where {asked} was asked for")
                return await answer["Body"].read(), answer
            finally:
                answer["Body"].close()

        # As s3fs does: a body that breaks off is asked for again.
        content, answer = await s3fs.core._error_wrapper(get, retries=self.retries)
        return (None if content is None else _asked_for(asked, content, answer)), answer

    async def _call_s3(self, method: str, *arguments: Any, **options: Any) -> Any:
        try:
            return await super()._call_s3(method, *arguments, **options)
        except Exception as error:
            again, more = _SAME_AS_GET.get(method, ("", {}))
            if not again or s3_code(error) not in _BARE or s3_header(error, "x-amz-bucket-region"):
                raise
            known = {name: options[name] for name in ("Bucket", "Key", "VersionId") if name in options}
            # What it raises has the same reason, but with its name.
            answer = await super()._call_s3(again, **known, **more)
            if "Body" in answer:
                answer["Body"].close()
            raise

    async def _list_pages(self, method: str, **options: Any) -> AsyncIterator[dict[str, Any]]:
        seen: set[tuple[str, ...]] = set()
        async for page in super()._list_pages(method, **options):
            yield page
            if not page.get("IsTruncated"):
                continue
            names = ("NextContinuationToken", "NextKeyMarker", "NextVersionIdMarker")
            token = ("token", *(page[name] for name in names if page.get(name)))
            contents = page.get("Versions" if method == "list_object_versions" else "Contents") or []
            last = ("key", *(str(contents[-1].get(name, "")) for name in ("Key", "VersionId"))) if contents else token
            if len(token) == 1 or token in seen or last in seen:
                raise Damaged("its listing goes on behind a page, but with what it said before")
            seen |= {token, last}

    async def _bulk_delete(self, pathlist: list[str], **options: Any) -> list[str]:
        """Remove many objects; s3fs forgets those that storage did not remove."""
        if not pathlist:
            return []
        bucket = self.split_path(pathlist[0])[0]
        objects = [{"Key": self.split_path(path)[1]} for path in pathlist]
        answer = await self._call_s3("delete_objects", Bucket=bucket, Delete={"Objects": objects, "Quiet": True})
        errors = [error for error in answer.get("Errors", []) if error.get("Code") != "NoSuchKey"]
        if errors:
            raise botocore.exceptions.ClientError({"Error": errors[0]}, "DeleteObjects")
        return pathlist

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **options: Any) -> Any:
        if mode != "rb":
            return super()._open(path, mode, block_size=block_size, **options)
        options.pop("autocommit", None)
        options.setdefault("cache_type", self.default_cache_type)
        return File(self, path, mode, block_size=block_size or self.default_block_size, **options)


class File(s3fs.S3File):
    """An object that is open for reading. All of it is one version; small ones, and those read through, are checked."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._whole: bytes | None = None
        self._hash = hashlib.md5(usedforsecurity=False)
        self._n_hashed = 0
        self._damage: StorageError | None = None
        super().__init__(*args, **options)

    def _fetch_range(self, start: int, end: int) -> bytes:
        etag = self.details.get("ETag")
        if self._damage is not None:
            raise self._damage
        if self._whole is None and self.size <= WHOLE_BYTES:
            self._whole = _read(self._url, self.fs, self.path, None, None, etag, self.size)[0]
        if self._whole is not None:
            return self._whole[start:end]
        if start >= min(end, self.size):
            return b""
        content, answer = _read(self._url, self.fs, self.path, start, end, etag, self.size)
        self._compare(answer, content, start)
        return content

    @property
    def _url(self) -> str:
        return str(self.fs.unstrip_protocol(self.path))

    def _compare(self, answer: dict[str, Any], content: bytes, start: int) -> None:
        """Where the object is read from its beginning to its end, compare what came with its ETag."""
        if not start <= self._n_hashed < start + len(content):
            return
        self._hash.update(memoryview(content)[self._n_hashed - start :])
        self._n_hashed = start + len(content)
        if self._n_hashed == self.size:
            try:
                with mapped(self._url):
                    check(answer, None, self._hash.hexdigest())
            except StorageError as error:
                # What was read before is wrong as well: a second try at this range would not help.
                self._damage = error
                raise


@retried
def _read(
    url: str, fs: S3, path: str, start: int | None, end: int | None, etag: str | None, size: int
) -> tuple[bytes, dict[str, Any]]:
    # Mapped here, not where the file was opened: what reads it takes an OSError for damage of its format.
    with mapped(url):
        content, answer = fs.read(path, start, end, etag)
        refuse_another_size(answer, size)
        return content, answer


def refuse_another_size(answer: dict[str, Any], size: int) -> None:
    """Raise Damaged where an object has another size than a HEAD or a listing said: its end would be cut off."""
    if _total(answer) != size:
        raise Damaged(f"its size is {_total(answer):,} bytes, not {size:,} as storage said before")


def _asked_for(asked: str | None, content: bytes, answer: dict[str, Any]) -> bytes:
    """Return what was asked for of what came: a range as in the header, or without one all."""
    first, _, last = (asked or "bytes=0-").removeprefix("bytes=").partition("-")
    size = _total(answer)
    start = int(first) if first else max(size - int(last), 0)
    stop = min(int(last) + 1, size) if first and last else size
    if "ContentRange" not in answer:
        if len(content) != size or (asked and answer.get("ResponseMetadata", {}).get("HTTPStatusCode") != 200):
            raise Damaged(f"storage sent {len(content):,} bytes without saying which")
        check(answer, content)
        return content if asked is None else content[start:stop]
    said = _CONTENT_RANGE.fullmatch(str(answer["ContentRange"]))
    sent = (int(said[1]), int(said[2]) + 1) if said else None
    if sent != (start, stop) or len(content) != stop - start:
        raise Damaged(
            f"storage sent {len(content):,} bytes as {str(answer['ContentRange'])[:80]!r} "
            f"where bytes {start:,} to {stop:,} of {size:,} were asked for"
        )
    return content


def check(answer: dict[str, Any], content: bytes | None, md5: str | None = None) -> None:
    """Compare a whole object with its ETag, unless botocore has compared it with a checksum.

    Raises
    ------
    Damaged
        When it is another.
    """
    expected = _md5_of(answer)
    if expected is None or answer.get("ResponseMetadata", {}).get("ChecksumAlgorithm"):
        return
    if content is not None:
        md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if md5 != expected:
        raise Damaged(f"its content has the MD5 {md5}, not {expected} as its ETag says")


def _md5_of(answer: dict[str, Any]) -> str | None:
    """Return the MD5 that an ETag is, or None: that of several parts, or of what is kept encrypted, is none."""
    etag = str(answer.get("ETag", "")).strip('"').lower()
    is_encrypted = str(answer.get("ServerSideEncryption", "")).startswith("aws:kms") or "SSECustomerAlgorithm" in answer
    # Directory buckets, which this class of storage marks, make up their ETags.
    is_made_up = answer.get("StorageClass") == "EXPRESS_ONEZONE"
    return etag if _MD5.fullmatch(etag) and not is_encrypted and not is_made_up else None


def _total(answer: dict[str, Any]) -> int:
    """Return the size of the object that an answer is of."""
    total = str(answer.get("ContentRange", "")).rpartition("/")[2]
    return int(total) if total.isdigit() else int(answer["ContentLength"])


async def _all(coroutines: Any) -> None:
    """Wait for all of them; once one fails, end the others."""
    tasks = [asyncio.ensure_future(each) for each in coroutines]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def _run(
    watch: Watch, function: Callable[..., Awaitable[Any]], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    task = asyncio.ensure_future(function(*args, **kwargs))
    try:
        while not (await asyncio.wait({task}, timeout=watch.tick_s))[0]:
            watch.check()
        return task.result()
    finally:
        if not task.done():
            watch.end_connections()
            task.cancel()
            await asyncio.wait({task}, timeout=_CANCEL_S)


class Session(AIOHTTPSession):
    """The HTTP client of aiobotocore, whose connections report what they move, and which knows what is in vain."""

    async def send(self, request: Any) -> Any:
        """Send a request and return its answer."""
        try:
            return await super().send(request)
        except botocore.exceptions.SSLError as error:
            # `error.__context__` is aiohttp's. As an SSLError it would be tried ten times.
            if isinstance(error.__context__, aiohttp.ClientConnectorCertificateError):
                raise Untrusted(str(error.__context__.certificate_error)) from error
            raise
        except botocore.exceptions.HTTPClientError as error:
            if isinstance(error.__context__, Untrusted):
                raise error.__context__ from None
            raise

    async def _create_connector(self, proxy_url: str | None) -> Any:
        try:
            connector = await super()._create_connector(proxy_url)
        except OSError as error:
            raise Untrusted(f"the file of authorities cannot be read: {error.strerror or error}") from error
        connector._factory = functools.partial(_Connection, loop=asyncio.get_running_loop())
        return connector


class _Connection(aiohttp.client_proto.ResponseHandler):
    """Tells the watch over the operation that it works for, which changes from request to request."""

    _watch: Watch | None = None
    _n_written = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        write: Callable[[bytes], None] = transport.write  # type: ignore[attr-defined]

        def counted(data: bytes) -> None:
            self._n_written += len(data)
            write(data)

        setattr(transport, "write", counted)  # noqa: B010

    def set_response_params(self, **options: Any) -> None:
        # Called in the task that sends the request.
        self._watch = current_watch()
        if self._watch is not None:
            self._watch.follow(self)
        super().set_response_params(**options)

    def data_received(self, data: bytes) -> None:
        if self._watch is not None:
            self._watch.received(len(data))
        super().data_received(data)

    def n_sent(self) -> int:
        """Bytes that have gone to the system."""
        transport = self.transport
        waiting = 0 if transport is None else transport.get_write_buffer_size()
        return self._n_written - waiting

    def end(self, watch: Watch) -> None:
        """End at once, if it still works for the operation that is watched; what waits to be sent is dropped."""
        if self._watch is watch and self.transport is not None:
            self.transport.abort()


# `S3FileSystem.clear_instance_cache` must clear these as well: whoever changes the environment knows no other.
S3._cache = s3fs.S3FileSystem._cache
