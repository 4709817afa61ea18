"""A Dask cluster of this machine that no other user of it can enter. Called by `jobs.cluster`.

Whoever can talk to a scheduler, a worker or a nanny runs code as its owner. So they talk TLS with a certificate that
each run makes for itself, keeps in memory, and hands to its processes through pipes; what workers spill lies in a
folder of the user's; and the dashboard, which shows names and code, answers below a path that nobody can guess.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import dask
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from distributed import Nanny, Scheduler, SpecCluster
from distributed.comm.addressing import get_address_host_port
from distributed.security import Security
from distributed.utils import LoopRunner, format_dashboard_link
from tornado.httputil import HTTPServerRequest
from tornado.ioloop import IOLoop
from tornado.web import HTTPError, RequestHandler

from jobs import local_comm
from jobs.environment import restored
from jobs.errors import SpecError
from jobs.local_worker import NO_ROOM, quiet_removals
from jobs.temporary import held_folder

# Longer than any run; the key is gone with the processes that know it.
_VALID = timedelta(days=3650)
_CLOCK_STEP = timedelta(days=1)
_CONNECT_S = 1.0
# What closing a cluster may take that somebody stopped as it started.
_CLOSE_S = 5.0
_OF_TERMINALS = {signal.SIGINT, signal.SIGHUP}
# The variables that tempfile asks, in its order.
_NAME_A_FOLDER = ("TMPDIR", "TEMP", "TMP")
_NO_FOLDER = "No usable temporary directory"
# Modules for Dask to load into the scheduler, the nannies and the workers.
_PRELOADS = {
    "distributed.scheduler.preload": "jobs.pods.worker_ttl",
    "distributed.nanny.preload": "jobs.ends",
    "distributed.worker.preload": "jobs.local_worker",
}


@contextmanager
def started(n_workers: int, memory_limit: int, settings: Mapping[str, Any]) -> Iterator[SpecCluster]:
    """Yield a cluster of worker processes of one thread each; `settings` are Dask's, for as long as it lasts.

    Raises
    ------
    SpecError
        When the folder for temporary files is full or cannot be written, or there is none.
    """
    quiet_removals()
    host, prefix, security = loopback(), secrets.token_urlsafe(16), own_security()
    with (
        dask.config.set({**settings, **_preloads(), "distributed.worker.http.routes": []}),
        # Nannies leave here what they set for workers; the next cluster would take it for the user's.
        restored(dask.config.get("distributed.nanny.pre-spawn-environ")),
        _own_modules(),
        room_for_temporary_files(),
        held_folder("workers", _parent()) as folder,
        dask.config.set({local_comm.FOLDER: str(folder)}),
        _loop() as loop,
    ):
        local_comm.install()
        common = {
            "host": f"[{host}]" if ":" in host else host,
            "protocol": "tls://",
            "security": security,
            "local_directory": str(folder),
        }
        worker = {
            "cls": Nanny,
            "options": {
                **common,
                "nthreads": 1,
                "memory_limit": memory_limit,
                "dashboard": False,
                "silence_logs": logging.WARNING,
            },
        }
        scheduler = {
            "cls": _Scheduler,
            "options": {**common, "dashboard": True, "dashboard_address": (host, 0), "http_prefix": f"/{prefix}"},
        }
        with _Cluster(
            prefix,
            scheduler=scheduler,
            workers=dict.fromkeys(range(n_workers), worker),
            worker=worker,
            security=security,
            loop=loop,
            silence_logs=logging.WARNING,
        ) as cluster:
            yield cluster


def own_security() -> Security:
    """Return a new certificate, and what lets nobody in who has another one.

    `Security.temporary` does the same with RSA, whose signatures take most of the time that it takes to connect.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "daskyard-local")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_STEP)
        .not_valid_after(now + _VALID)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
        .decode()
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    roles = ("client", "scheduler", "worker")
    return Security(
        require_encryption=True,
        tls_ca_file=certificate,
        **{f"tls_{role}_cert": certificate for role in roles},
        **{f"tls_{role}_key": secret for role in roles},
    )


