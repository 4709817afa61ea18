"""A proxy between S3 clients and `jobs.local_s3.LocalS3` that does to requests what networks and stores do to them.

::

    with LocalS3() as s3, S3Proxy(s3) as proxy:  # os.environ names the proxy: workers and child processes inherit it
        lost = proxy.add(Rule("lost", method="PUT", key="manifest.json"))
        proxy.add(Rule("refused", method="GET", after=lost, within_s=25))
        ...
        assert proxy.n_struck(lost) == 1

Rules may be added and removed (`remove`, `clear`) at any time, from any thread. A request meets the first rule, in the
order of adding, that takes it; without one it passes. Kinds:

=============== ====================================================================================================
late            the request is applied, its answer is held `seconds`, or until `proxy.release(rule)`
held            the request itself is held `seconds`, or until `release`; it goes on even where its client has left
lost            the request is applied, then the connection is reset
cut             half of the answer's body comes, then the connection closes; `part="request"`: half of the request's
                body reaches the server, then both connections close
trickling       the answer's body comes at `step` bytes in `pace_s`; `part="head"`: its head too; `part="request"`: the
                request's body is read at that pace
silent          the request is read, not applied, never answered
refused         503 SlowDown; where no connection at all is to be had: `with proxy.down():`
denied          403 AccessDenied, or what `status` and `code` say
ignored         If-None-Match and If-Match are stripped, and the request is signed anew
flipped         one bit in the middle of the answer's body is another; the answer loses the headers that begin as `drop`
                says, such as x-amz-checksum, which not every store sends
stale           a listing is answered as it was when the rule was added
unranged        Range is stripped, and the request is signed anew: all of the object comes with 200
halved          half of the range that was asked for comes, and the answer says so
resized         the answer to a HEAD, and a listing, says sizes of `more` bytes more than there are
endless         a listing goes on behind each page, always with the same token
moved           301 PermanentRedirect with x-amz-bucket-region `region`
conflict        409 ConditionalRequestConflict
unimplemented   501 NotImplemented
=============== ====================================================================================================

Before any of it, the proxy waits `delay_s`. Answers of its own to a HEAD have no body, as those of S3.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Literal
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import botocore.auth
import botocore.awsrequest
import botocore.credentials
import s3fs

from jobs.environment import restored
from jobs.local_s3 import REGION, LocalS3

Kind = Literal[
    *("late", "held", "lost", "cut", "trickling", "silent", "refused", "denied", "ignored", "flipped", "stale"),
    *("unranged", "halved", "resized", "endless", "moved", "conflict", "unimplemented"),
]
ANSWERS = {
    "refused": (503, "SlowDown"),
    "denied": (403, "AccessDenied"),
    "moved": (301, "PermanentRedirect"),
    "conflict": (409, "ConditionalRequestConflict"),
    "unimplemented": (501, "NotImplemented"),
}
VARIABLES = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")
CONDITIONS = ("if-none-match", "if-match")


@dataclass(frozen=True, eq=False)
class Rule:
    """What happens to which requests.

    Of those whose method is `method`, whose path and query contain `key`, that carry the header `header`, and that come
    in time, the rule takes number `first` to `last`, counted from 1. In time: from `since_s` to `since_s + within_s`
    seconds after the rule was added or, where `after` names another rule, after that one first struck.
    """

    kind: Kind
    method: str = ""
    key: str = ""
    header: str = ""
    first: int = 1
    last: int | None = None
    after: Rule | None = None
    since_s: float = 0.0
    within_s: float = float("inf")
    seconds: float = 3600.0
    pace_s: float = 1.0
    step: int = 1
    delay_s: float = 0.0
    part: Literal["answer", "head", "request"] = "answer"
    status: int | None = None
    code: str | None = None
    region: str = "eu-central-1"
    drop: str | None = None
    more: int = -1


@dataclass(frozen=True)
class Seen:
    """A request that came: its method, path with query, and the kind of rule that took it (empty: none)."""

    method: str
    target: str
    kind: str


@dataclass
class _State:
    added_at: float
    n_matched: int = 0
    n_struck: int = 0
    struck_at: float | None = None
    is_released: bool = False
    listings: dict[str, list[tuple[str, int, str]]] | None = None


@dataclass(frozen=True)
class _Request:
    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name), None)


class S3Proxy:
    """The proxy, on a port of loopback, as long as the context lasts; it needs one thread, which ends with it.

    Parameters
    ----------
    s3 : LocalS3
        The server; its keys serve to sign a request anew and to list.
    context : ssl.SSLContext, optional
        Speak TLS to clients.
    """

    def __init__(self, s3: LocalS3, context: ssl.SSLContext | None = None) -> None:
        self._s3 = s3
        self._context = context
        upstream = urlsplit(s3.endpoint)
        self._host, self._server_port = str(upstream.hostname), upstream.port
        self._states: dict[Rule, _State] = {}
        self._lock = threading.Lock()
        self._seen: list[Seen] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="s3-proxy", daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()
        self._port = 0

    @property
    def endpoint(self) -> str:
        """URL of the proxy."""
        return f"{'https' if self._context else 'http'}://127.0.0.1:{self._port}"

    def environment(self) -> dict[str, str]:
        """Return the variables that lead S3 clients to the proxy, keys included."""
        return {**self._s3.environment(), **dict.fromkeys(VARIABLES, self.endpoint)}

    def add(self, rule: Rule) -> Rule:
        """Let the rule take requests from now on, and return it."""
        state = _State(time.monotonic(), listings=self._listings() if rule.kind == "stale" else None)
        with self._lock:
            self._states[rule] = state
        return rule

    def remove(self, rule: Rule) -> None:
        """Let the rule take no more requests; those that it has taken go on as it said."""
        with self._lock:
            del self._states[rule]

    def clear(self) -> None:
        """Remove all rules, release what they hold, and forget the requests seen."""
        with self._lock:
            for state in self._states.values():
                state.is_released = True
            self._states, self._seen = {}, []

    def release(self, rule: Rule) -> None:
        """Let go at once, and from now on, of all that a late or held rule keeps."""
        with self._lock:
            self._states[rule].is_released = True

    def n_struck(self, rule: Rule) -> int:
        """How many requests the rule has taken."""
        with self._lock:
            return self._states[rule].n_struck

    def wait(self, rule: Rule, n: int = 1, timeout_s: float = 60.0) -> None:
        """Return once the rule has taken `n` requests; after `timeout_s` it is a TimeoutError."""
        deadline = time.monotonic() + timeout_s
        while self.n_struck(rule) < n:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{rule} took {self.n_struck(rule)} requests in {timeout_s} s: {self.seen()}")
            time.sleep(0.005)

    def seen(self) -> list[Seen]:
        """Return the requests that came, in their order."""
        with self._lock:
            return list(self._seen)

    @contextmanager
    def down(self) -> Iterator[None]:
        """Refuse all new connections, and close those that are open, as long as the context lasts."""
        self._call(self._close())
        try:
            yield
        finally:
            self._call(self._open())

    def __enter__(self) -> S3Proxy:
        self._thread.start()
        self._call(self._open())
        self._restored = restored(VARIABLES)
        self._restored.__enter__()
        self._lead()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restored.__exit__(None, None, None)
        s3fs.S3FileSystem.clear_instance_cache()
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _lead(self) -> None:
        os.environ.update(dict.fromkeys(VARIABLES, self.endpoint))
        # fsspec reuses file systems, and with them the endpoint of the former environment.
        s3fs.S3FileSystem.clear_instance_cache()

    def _call(self, coroutine: object) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)  # type: ignore[arg-type]

    async def _open(self) -> None:
        # Small buffers, so that a client whose body is read slowly comes to feel it; the system's own grow to 32 MiB.
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**20)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", self._port))
        self._server = await asyncio.start_server(self._serve, sock=listening, ssl=self._context, limit=2**12)
        self._port = listening.getsockname()[1]

    async def _close(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            # The other side may leave at any time; that is no error of the proxy's.
            with suppress(OSError, EOFError, asyncio.CancelledError):
                while await self._answer(reader, writer):
                    pass
        finally:
            await _end(writer)
            self._tasks.discard(task)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Deal with one request; return whether the connection can take another."""
        first = (await reader.readline()).decode("latin-1").split()
        if len(first) != 3:
            return False
        request = _Request(first[0], first[1], await _headers(reader), b"")
        rule = self._taken_by(request)
        if request.header("expect"):
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        size = int(request.header("content-length") or 0)
        if rule is not None and rule.part == "request":
            await self._spoil_request(rule, request, reader, size)
            return False
        request = _Request(request.method, request.target, request.headers, await _body(reader, request.headers, size))
        if rule is None:
            return await _send(writer, *await self._forward(request))
        await asyncio.sleep(rule.delay_s)
        match rule.kind:
            case "late":
                answer = await self._forward(request)
                await self._pause(rule)
                return await _send(writer, *answer)
            case "held":
                await self._pause(rule)
                return await _send(writer, *await self._forward(request))
            case "lost":
                await self._forward(request)
                writer.transport.abort()
            case "silent":
                await self._pause(rule)
            case "cut":
                head, body = await self._forward(request)
                await _send(writer, head, body[: len(body) // 2])
            case "trickling":
                head, body = await self._forward(request)
                await _trickle(writer, rule, *((head, body) if rule.part == "answer" else (b"", head + body)))
            case "flipped":
                head, body = await self._forward(request)
                middle = len(body) // 2
                flipped = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :] if body else body
                return await _send(writer, _without(head, rule.drop), flipped)
            case "ignored":
                return await _send(writer, *await self._forward(self._signed_anew(request)))
            case "unranged":
                return await _send(writer, *await self._forward(self._signed_anew(request, ("range",))))
            case "halved":
                first, _, last = str(request.header("range")).removeprefix("bytes=").partition("-")
                half = f"bytes={first}-{(int(first) + int(last)) // 2}"
                return await _send(writer, *await self._forward(self._signed_anew(request, ("range",), Range=half)))
            case "resized":
                return await _send(writer, *_resized(*await self._forward(request), rule.more))
            case "endless":
                head, body = await self._forward(self._signed_anew(request, (), query="continuation-token"))
                more = b"<IsTruncated>true</IsTruncated><NextContinuationToken>again</NextContinuationToken>"
                body, n = re.subn(rb"<IsTruncated>false</IsTruncated>", more, body)
                assert n == 1, body
                return await _send(writer, *_with_length(head, body))
            case "stale":
                listings = self._states[rule].listings or {}
                return await _send(writer, *_answer(200, _listing(request.target, listings)))
            case _:
                status, code = ANSWERS[rule.kind]
                return await _send(writer, *_refusal(request, rule, rule.status or status, rule.code or code))
        return False

    def _taken_by(self, request: _Request) -> Rule | None:
        now = time.monotonic()
        with self._lock:
            taken = next((rule for rule, state in self._states.items() if self._takes(rule, state, request, now)), None)
            if taken is not None:
                state = self._states[taken]
                state.n_struck += 1
                state.struck_at = state.struck_at or now
            self._seen.append(Seen(request.method, request.target, taken.kind if taken else ""))
        return taken

    def _takes(self, rule: Rule, state: _State, request: _Request, now: float) -> bool:
        begin: float | None = state.added_at
        if rule.after is not None:
            begin = self._states[rule.after].struck_at if rule.after in self._states else None
        if begin is None or not begin + rule.since_s <= now <= begin + rule.since_s + rule.within_s:
            return False
        if rule.kind in ("stale", "endless") and not _is_listing(request):
            return False
        if rule.kind == "resized" and request.method != "HEAD" and not _is_listing(request):
            return False
        if rule.kind in ("unranged", "halved") and not request.header("range"):
            return False
        is_meant = (not rule.method or request.method == rule.method) and rule.key in unquote(request.target)
        if not is_meant or (rule.header and request.header(rule.header.lower()) is None):
            return False
        state.n_matched += 1
        return rule.first <= state.n_matched and (rule.last is None or state.n_matched <= rule.last)

    async def _pause(self, rule: Rule) -> None:
        """Wait as long as the rule says, unless it is released; a silent one waits for ever."""
        with self._lock:
            state = self._states.get(rule)
        deadline = time.monotonic() + (float("inf") if rule.kind == "silent" else rule.seconds)
        while time.monotonic() < deadline and not (state is None or state.is_released):
            await asyncio.sleep(0.01)

    async def _spoil_request(self, rule: Rule, request: _Request, reader: asyncio.StreamReader, size: int) -> None:
        if rule.kind == "trickling":
            for _ in range(size // rule.step):
                await reader.readexactly(rule.step)
                await asyncio.sleep(rule.pace_s)
            return
        half = await reader.readexactly(size // 2)
        await self._forward(_Request(request.method, request.target, request.headers, half), is_whole=False)

    async def _forward(self, request: _Request, is_whole: bool = True) -> tuple[bytes, bytes]:
        """Send the request as it is, its Host included, since that is signed; return the answer's head and body."""
        reader, writer = await asyncio.open_connection(self._host, self._server_port, limit=2**20)
        try:
            kept = [(k, v) for k, v in request.headers if k.lower() not in ("expect", "connection")]
            if request.header("transfer-encoding"):
                kept = [(k, v) for k, v in kept if k.lower() not in ("transfer-encoding", "content-length")]
                kept.append(("Content-Length", str(len(request.body))))
            lines = [f"{request.method} {request.target} HTTP/1.1", *(f"{k}: {v}" for k, v in kept)]
            writer.write("\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1") + request.body)
            await writer.drain()
            if not is_whole:
                return b"", b""
            status = await reader.readline()
            headers = await _headers(reader)
            has_body = request.method != "HEAD" and status.split()[1] not in (b"204", b"304")
            size = next((int(v) for k, v in headers if k.lower() == "content-length"), None)
            body = await _body(reader, headers, size) if has_body else b""
            told = [(k, v) for k, v in headers if k.lower() not in ("connection", "transfer-encoding")]
            if size is None and has_body:
                told.append(("Content-Length", str(len(body))))
            return status + "".join(f"{k}: {v}\r\n" for k, v in told).encode("latin-1") + b"\r\n", body
        finally:
            await _end(writer)

    def _signed_anew(
        self, request: _Request, dropped: tuple[str, ...] = CONDITIONS, query: str = "", **more: str
    ) -> _Request:
        """The request without its conditions, or other headers and a part of the query: the signature covers them."""
        target = re.sub(rf"&?{query}=[^&]*", "", request.target) if query else request.target
        again = ("authorization", "x-amz-date", "x-amz-content-sha256", "expect", "connection")
        kept = {k: v for k, v in request.headers if k.lower() not in (*again, *dropped)} | more
        signed = botocore.awsrequest.AWSRequest(request.method, f"http://{kept['Host']}{target}", kept, request.body)
        keys = self._s3.environment()
        credentials = botocore.credentials.Credentials(keys["AWS_ACCESS_KEY_ID"], keys["AWS_SECRET_ACCESS_KEY"])
        botocore.auth.S3SigV4Auth(credentials, "s3", REGION).add_auth(signed)
        return _Request(request.method, target, list(signed.headers.items()), request.body)

    def _listings(self) -> dict[str, list[tuple[str, int, str]]]:
        """Key, size and ETag of all that each bucket holds."""
        listings: dict[str, list[tuple[str, int, str]]] = {}
        with self._s3._client() as client:
            for bucket in client.list_buckets()["Buckets"]:
                pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket["Name"])
                listings[bucket["Name"]] = [
                    (each["Key"], each["Size"], each["ETag"]) for page in pages for each in page.get("Contents", [])
                ]
        return listings


async def _headers(reader: asyncio.StreamReader) -> list[tuple[str, str]]:
    headers = []
    while (line := await reader.readline()).strip():
        name, _, value = line.decode("latin-1").partition(":")
        headers.append((name.strip(), value.strip()))
    return headers


async def _body(reader: asyncio.StreamReader, headers: list[tuple[str, str]], size: int | None) -> bytes:
    if any(name.lower() == "transfer-encoding" for name, _ in headers):
        body = b""
        while n := int((await reader.readline()).split(b";")[0], 16):
            body += await reader.readexactly(n)
            await reader.readline()
        await _headers(reader)
        return body
    return await reader.read() if size is None else await reader.readexactly(size)


def _without(head: bytes, prefix: str | None) -> bytes:
    lines = head.split(b"\r\n")
    return b"\r\n".join(line for line in lines if not (prefix and line.lower().startswith(prefix.lower().encode())))


def _with_length(head: bytes, body: bytes) -> tuple[bytes, bytes]:
    return re.sub(rb"(?i)(content-length: )\d+", rb"\g<1>%d" % len(body), head), body


def _resized(head: bytes, body: bytes, more: int) -> tuple[bytes, bytes]:
    if body:
        return _with_length(head, re.sub(rb"(<Size>)(\d+)", lambda m: m[1] + b"%d" % (int(m[2]) + more), body))
    return re.sub(rb"(?i)(content-length: )(\d+)", lambda m: m[1] + b"%d" % (int(m[2]) + more), head), body


async def _send(writer: asyncio.StreamWriter, head: bytes, body: bytes) -> bool:
    writer.write(head + body)
    await writer.drain()
    return True


async def _trickle(writer: asyncio.StreamWriter, rule: Rule, head: bytes, body: bytes) -> None:
    writer.write(head)
    for at in range(0, len(body), rule.step):
        writer.write(body[at : at + rule.step])
        await writer.drain()
        await asyncio.sleep(rule.pace_s)


def _answer(status: int, body: str, headers: str = "") -> tuple[bytes, bytes]:
    head = f"HTTP/1.1 {status} Said-So\r\nContent-Type: application/xml\r\nContent-Length: {len(body.encode())}\r\n"
    return (head + headers + "\r\n").encode(), body.encode()


def _refusal(request: _Request, rule: Rule, status: int, code: str) -> tuple[bytes, bytes]:
    more = f"<Region>{rule.region}</Region>" if rule.kind == "moved" else ""
    body = f"<?xml version='1.0' encoding='UTF-8'?>\n<Error><Code>{code}</Code><Message>{code}</Message>{more}</Error>"
    headers = f"x-amz-bucket-region: {rule.region}\r\n" if rule.kind == "moved" else ""
    head, content = _answer(status, body, headers)
    return (head, b"") if request.method == "HEAD" else (head, content)


def _is_listing(request: _Request) -> bool:
    url = urlsplit(request.target)
    is_of_bucket = "/" not in url.path.strip("/") and bool(url.path.strip("/"))
    return request.method == "GET" and is_of_bucket and "list-type" in parse_qs(url.query)


def _listing(target: str, listings: dict[str, list[tuple[str, int, str]]]) -> str:
    url = urlsplit(target)
    query = {key: values[0] for key, values in parse_qs(url.query).items()}
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    bucket = url.path.strip("/")
    contents, folders = "", set()
    for key, size, etag in listings.get(bucket, []):
        if not key.startswith(prefix):
            continue
        rest = key[len(prefix) :]
        if delimiter and delimiter in rest:
            folders.add(prefix + rest.split(delimiter)[0] + delimiter)
        else:
            contents += (
                f"<Contents><Key>{escape(key)}</Key><Size>{size}</Size><ETag>{escape(etag)}</ETag>"
                "<LastModified>2026-01-01T00:00:00.000Z</LastModified><StorageClass>STANDARD</StorageClass></Contents>"
            )
    contents += "".join(f"<CommonPrefixes><Prefix>{escape(each)}</Prefix></CommonPrefixes>" for each in sorted(folders))
    n = len(re.findall("<Contents>|<CommonPrefixes>", contents))
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{n}</KeyCount><MaxKeys>100000</MaxKeys>"
        f"<IsTruncated>false</IsTruncated>{contents}</ListBucketResult>"
    )


async def _end(writer: asyncio.StreamWriter) -> None:
    """Close a connection; one whose other side takes nothing any more is dropped."""
    writer.close()
    with suppress(OSError, TimeoutError, asyncio.CancelledError):
        await asyncio.wait_for(writer.wait_closed(), 1.0)
    writer.transport.abort()
