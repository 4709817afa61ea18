"""A controller that is killed (SIGKILL) after each of its writes, for a whole job's life, on a real cluster.

The cluster's own controllers are sent away; one after another runs here, and speaks to the API server through a
stretch of wire that counts its writes and kills it when the first one has been answered.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kube
import pytest
import urllib3
from jobs_of import clusters_of_proteins
from mljobs_of import left, mljob, status, submitted

from jobs import storage
from jobs.artifacts import read_manifest

SYSTEM = kube.SYSTEM
CONTROLLER = "deployment/daskyard-controller"
NAME = "mlj-deaths"


class Wire:
    """Passes requests on to an API server, and kills `process` once a write of its has been answered."""

    def __init__(self, upstream: str) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.created: list[str] = []
        self.writes: list[str] = []
        self._lock = threading.Lock()
        pool = urllib3.PoolManager(num_pools=4, maxsize=64, retries=False)
        wire = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def _pass_on(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or None
                headers = {k: v for k, v in self.headers.items() if k in ("Accept", "Content-Type")}
                is_watch = "watch=true" in self.path
                is_write = self.command != "GET" and "dryRun=" not in self.path
                with wire._lock if is_write else threading.Lock():
                    if is_write and wire.is_dead:
                        return self.close()
                    answer = pool.request(
                        self.command, upstream + self.path, body=body, headers=headers, preload_content=not is_watch
                    )
                    if is_write and "/leases" not in self.path:
                        wire.note(self.command, self.path, answer.status, body)
                        return self.close()
                try:
                    self.send_response(answer.status)
                    if is_watch:
                        self.send_header("Transfer-Encoding", "chunked")
                        self.end_headers()
                        for piece in answer.stream(None):
                            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                            self.wfile.flush()
                        self.wfile.write(b"0\r\n\r\n")
                    else:
                        self.send_header("Content-Length", str(len(answer.data)))
                        self.end_headers()
                        self.wfile.write(answer.data)
                except OSError:
                    self.close_connection = True  # it was killed
                return None

            def close(self) -> None:
                self.close_connection = True

            do_GET = do_POST = do_PATCH = do_DELETE = _pass_on

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def is_dead(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def note(self, method: str, path: str, code: int, body: bytes | None) -> None:
        place = urlsplit(path).path.split("/namespaces/", 1)[1]
        name = json.loads(body or b"{}").get("metadata", {}).get("name", "") if method == "POST" else ""
        self.writes.append(f"{method} {place}{f'/{name}' if name else ''}: {code}")
        if method == "POST" and code == 201:
            self.created.append(f"{place}/{name}")
        assert self.process is not None
        self.process.kill()
        self.process.wait()


@contextmanager
def kubectl_proxy() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["kubectl", "--context", kube.CONTEXT, "proxy", f"--port={port}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        kube.wait("kubectl proxy", lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0, 20)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def no_controllers() -> Iterator[None]:
    kube.kubectl("scale", CONTROLLER, "--replicas=0", namespace=SYSTEM)
    selector = "app.kubernetes.io/name=daskyard-controller"
    try:
        kube.wait("their end", lambda: not kube.listed("pods", "--selector", selector, namespace=SYSTEM), 60)
        yield
    finally:
        leases = [kube.name_of(lease) for lease in kube.listed("leases", namespace=SYSTEM)]
        for name in filter(lambda name: name.startswith("deaths-"), leases):
            kube.kubectl("delete", "lease", name, namespace=SYSTEM)
        kube.kubectl("scale", CONTROLLER, "--replicas=2", namespace=SYSTEM)
        kube.kubectl("rollout", "status", CONTROLLER, "--timeout=120s", namespace=SYSTEM)


def is_over() -> bool:
    said = status(NAME)
    kinds = Counter(found.partition("/")[0].partition(".")[0] for found in left(NAME))
    return bool(
        said.get("completionTime")
        and said["attempts"][-1].get("logs")
        and not kinds.keys() & {"daskcluster", "daskworkergroup", "deployment"}
        and (kinds["job"], kinds["configmap"]) == (1, 1)
    )


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_controller_that_is_killed_after_each_of_its_writes_makes_nothing_twice(tmp_path: Path) -> None:
    storage.remove_tree(f"s3://demo/e2e/{NAME}")
    with no_controllers(), kubectl_proxy() as upstream, submitted(mljob(NAME, clusters_of_proteins(NAME, 1))):
        wire = Wire(upstream)
        address = f"http://127.0.0.1:{wire.server.server_address[1]}"
        config = tmp_path / "kubeconfig"
        config.write_text(_kubeconfig(address))
        n_lives = 0
        while not is_over():
            n_lives += 1
            assert n_lives < 60, wire.writes
            wire.process = _controller(config, n_lives)
            try:
                kube.wait("its end", lambda: wire.is_dead or is_over(), 240, 0.2)
                assert wire.process.poll() in (None, -signal.SIGKILL)
            finally:
                wire.process.kill()
                wire.process.wait()
        wire.server.shutdown()
        wire.server.server_close()
        said = status(NAME)
        assert (said["phase"], [a["number"] for a in said["attempts"]]) == ("Succeeded", [1]), said
        assert said["attempts"][0]["logs"] == "Saved"
        print(f"{n_lives} lives, {len(wire.writes)} writes:", *wire.writes, sep="\n")
        assert n_lives >= 15
        twice = {made: n for made, n in Counter(wire.created).items() if n > 1}
        assert not twice
    assert read_manifest(f"s3://demo/e2e/{NAME}").run_id == NAME
    assert left(NAME) == []


def _controller(config: Path, n: int) -> subprocess.Popen[bytes]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("KUBERNETES_")}
    command = [sys.executable, "-m", "controller", f"--namespace={kube.NAMESPACE}", "--http-port=0"]
    # A Lease each: the one before had no time to give its own up.
    command += ["--lease-namespace", SYSTEM, "--lease-name", f"deaths-{n}"]
    return subprocess.Popen(
        command, cwd=kube.ROOT, env={**environment, "KUBECONFIG": str(config)}, stderr=subprocess.DEVNULL
    )


def _kubeconfig(address: str) -> str:
    document: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "wire",
        "clusters": [{"name": "wire", "cluster": {"server": address}}],
        "contexts": [{"name": "wire", "context": {"cluster": "wire", "user": "nobody"}}],
        "users": [{"name": "nobody", "user": {}}],
    }
    return json.dumps(document)
