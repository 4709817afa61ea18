"""Where the ranks of a generation meet: a key-value store in the process of its first member, for members only.

torch's TCPStore listens on every interface whatever host it is given, takes orders from whoever connects, and lists
its keys to them. This one listens on the rank's own address alone, and whoever connects proves first that they know
its key: 256 random bits that travel with the rank's address, over Dask's connections. The place proves the same, so a
stranger who takes the port of a rank that died is found out. Nothing is encrypted, as nothing is that gloo and NCCL
send. Made by collective.
"""

from __future__ import annotations

import contextlib
import enum
import hmac
import secrets
import socket
import struct
import threading
import time
from datetime import timedelta

from torch._C._distributed_c10d import Store  # torch.distributed hides its type

from jobs.errors import SpecError

_NONCE_BYTES = 32
_PROOF_BYTES = 32
# A member proves itself in a moment. A stranger may stay for so long; of more than so many the first one has to go.
_PROOF_TIMEOUT_S = 10.0
_MAX_STRANGERS = 64
_BACKLOG = 256
_REQUEST = struct.Struct("!BdII")  # what, seconds to wait, bytes of the key, bytes of the value
_ANSWER = struct.Struct("!BI")  # whether it was done, bytes of the value
_NUMBER = struct.Struct("!q")
# Addresses of gloo take a few hundred bytes a rank.
_MAX_BYTES = 16 << 20
# Beyond what the place itself waits: it may have other requests to answer.
_ANSWER_MARGIN_S = 10.0


class _Do(enum.IntEnum):
    SET = 0
    GET = 1
    ADD = 2
    WAIT = 3
    DELETE = 4
    COUNT = 5


