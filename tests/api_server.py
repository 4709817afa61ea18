"""A small API server for tests of the controller: real HTTP, lists, watches, versions, conflicts, owners; in memory.

What it does follows Kubernetes' API conventions as far as the controller uses them; `tests/e2e` has the real one.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from kubernetes.client import ApiClient, Configuration

from controller.api import KINDS

Object = dict[str, Any]
_BY_PLURAL = {kind.plural: kind for kind in KINDS.values()}


class Store:
    """All objects, and all that has happened to them."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.objects: dict[tuple[str, str, str], Object] = {}
        self.events: list[tuple[int, str, str, Object]] = []
        self.created: list[tuple[str, str]] = []
        self.writes: list[tuple[str, str, str]] = []
        self.n_version = 0
        self.is_silent = False
        self.is_closed = False
        self.logs: dict[str, str] = {}

    def put(self, kind: str, found: Object, event: str) -> Object:
        self.n_version += 1
        found["metadata"]["resourceVersion"] = str(self.n_version)
        found.setdefault("kind", kind)
        key = (kind, found["metadata"]["namespace"], found["metadata"]["name"])
        if event == "DELETED":
            self.objects.pop(key, None)
        else:
            self.objects[key] = found
        self.events.append((self.n_version, event, kind, json.loads(json.dumps(found))))
        self.changed.notify_all()
        return found

    def create(self, kind: str, made: Object) -> Object:
        """Make an object; KeyError where there is one of its name."""
        with self.changed:
            metadata = made["metadata"]
            key = (kind, metadata["namespace"], metadata["name"])
            if key in self.objects:
                raise KeyError(key)
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            metadata |= {"uid": metadata.get("uid") or uuid.uuid4().hex, "creationTimestamp": now, "generation": 1}
            self.created.append((kind, metadata["name"]))
            found = self.put(kind, json.loads(json.dumps(made)), "ADDED")
            self._collect_garbage()
            return found

    def patch(self, kind: str, namespace: str, name: str, change: Object) -> Object:
        with self.changed:
            there = json.loads(json.dumps(self.objects[kind, namespace, name]))
            expected = change.get("metadata", {}).pop("resourceVersion", None)
            if expected is not None and expected != there["metadata"]["resourceVersion"]:
                raise ValueError("the object has been modified")
            return self.put(kind, merged(there, change), "MODIFIED")

    def delete(self, kind: str, namespace: str, name: str, uid: str = "") -> None:
        with self.changed:
            there = self.objects[kind, namespace, name]
            if uid and uid != there["metadata"]["uid"]:
                raise ValueError("the UID in the precondition does not match")
            self.put(kind, there, "DELETED")
            self._collect_garbage()

    def of(self, kind: str) -> list[Object]:
        with self.changed:
            return [json.loads(json.dumps(o)) for (k, _, _), o in self.objects.items() if k == kind]

    def get(self, kind: str, name: str, namespace: str = "team") -> Object | None:
        with self.changed:
            found = self.objects.get((kind, namespace, name))
            return None if found is None else json.loads(json.dumps(found))

    def close(self) -> None:
        """End all watches, the silent ones too."""
        with self.changed:
            self.is_closed = True
            self.changed.notify_all()

    def _collect_garbage(self) -> None:
        """Delete what is owned by nobody that exists any more, as the garbage collector does."""
        uids = {o["metadata"]["uid"] for o in self.objects.values()}
        for (kind, _, _), found in list(self.objects.items()):
            owners = found["metadata"].get("ownerReferences", [])
            if owners and not any(owner["uid"] in uids for owner in owners):
                self.put(kind, found, "DELETED")
                return self._collect_garbage()
        return None


def merged(there: Any, change: Any) -> Any:
    """Return the outcome of a JSON merge patch (RFC 7386)."""
    if not isinstance(change, dict):
        return change
    made = dict(there) if isinstance(there, dict) else {}
    for key, value in change.items():
        if value is None:
            made.pop(key, None)
        else:
            made[key] = merged(made.get(key), value)
    return made