def loopback() -> str:
    """Return this machine's own address: 127.0.0.1, or ::1 where there is no IPv4.

    Raises
    ------
    SpecError
        When there is neither.
    """
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        try:
            # An address that is there may lead nowhere: that of an interface which is down.
            with socket.create_server((host, 0), family=family) as server:
                socket.create_connection(server.getsockname()[:2], timeout=_CONNECT_S).close()
        except OSError:
            continue
        return host
    raise SpecError(
        "cluster: this machine has no loopback address (127.0.0.1 or ::1); bring it up, for example: ip link set lo up"
    )


@contextmanager
def room_for_temporary_files() -> Iterator[None]:
    """Raise SpecError, with the remedy, for temporary files that cannot be written where the user wants them.

    Python takes another folder without a word: a small one, or one that others read.
    """
    named = next(filter(None, map(os.environ.get, _NAME_A_FOLDER)), None)
    if named is not None:
        try:
            with tempfile.TemporaryFile(dir=named) as file:
                file.write(b"1")
        except OSError as error:
            raise _unwritable(named, error) from error
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM and _NO_FOLDER not in str(error):
            raise
        raise _unwritable(dask.config.get("temporary-directory", None) or named or "/tmp", error) from error


def _unwritable(folder: str, error: OSError) -> SpecError:
    return SpecError(
        f"{folder}: temporary files cannot be written there ({error.strerror or 'no folder'}); "
        "make room, or have TMPDIR name another folder"
    )


@contextmanager
def _own_modules() -> Iterator[None]:
    """Have the processes of the cluster look for no module in the working folder, which may be anybody's.

    multiprocessing starts them, and its resource tracker, as ``python -c``, to which that folder comes first. What this
    process has on its search path they get from it, later.
    """
    with restored(["PYTHONSAFEPATH"]):
        os.environ["PYTHONSAFEPATH"] = "1"
        yield


@contextmanager
def _loop() -> Iterator[IOLoop]:
    """Yield a running event loop whose thread blocks a terminal's signals, as do the processes that are started there.

    A terminal sends them to all of them. This process stops the others; one that is still importing would show where,
    and Python's own helper, which removes what they leave behind, would not be there any more.
    """
    runner = LoopRunner()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_TERMINALS)
    try:
        # It starts with the first process of all, and before Python 3.12 leaves SIGINT unblocked behind it.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, _OF_TERMINALS)
        runner.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        yield runner.loop
    finally:
        runner.stop()


def _parent() -> Path | None:
    """Return the folder that the user has Dask write temporary files to, if any."""
    chosen = dask.config.get("temporary-directory", None)
    return None if chosen is None else Path(chosen)


def _preloads() -> dict[str, list[str]]:
    found = {}
    for name, module in _PRELOADS.items():
        theirs = dask.config.get(name)
        # An environment variable names a single one as text.
        theirs = [theirs] if isinstance(theirs, str) else list(theirs)
        found[name] = [*theirs, *([module] if module not in theirs else [])]
    return found


class _Cluster(SpecCluster):
    """A cluster that knows the secret part of its dashboard's path."""

    def __init__(self, prefix: str, **options: Any) -> None:
        self._prefix = prefix
        try:
            super().__init__(**options)
        except BaseException:
            # Dask would close it as Python ends, and show that it cannot close what has not started.
            with suppress(Exception):
                self.close(timeout=_CLOSE_S)
            SpecCluster._instances.discard(self)
            raise

    @property
    def dashboard_link(self) -> str:
        """URL of the dashboard, by the user's template of Dask's setting, or Dask's own."""
        host, port = get_address_host_port(self.scheduler_address)[0], self.scheduler_info["services"]["dashboard"]
        link = format_dashboard_link(f"[{host}]" if ":" in host else host, port)
        return f"{link.removesuffix('status').rstrip('/')}/{self._prefix}/status"


class _Scheduler(Scheduler):
    """A scheduler that shows its pages below the prefix alone: Bokeh would lead whoever asks for / to them."""

    def __init__(self, http_prefix: str, **options: Any) -> None:
        super().__init__(http_prefix=http_prefix, **options)
        pages: Any = self.http_application
        find_handler = pages.find_handler

        def find(request: HTTPServerRequest, **more: Any) -> Any:
            if not request.path.startswith(f"{http_prefix}/"):
                return pages.get_handler_delegate(request, _Nothing)
            return find_handler(request, **more)

        # Before the loop goes on: no request is answered without it.
        pages.find_handler = find


class _Nothing(RequestHandler):
    """Knows no page."""

    def prepare(self) -> None:
        """Refuse."""
        raise HTTPError(404)