class MeetingPlace:
    """This process's store, open to members as long as the process lives.

    Parameters
    ----------
    host
        An address of this machine, the only one that it listens on.

    Raises
    ------
    SpecError
        When it is none.
    """

    def __init__(self, host: str) -> None:
        self.host, self.key = host, secrets.token_hex(32)
        try:
            family = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0][0]
            self._listener = socket.create_server((host, 0), family=family, backlog=_BACKLOG)
        except OSError as error:
            raise SpecError(
                f"training: {host}, the address of a worker, is none of its machine's ({error}); start workers without "
                "--contact-address, or with an address of their own"
            ) from error
        self.port = int(self._listener.getsockname()[1])
        self._values: dict[bytes, bytes] = {}
        self._changed = threading.Condition()
        self._strangers: dict[socket.socket, None] = {}  # in order of their coming
        threading.Thread(target=self._accept, name="meeting", daemon=True).start()

    def close(self) -> None:
        """Let nobody else in."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # ends the wait for the next one
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except ConnectionError:
                continue  # gone before it was let in
            except OSError:
                if self._listener.fileno() < 0:
                    return
                time.sleep(0.05)  # no descriptors left: strangers' are given back in time
                continue
            with self._changed:
                self._strangers[connection] = None
                surplus = list(self._strangers)[:-_MAX_STRANGERS]
            for stranger in surplus:
                with contextlib.suppress(OSError):
                    stranger.shutdown(socket.SHUT_RDWR)
            try:
                threading.Thread(target=self._serve, args=(connection,), name="member", daemon=True).start()
            except RuntimeError:  # no room for a thread: who was turned away tries again
                connection.close()
                with self._changed:
                    del self._strangers[connection]

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, ValueError):
            try:
                connection.settimeout(_PROOF_TIMEOUT_S)
                is_member = self._is_member(connection)
            finally:
                with self._changed:
                    self._strangers.pop(connection, None)
            if is_member:
                connection.settimeout(None)
                self._answer(connection)

    def _is_member(self, connection: socket.socket) -> bool:
        deadline = time.monotonic() + _PROOF_TIMEOUT_S
        ours = secrets.token_bytes(_NONCE_BYTES)
        connection.sendall(ours)
        theirs = _receive(connection, _NONCE_BYTES, deadline)
        proof = _receive(connection, _PROOF_BYTES, deadline)
        if not hmac.compare_digest(proof, _prove(self.key, b"member", ours, theirs)):
            return False
        connection.sendall(_prove(self.key, b"place", ours, theirs))
        return True

    def _answer(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            what, wait_s, n_key, n_value = _REQUEST.unpack(_receive(connection, _REQUEST.size))
            if n_key + n_value > _MAX_BYTES:
                return
            key, value = _receive(connection, n_key), _receive(connection, n_value)
            answer = self._do(_Do(what), key, value, wait_s)
            connection.sendall(_ANSWER.pack(answer is not None, len(answer or b"")) + (answer or b""))

    def _do(self, what: _Do, key: bytes, value: bytes, wait_s: float) -> bytes | None:
        """Return the answer; None is no."""
        with self._changed:
            match what:
                case _Do.SET:
                    self._values[key] = value
                    self._changed.notify_all()
                    return b""
                case _Do.ADD:
                    number = int(self._values.get(key, b"0")) + _NUMBER.unpack(value)[0]
                    self._values[key] = str(number).encode()  # as torch's own stores keep it
                    self._changed.notify_all()
                    return _NUMBER.pack(number)
                case _Do.GET | _Do.WAIT:
                    if not self._changed.wait_for(lambda: key in self._values, wait_s):
                        return None
                    return self._values[key] if what is _Do.GET else b""
                case _Do.DELETE:
                    return b"" if self._values.pop(key, None) is not None else None
                case _Do.COUNT:
                    return _NUMBER.pack(len(self._values))


class MeetingStore(Store):
    """A member's connection to a place, as torch wants it.

    Whoever hands it to torch keeps it too: what torch holds is not this object, but one that asks it.

    Parameters
    ----------
    host, port, key
        Of the place.
    timeout_s
        Longest wait to connect, and for a key that is not there.

    Raises
    ------
    OSError
        When it cannot be reached, or is somebody else's.

    Notes
    -----
    Each method raises RuntimeError, as torch's own stores do, when the place is lost or a value does not come in time.
    """

    def __init__(self, host: str, port: int, key: str, timeout_s: float) -> None:
        super().__init__()
        self._place, self._timeout_s, self._asking = (host, port, key), timeout_s, threading.Lock()
        self._clones: list[MeetingStore] = []
        self._connection = socket.create_connection((host, port), timeout=timeout_s)
        self._introduce(key, time.monotonic() + timeout_s)

    def __del__(self) -> None:
        """Leave the place."""
        if hasattr(self, "_connection"):
            self._connection.close()

    def _introduce(self, key: str, deadline: float) -> None:
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ours, theirs = secrets.token_bytes(_NONCE_BYTES), _receive(self._connection, _NONCE_BYTES, deadline)
        self._connection.sendall(ours + _prove(key, b"member", theirs, ours))
        proof = _receive(self._connection, _PROOF_BYTES, deadline)
        if not hmac.compare_digest(proof, _prove(key, b"place", theirs, ours)):
            raise ConnectionError("somebody else answers there")

    def _ask(self, what: _Do, key: str = "", value: bytes = b"", wait_s: float = 0.0) -> bytes | None:
        data = key.encode()
        with self._asking:
            try:
                self._connection.settimeout(wait_s + _ANSWER_MARGIN_S)
                self._connection.sendall(_REQUEST.pack(what, wait_s, len(data), len(value)) + data + value)
                is_done, n = _ANSWER.unpack(_receive(self._connection, _ANSWER.size))
                answer = _receive(self._connection, n)
            except OSError as error:
                self._connection.close()  # an answer that is late would be taken for the next one's
                raise RuntimeError(f"the store of the first member is lost: {error}") from error
        return answer if is_done else None

    def clone(self) -> MeetingStore:
        """Return a connection of its own to the same place."""
        self._clones.append(MeetingStore(*self._place, self._timeout_s))
        return self._clones[-1]

    def set(self, key: str, value: str | bytes) -> None:
        """Keep a value."""
        self._ask(_Do.SET, key, value.encode() if isinstance(value, str) else bytes(value))

    def get(self, key: str) -> bytes:
        """Return a value, once it is there."""
        value = self._ask(_Do.GET, key, wait_s=self._timeout_s)
        if value is None:
            raise _missing(key, self._timeout_s)
        return value

    def add(self, key: str, number: int) -> int:
        """Add to a number, 0 at first, and return it."""
        return int(_NUMBER.unpack(self._ask(_Do.ADD, key, _NUMBER.pack(number)) or b"")[0])

    def check(self, keys: list[str]) -> bool:
        """Whether all of them are there."""
        return all(self._ask(_Do.WAIT, key) is not None for key in keys)

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        """Wait until all of them are there."""
        wait_s = self._timeout_s if timeout is None else timeout.total_seconds()
        deadline = time.monotonic() + wait_s
        for key in keys:
            if self._ask(_Do.WAIT, key, wait_s=max(deadline - time.monotonic(), 0.0)) is None:
                raise _missing(key, wait_s)

    def delete_key(self, key: str) -> bool:
        """Remove a value; whether it was there."""
        return self._ask(_Do.DELETE, key) is not None

    def num_keys(self) -> int:
        """Return how many keys there are, of all generations."""
        return int(_NUMBER.unpack(self._ask(_Do.COUNT) or b"")[0])


def _prove(key: str, who: bytes, of_place: bytes, of_member: bytes) -> bytes:
    return hmac.digest(bytes.fromhex(key), who + of_place + of_member, "sha256")


def _receive(connection: socket.socket, n: int, deadline: float | None = None) -> bytes:
    """Return exactly `n` bytes; one byte a second does not move the deadline."""
    parts = bytearray()
    while len(parts) < n:
        if deadline is not None:
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
        part = connection.recv(min(n - len(parts), 1 << 16))
        if not part:
            raise ConnectionError("the connection was closed")
        parts += part
    return bytes(parts)


def _missing(key: str, wait_s: float) -> RuntimeError:
    return RuntimeError(f"{key} was not told within {wait_s:.0f} s")