def selected(found: Object, selector: str) -> bool:
    labels = found["metadata"].get("labels", {})
    pairs = [part.split("=", 1) for part in selector.split(",") if part]
    return all(p[0] in labels and (len(p) == 1 or labels[p[0]] == p[1]) for p in pairs)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: Store

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self, status: int, document: Object | bytes) -> None:
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _place(self) -> tuple[str, str, str, str, dict[str, str]]:
        url = urlsplit(self.path)
        parts = url.path.strip("/").split("/")
        parts = parts[2:] if parts[0] == "api" else parts[3:]
        namespace = ""
        if parts[0] == "namespaces":
            namespace, parts = parts[1], parts[2:]
        plural, name, part = (*parts, "", "")[:3]
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        return _BY_PLURAL[plural].name, namespace, name, part, query

    def _body(self) -> Object:
        document: Object = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        return document

    def do_GET(self) -> None:
        kind, namespace, name, part, query = self._place()
        if part == "log":
            return self._answer(200, self.store.logs.get(name, f"log of {name}\n").encode())
        if name:
            found = self.store.get(kind, name, namespace)
            return self._answer(404, {"message": "not found"}) if found is None else self._answer(200, found)
        if query.get("watch"):
            return self._watch(kind, namespace, query)
        with self.store.changed:
            version = str(self.store.n_version)
        items = [
            o
            for o in self.store.of(kind)
            if namespace in ("", o["metadata"]["namespace"]) and selected(o, query.get("labelSelector", ""))
        ]
        return self._answer(200, {"items": items, "metadata": {"resourceVersion": version}})

    def _watch(self, kind: str, namespace: str, query: dict[str, str]) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        seen, deadline = int(query["resourceVersion"]), time.monotonic() + float(query["timeoutSeconds"])
        n = 0
        try:
            while not self.store.is_closed and (time.monotonic() < deadline or self.store.is_silent):
                with self.store.changed:
                    if n == len(self.store.events) or self.store.is_silent:
                        self.store.changed.wait(1.0)
                    fresh = [] if self.store.is_silent else self.store.events[n:]
                    n += len(fresh)
                for version, event, of_kind, found in fresh:
                    if version <= seen or of_kind != kind or namespace not in ("", found["metadata"]["namespace"]):
                        continue
                    if selected(found, query.get("labelSelector", "")):
                        line = json.dumps({"type": event, "object": found}).encode() + b"\n"
                        self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.close_connection = True

    def do_POST(self) -> None:
        kind, namespace, _, _, query = self._place()
        made = self._body()
        made["metadata"]["namespace"] = namespace
        if "dryRun" in query:
            return self._answer(201, made)
        self.store.writes.append(("create", kind, made["metadata"]["name"]))
        try:
            self._answer(201, self.store.create(kind, made))
        except KeyError:
            self._answer(409, {"message": f"{made['metadata']['name']} already exists", "reason": "AlreadyExists"})

    def do_PATCH(self) -> None:
        kind, namespace, name, _, _ = self._place()
        self.store.writes.append(("patch", kind, name))
        try:
            self._answer(200, self.store.patch(kind, namespace, name, self._body()))
        except KeyError:
            self._answer(404, {"message": "not found"})
        except ValueError as error:
            self._answer(409, {"message": str(error), "reason": "Conflict"})

    def do_DELETE(self) -> None:
        kind, namespace, name, _, _ = self._place()
        self.store.writes.append(("delete", kind, name))
        try:
            self.store.delete(kind, namespace, name, self._body().get("preconditions", {}).get("uid", ""))
            self._answer(200, {})
        except KeyError:
            self._answer(404, {"message": "not found"})
        except ValueError as error:
            self._answer(409, {"message": str(error), "reason": "Conflict"})


@contextmanager
def api_server() -> Iterator[tuple[Store, ApiClient]]:
    """Yield a store, and a client of the server that serves it."""
    store = Store()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"store": store}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    configuration = Configuration(host=f"http://127.0.0.1:{server.server_address[1]}")
    configuration.connection_pool_maxsize = 200
    client = ApiClient(configuration)
    try:
        yield store, client
    finally:
        # Else sockets would be left to the garbage collector, which tells some later test of them.
        client.rest_client.pool_manager.clear()
        store.close()
        server.shutdown()
        server.server_close()
        thread.join(5)
