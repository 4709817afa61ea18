"""The Kubernetes API as the controller uses it: objects as JSON has them, few calls, errors by what to do about them.

The client of the `kubernetes` package knows the server, who asks and how to speak TLS; its typed models are left out,
because a controller that mirrors thousands of objects has no use for a second form of each.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from kubernetes.client import ApiClient
from urllib3 import BaseHTTPResponse, Timeout
from urllib3.exceptions import HTTPError

Object = dict[str, Any]

CALL_S = 20.0
PAGE = 500
# A watch that says nothing for longer than it was asked to last is dead.
WATCH_SLACK_S = 15.0


@dataclass(frozen=True)
class Kind:
    """A kind of objects: where the API server keeps it."""

    name: str
    path: str
    plural: str


def _kinds() -> dict[str, Kind]:
    daskyard, dask = "/apis/daskyard.dev/v1alpha1", "/apis/kubernetes.dask.org/v1"
    listed = [
        ("MLJob", daskyard, "mljobs"),
        ("MLRuntime", daskyard, "mlruntimes"),
        ("DaskCluster", dask, "daskclusters"),
        ("DaskWorkerGroup", dask, "daskworkergroups"),
        ("ConfigMap", "/api/v1", "configmaps"),
        ("Pod", "/api/v1", "pods"),
        ("Event", "/api/v1", "events"),
        ("Job", "/apis/batch/v1", "jobs"),
        ("Deployment", "/apis/apps/v1", "deployments"),
        ("NetworkPolicy", "/apis/networking.k8s.io/v1", "networkpolicies"),
        ("Lease", "/apis/coordination.k8s.io/v1", "leases"),
    ]
    return {name: Kind(name, path, plural) for name, path, plural in listed}


KINDS = _kinds()


class ApiError(Exception):
    """The API server refused a call, or did not answer; the message has verb, object and reason."""


class Missing(ApiError):
    """There is no such object."""


class Conflict(ApiError):
    """The object has changed since it was read, or one of that name exists."""


class Gone(ApiError):
    """The version to watch from is too old: everything is to be read anew."""


class Refused(ApiError):
    """The API server will not have it: not allowed, or not valid."""


class Unavailable(ApiError):
    """No answer, or one that says try again."""


_STATUSES = {404: Missing, 409: Conflict, 410: Gone, 400: Refused, 401: Refused, 403: Refused, 422: Refused}


class Api:
    """Calls to an API server.

    Parameters
    ----------
    client
        Knows the server and who asks.
    on_call
        Is told verb, kind and outcome (`ok` or the error's class) of each call.
    """

    def __init__(self, client: ApiClient, on_call: Callable[[str, str, str], None] | None = None) -> None:
        self._configuration = client.configuration
        self._host = str(client.configuration.host).rstrip("/")
        self._pool = client.rest_client.pool_manager
        self._on_call = on_call or (lambda verb, kind, outcome: None)

    def get(self, kind: str, namespace: str, name: str, timeout_s: float = CALL_S) -> Object:
        """Return an object."""
        return self._json("get", kind, namespace, name, timeout_s=timeout_s)

    def list(self, kind: str, namespace: str = "", **selectors: str) -> tuple[list[Object], str]:
        """Return all objects, of one namespace or all, and the version to watch from.

        `selectors` are `labelSelector` and `fieldSelector`.
        """
        items: list[Object] = []
        query: dict[str, Any] = {**selectors, "limit": PAGE}
        while True:
            page = self._json("list", kind, namespace, query=query)
            items += page["items"]
            query["continue"] = page["metadata"].get("continue", "")
            if not query["continue"]:
                return items, page["metadata"]["resourceVersion"]

    def watch(self, kind: str, namespace: str, version: str, seconds: int, **selectors: str) -> Iterator[Object]:
        """Yield events from a version on, for so many seconds.

        Raises
        ------
        Gone
            When the version is too old.
        """
        query = {**selectors, "watch": "true", "resourceVersion": version, "timeoutSeconds": seconds}
        query["allowWatchBookmarks"] = "true"
        response = self._call("watch", kind, namespace, query=query, timeout_s=seconds + WATCH_SLACK_S)
        try:
            rest = b""
            for chunk in response.stream(amt=None, decode_content=False):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in filter(None, lines):
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        raise _STATUSES.get(event["object"].get("code", 0), Unavailable)(event["object"].get("message"))
                    yield event
        except HTTPError as error:
            raise Unavailable(f"watch {kind}: {error}") from error
        finally:
            # The connection may be in the middle of an answer: it is of no use to anybody else.
            response.close()
            response.release_conn()

    def create(self, made: Object, *, is_dry_run: bool = False) -> Object:
        """Make an object, or only find out what the server would make of it, and return it as the server has it.

        Raises
        ------
        Conflict
            When there is one of that name.
        """
        query = {"dryRun": "All"} if is_dry_run else None
        return self._json("create", made["kind"], made["metadata"]["namespace"], query=query, body=made)

    def patch(
        self, kind: str, namespace: str, name: str, change: Object, part: str = "", timeout_s: float = CALL_S
    ) -> Object:
        """Change an object by a merge patch, or a `part` of it (status); a `resourceVersion` in it must be right."""
        return self._json("patch", kind, namespace, name, part=part, body=change, timeout_s=timeout_s)

    def delete(self, kind: str, found: Object) -> None:
        """Delete the very object that was found; what it owns follows. One that is gone already is no error."""
        metadata = found["metadata"]
        body = {"propagationPolicy": "Background", "preconditions": {"uid": metadata["uid"]}}
        with suppress(Missing, Conflict):  # Conflict: another one has its name now
            self._json("delete", kind, metadata["namespace"], metadata["name"], body=body)

    def log(self, namespace: str, pod: str, container: str, n_lines: int) -> bytes:
        """Return the last lines of a container's log."""
        query = {"container": container, "tailLines": n_lines, "timestamps": "true"}
        response = self._call("get", "Pod", namespace, pod, part="log", query=query)
        return bytes(response.data)

    def _json(self, verb: str, kind: str, namespace: str, name: str = "", **options: Any) -> Object:
        document: Object = json.loads(self._call(verb, kind, namespace, name, **options).data)
        return document

    def _call(
        self,
        verb: str,
        kind: str,
        namespace: str,
        name: str = "",
        *,
        part: str = "",
        query: dict[str, Any] | None = None,
        body: Object | None = None,
        timeout_s: float = CALL_S,
    ) -> Any:
        known = KINDS[kind]
        parts = [known.path, *(("namespaces", namespace) if namespace else ()), known.plural, name, part]
        url = self._host + "/".join(filter(None, parts))
        if query:
            url += "?" + urlencode({key: value for key, value in query.items() if value != ""})
        headers = {"Accept": "application/json", **self._authorization()}
        if body is not None:
            headers["Content-Type"] = f"application/{'merge-patch+' if verb == 'patch' else ''}json"
        what = f"{verb} {kind} {'/'.join(filter(None, (namespace, name, part)))}"
        try:
            answer = self._pool.request(
                {"create": "POST", "patch": "PATCH", "delete": "DELETE"}.get(verb, "GET"),
                url,
                body=None if body is None else json.dumps(body).encode(),
                headers=headers,
                timeout=Timeout(connect=min(CALL_S, timeout_s), read=timeout_s),
                preload_content=verb != "watch",
                retries=False,
            )
            if answer.status >= 400:
                raise _error(answer, what)
        except (HTTPError, OSError) as error:
            self._on_call(verb, kind, "Unavailable")
            raise Unavailable(f"{what}: no answer ({error})") from error
        except ApiError as error:
            self._on_call(verb, kind, type(error).__name__)
            raise
        self._on_call(verb, kind, "ok")
        return answer

    def _authorization(self) -> dict[str, str]:
        # Asked for each time: a token of a service account is renewed in its file.
        schemes = self._configuration.auth_settings().values()
        return {s["key"]: s["value"] for s in schemes if s["in"] == "header" and s["value"]}


def _error(answer: BaseHTTPResponse, what: str) -> ApiError:
    content = answer.data
    try:
        reason = json.loads(content)["message"]
    except (TypeError, ValueError, KeyError):
        reason = f"status {answer.status}"
    return _STATUSES.get(answer.status, Unavailable)(f"{what}: {reason}")
