"""Another user of this machine against the embedded S3 server: every port and socket of it, by HTTP, gRPC and TLS."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs

from jobs.local_s3 import LocalS3
from tests.strangers import listeners_of, run_as_stranger

SECRET = "what-is-in-the-manifest"

IMPORTS = "import http.client, pathlib, socket, ssl, struct, sys"

# A call of gRPC needs no more of HTTP/2 than this: one stream, headers without compression, one message.
STRANGER = """
    def call(connection, path, message):
        def frame(kind, flags, stream, payload):
            return struct.pack("!I", len(payload))[1:] + bytes([kind, flags]) + struct.pack("!I", stream) + payload

        headers = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "localhost")]
        headers += [("content-type", "application/grpc"), ("te", "trailers")]
        block = b"".join(b"\\0" + bytes([len(n)]) + n.encode() + bytes([len(v)]) + v.encode() for n, v in headers)
        body = b"\\0" + struct.pack("!I", len(message)) + message
        data = b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n" + frame(4, 0, 0, b"") + frame(1, 4, 1, block)
        connection.sendall(data + frame(0, 1, 1, body))
        answer = b""
        try:
            while part := connection.recv(65536):
                answer += part
        except OSError:
            pass
        return answer

    def text(field, value):
        return bytes([field << 3 | 2, len(value)]) + value.encode()

    RUNS = text(1, "/buckets/demo/runs")
    CALLS = [
        ("/filer_pb.SeaweedFiler/LookupDirectoryEntry", RUNS + text(2, "manifest.json")),
        ("/filer_pb.SeaweedFiler/ListEntries", RUNS),
        ("/filer_pb.SeaweedFiler/DeleteEntry", RUNS + text(2, "manifest.json") + b"\\x20\\x01"),
        ("/master_pb.Seaweed/VolumeList", b""),
        ("/master_pb.Seaweed/CollectionDelete", text(1, "demo")),
    ]
    PAGES = ["/", "/dir/status", "/dir/assign", "/vol/status", "/vol/grow?count=1", "/cluster/status", "/stats/disk"]
    PAGES += ["/buckets/demo/runs/manifest.json", "/demo/runs/manifest.json", "/ui/index.html", "/debug/pprof/"]
    PAGES += ["/metrics", "/col/delete?collection=demo", "/demo?list-type=2", *sys.argv[2].split(",")]
    LEAKS = [sys.argv[1].encode(), b"manifest", b"demo", b"fid", b"Volume", b"Leader", b"127.0.0.1:"]

    def tell(place, how, answer):
        # The S3 port repeats what was asked for where it says no.
        if b"<Error><Code>" not in answer and any(leak in answer for leak in LEAKS):
            print(f"{place} {how}: {answer[:300]!r}")

    def encrypted(connection):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2", "http/1.1"])
        return context.wrap_socket(connection)

    def reach(place):
        if place.startswith("/"):
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(1)
            connection.connect(place)
            return connection
        return socket.create_connection(("127.0.0.1", int(place)), timeout=1)

    for place in sys.argv[3:]:
        for is_encrypted in (False, True):
            for method in ("GET", "POST", "DELETE"):
                for page in PAGES:
                    try:
                        connection = reach(place)
                        with encrypted(connection) if is_encrypted else connection as connection:
                            request = f"{method} {page} HTTP/1.1\\r\\nHost: a\\r\\nConnection: close\\r\\n\\r\\n"
                            connection.sendall(request.encode())
                            answer = b""
                            while part := connection.recv(65536):
                                answer += part
                            tell(place, f"{method} {page}", answer)
                    except OSError:
                        continue
            for path, message in CALLS:
                try:
                    connection = reach(place)
                    with encrypted(connection) if is_encrypted else connection as connection:
                        tell(place, path, call(connection, path, message).replace(b"grpc-message", b""))
                except OSError:
                    continue
    print("tried", len(sys.argv) - 3)
"""


def child_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[-1])


def server_of_this_process() -> int:
    """Process id of the server that was started last; between is its guard."""
    return child_of(child_of(os.getpid()))


@pytest.fixture
def committed() -> Iterator[s3fs.S3FileSystem]:
    with LocalS3() as s3:
        s3.create_bucket("demo")
        files = s3fs.S3FileSystem()
        files.pipe_file("demo/runs/manifest.json", SECRET.encode() * 100)
        yield files


def test_another_user_reads_and_deletes_nothing_through_any_port_or_socket(committed: s3fs.S3FileSystem) -> None:
    listening = listeners_of(server_of_this_process())
    ports = sorted(port for _, port in listening)
    assert {address for address, _ in listening} == {"127.0.0.1"}
    assert len(ports) >= 8  # HTTP and gRPC of master, volume server, filer and S3
    sockets = [str(path) for port in ports for path in Path("/tmp").glob(f"seaweedfs-*-grpc-{port}.sock")]
    assert sockets
    files = ",".join(f"/{volume},{id:02x}abcdef01" for volume in range(1, 4) for id in range(1, 3))
    told = run_as_stranger(IMPORTS, STRANGER, SECRET, files, *ports, *sockets)
    assert told == [f"tried {len(ports) + len(sockets)}"]
    committed.invalidate_cache()
    assert committed.cat_file("demo/runs/manifest.json") == SECRET.encode() * 100


def test_all_that_the_server_keeps_is_its_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)  # as careless as can be
    try:
        with LocalS3(tmp_path / "kept") as s3:
            s3.create_bucket("demo")
            s3fs.S3FileSystem().pipe_file("demo/a", b"1" * 1000)
            assert (tmp_path / "kept").stat().st_mode & 0o077 == 0
            port = s3.endpoint.rsplit(":", 1)[1]
            assert not [p for p in Path("/tmp").glob(f"seaweedfs-*-{port}.sock") if p.stat().st_mode & 0o077]
            for _, port_of_part in listeners_of(server_of_this_process()):
                for path in Path("/tmp").glob(f"seaweedfs-*-grpc-{port_of_part}.sock"):
                    assert path.stat().st_mode & 0o077 == 0
    finally:
        os.umask(before)


def test_a_killed_guard_takes_the_server_with_it(tmp_path: Path) -> None:
    code = "import time, jobs.local_s3 as l\nwith l.LocalS3(): print('ready', flush=True); time.sleep(60)"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        guard = child_of(parent.pid)
        server = child_of(guard)
        os.kill(guard, signal.SIGKILL)
        deadline = time.monotonic() + 15
        while Path(f"/proc/{server}").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        parent.terminate()
