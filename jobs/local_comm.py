"""Dask's TLS connections, between the processes of a local cluster: what is large goes through a file of theirs.

TLS takes a processor several times as long for each byte as a plain connection does, and Dask's goes by 16 KiB. So a
message that carries much data is written to the cluster's own folder, which no other user can enter; its name goes over
TLS; and the reader removes it. What a process leaves there that is ended in between goes with the folder. Where the
folder has no room, or there is none, the data goes over TLS. Called by `jobs.local_cluster`, and in its workers by
`jobs.local_worker`; ADR 11, and figures in benchmarks/findings.md.
"""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import dask
from distributed.comm.core import CommClosedError
from distributed.comm.registry import backends
from distributed.comm.tcp import TLS, TLSBackend, TLSConnector, TLSListener
from distributed.comm.utils import from_frames, to_frames
from distributed.protocol.utils import host_array
from distributed.sizeof import safe_sizeof
from distributed.utils import ensure_memoryview, offload

# A setting of Dask: the folder. Nannies hand it to their workers.
FOLDER = "daskyard.local-folder"
# Bytes from which a file is quicker, and from which the event loop should not wait for one.
_LARGE, _SLOW = 1 << 18, 1 << 24
# Buffers that the system writes in one call; so many that it takes a while; and bytes of those that are read in one.
# A list of Python's has a buffer for each of its items.
_N_BUFFERS, _MANY, _SHARED = 512, 10_000, 1 << 16
_NAME, _SIZES = "_daskyard-file", "_daskyard-sizes"


def install() -> None:
    """Have this process's TLS connections, those of Dask that are yet to come, be ones that know of the folder."""
    backends["tls"] = _Backend()


class _LocalTLS(TLS):
    def handshake_info(self) -> dict[str, Any]:
        return {**super().handshake_info(), FOLDER: dask.config.get(FOLDER, None)}

    async def write(self, msg: Any, serializers: Any = None, on_error: str = "message") -> int:
        folder = self._folder()
        if folder is not None and self._is_large(msg):
            frames = await to_frames(
                msg,
                allow_offload=self.allow_offload,
                serializers=serializers,
                on_error=on_error,
                context={"sender": self.local_info, "recipient": self.remote_info, **self.handshake_options},
                # No need to cut them: they would have to be put together again.
                frame_split_size=1 << 62,
            )
            views = [ensure_memoryview(frame) for frame in frames]
            sizes = [view.nbytes for view in views]
            path = folder / f"message-{uuid.uuid4().hex}"
            try:
                await _aside(sum(sizes), _write, path, views)
                await super().write({_NAME: path.name, _SIZES: sizes})
            except BaseException as error:
                with contextlib.suppress(OSError):
                    path.unlink()
                # Such as no room: it goes as it would without a file. A connection's end is an OSError as well.
                if not isinstance(error, OSError) or isinstance(error, CommClosedError):
                    raise
            else:
                return sum(sizes)
        n_bytes: int = await super().write(msg, serializers=serializers, on_error=on_error)
        return n_bytes

    async def read(self, deserializers: Any = None) -> Any:
        msg = await super().read(deserializers=deserializers)
        folder = self._folder()
        if folder is None or type(msg) is not dict or _NAME not in msg:
            return msg
        path, sizes = folder / Path(msg[_NAME]).name, list(msg[_SIZES])
        try:
            frames = await _aside(sum(sizes), _read, path, sizes)
        except OSError as error:
            self.abort()
            raise CommClosedError(f"{path}: what {self.peer_address} sent is gone ({error.strerror})") from error
        return await from_frames(
            frames, deserialize=self.deserialize, deserializers=deserializers, allow_offload=self.allow_offload
        )

    def _folder(self) -> Path | None:
        """Return the folder that both sides of the connection have; one of another cluster has another, or none."""
        folder = self.local_info.get(FOLDER)
        return Path(folder) if folder is not None and folder == self.remote_info.get(FOLDER) else None

    @staticmethod
    def _is_large(msg: Any) -> bool:
        """Whether it is one of the messages that carry tasks' results, and of such a size."""
        data = msg.get("data") if type(msg) is dict else None
        return type(data) is dict and safe_sizeof(data, default_size=0) >= _LARGE


class _Connector(TLSConnector):
    comm_class = _LocalTLS


class _Listener(TLSListener):
    comm_class = _LocalTLS


class _Backend(TLSBackend):
    _connector_class = _Connector
    _listener_class = _Listener


async def _aside(n_bytes: int, function: Callable[..., Any], path: Path, parts: Sequence[Any]) -> Any:
    is_slow = n_bytes >= _SLOW or len(parts) >= _MANY
    return await offload(function, path, parts) if is_slow else function(path, parts)


def _write(path: Path, buffers: Sequence[memoryview]) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        for start in range(0, len(buffers), _N_BUFFERS):
            _move(os.writev, file, buffers[start : start + _N_BUFFERS])
    finally:
        os.close(file)


def _read(path: Path, sizes: Sequence[int]) -> list[memoryview]:
    """Return what a file has, in buffers of such sizes, and remove it. Small ones share memory, a little at a time."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        path.unlink()
        buffers = []
        for group in _groups(sizes):
            ends = [*accumulate(map(_aligned, group))]
            shared = host_array(ends[-1])
            parts = [shared[end - _aligned(size) :][:size] for end, size in zip(ends, group, strict=True)]
            _move(os.readv, file, parts)
            buffers += parts
        return buffers
    finally:
        os.close(file)


def _move(call: Callable[[int, list[memoryview]], int], file: int, buffers: Sequence[memoryview]) -> None:
    """Write all of the buffers, or fill them, whatever the system does at a time."""
    left = [buffer for buffer in buffers if buffer.nbytes]
    while left:
        n = call(file, left)
        if not n:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        while left and n >= left[0].nbytes:
            n -= left.pop(0).nbytes
        if n:
            left[0] = left[0][n:]


def _groups(sizes: Sequence[int]) -> Iterator[list[int]]:
    group: list[int] = []
    total = 0
    for size in sizes:
        if group and (total + _aligned(size) > _SHARED or len(group) == _N_BUFFERS):
            yield group
            group, total = [], 0
        group.append(size)
        total += _aligned(size)
    if group:
        yield group


def _aligned(size: int) -> int:
    """Round up, so that an array that begins after so many bytes lies as numpy would lay it."""
    return -(-size // 16) * 16
