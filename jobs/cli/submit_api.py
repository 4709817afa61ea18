"""The Kubernetes API as far as who submits jobs needs it, and its errors by what to do about them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from jobs.cli.submit_manifest import API_VERSION, KIND, Object
from jobs.errors import DaskyardError, SpecError

Query = Mapping[str, str] | None

_CONNECT_S, _ANSWER_S = 5.0, 20.0
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_TRY_AGAIN = {408, 429}


class NoAnswerError(DaskyardError):
    """The API server did not answer, or asked for patience: worth another try."""

    exit_code = 75


class NoSuchJobError(SpecError):
    """There is no MLJob of that name."""


class NameTakenError(SpecError):
    """There is an MLJob of that name."""


class Cluster:
    """A namespace of a Kubernetes cluster, as the kubeconfig or the pod's service account knows it.

    Parameters
    ----------
    context : str, optional
        Of the kubeconfig; by default the current one.
    namespace : str, optional
        By default the context's.

    Raises
    ------
    SpecError
        When the `kubernetes` package is missing, or nothing says where the cluster is.
    """

    def __init__(self, context: str | None = None, namespace: str | None = None) -> None:
        try:
            # A second of imports, which the other commands should not wait for.
            from kubernetes import client
        except ImportError as error:
            raise SpecError(
                "the package kubernetes, which talks to clusters, is missing; pip install daskyard[kubernetes]"
            ) from error
        self._configuration = client.Configuration()
        own = _configure(self._configuration, context)
        self.context = context
        self.namespace = namespace or own
        self._server = str(self._configuration.host).rstrip("/")
        # It knows how to speak TLS with this server; the client's typed objects differ from version to version.
        self._pool = client.ApiClient(self._configuration).rest_client.pool_manager

    def options(self, name: str) -> str:
        """Return how a job is named on a command line: that of kubectl, or ours."""
        context = f" --context {self.context}" if self.context else ""
        return f"{name} --namespace {self.namespace}{context}"

    def place(self, name: str) -> str:
        """Return how a job is named in messages."""
        return f"MLJob {self.namespace}/{name}"

    def create(self, job: Object) -> Object:
        """Make a job and return it as the API server has it.

        Raises
        ------
        NameTakenError
            When there is one of that name.
        SpecError
            When the API server refuses it.
        NoAnswerError
            When there is no answer; it may have been made or not.
        """
        return self._create(job)

    def with_defaults(self, spec: Object) -> Object:
        """Return a spec as the API server would keep it; nothing is made."""
        # The name is one that cannot be taken.
        job = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"generateName": "submit-"}, "spec": spec}
        kept: Object = self._create(job, dryRun="All")["spec"]
        return kept

    def get(self, name: str) -> Object:
        """Return a job.

        Raises
        ------
        NoSuchJobError
            When there is none of that name.
        SpecError
            When one may not ask for it.
        NoAnswerError
            When there is no answer.
        """
        return self._json(self.place(name), f"{self._jobs}/{quote(name)}")

    def pods(self, selector: str) -> list[Object]:
        """Return the pods with these labels, oldest first."""
        pods: list[Object] = self._json("pods", self._pods, {"labelSelector": selector})["items"]
        return sorted(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))

    def log(self, pod: str, container: str, since_s: int | None) -> str:
        """Return a container's log of the last seconds, or all of it, each line after its time."""
        query = {"container": container, "timestamps": "true"}
        if since_s is not None:
            query["sinceSeconds"] = str(since_s)
        place = f"log of pod {self.namespace}/{pod}"
        return self._asked(place, f"{self._pods}/{pod}/log", query).decode("utf-8", errors="replace")

    @property
    def _jobs(self) -> str:
        return f"/apis/{API_VERSION}/namespaces/{quote(self.namespace)}/mljobs"

    @property
    def _pods(self) -> str:
        return f"/api/v1/namespaces/{quote(self.namespace)}/pods"

    def _create(self, job: Object, **query: str) -> Object:
        # An unknown key is refused with its name, not dropped.
        query["fieldValidation"] = "Strict"
        job = {**job, "metadata": {**job["metadata"], "namespace": self.namespace}}
        return self._json(self.place(job["metadata"].get("name", "")), self._jobs, query, job)

    def _json(
        self, place: str, path: str, query: Mapping[str, str] | None = None, body: Object | None = None
    ) -> Object:
        answer = self._asked(place, path, query, body)
        try:
            document: Object = json.loads(answer)
        except ValueError as error:
            raise SpecError(f"{self._server}: what answers is no API server; check the kubeconfig") from error
        return document

    def _asked(self, place: str, path: str, query: Query, body: Object | None = None) -> bytes:
        from urllib3 import Timeout
        from urllib3.exceptions import HTTPError

        try:
            answer = self._pool.request(
                "GET" if body is None else "POST",
                f"{self._server}{path}?{urlencode(query or {})}",
                body=None if body is None else json.dumps(body).encode(),
                headers={"Content-Type": "application/json", "Accept": "application/json", **self._authorization()},
                timeout=Timeout(connect=_CONNECT_S, read=_ANSWER_S),
                # Who follows a job has patience of its own, and says so.
                retries=False,
            )
        except (HTTPError, OSError) as error:
            cause = str(error).rpartition(": ")[2]
            raise NoAnswerError(f"{self._server}: no answer from the API server ({cause})") from error
        if answer.status >= 400:
            raise self._refusal(place, answer.status, answer.data)
        return bytes(answer.data)

    def _authorization(self) -> dict[str, str]:
        # Asked for each time: a token that runs out is renewed.
        schemes: Any = self._configuration.auth_settings().values()
        return {s["key"]: s["value"] for s in schemes if s["in"] == "header" and s["value"]}

    def _refusal(self, place: str, status: int, body: bytes) -> DaskyardError:
        said = _message(body)
        if status in _TRY_AGAIN or status >= 500:
            return NoAnswerError(f"{self._server}: the API server cannot answer ({said or f'status {status}'})")
        if status == 401:
            return SpecError(f"{self._server}: the API server does not know you; log in to the cluster again")
        if status == 403:
            return SpecError(f"{place}: {said}; ask those who run the cluster, or name another --namespace")
        if status == 404 and not said:
            return SpecError(f"{self._server}: it knows no MLJobs; have charts/platform installed, or name a --context")
        if status == 404 and "namespaces" in said:
            return SpecError(f"{place}: {said}; name another --namespace, or make this one")
        if status == 404:
            return NoSuchJobError(f"{place}: there is none; kubectl get mljobs --namespace {self.namespace} lists them")
        if status == 409:
            return NameTakenError(f"{place}: it exists; choose another --name")
        return SpecError(f"{place}: {said or f'refused with status {status}'}; correct it")


def _configure(configuration: Any, context: str | None) -> str:
    """Fill in where the cluster is and who asks; return the namespace that goes with it."""
    from kubernetes import config

    # The package looks for the variable once, when it is imported.
    file = os.environ.get("KUBECONFIG") or None
    try:
        config.load_kube_config(file, context, configuration)
        contexts, current = config.list_kube_config_contexts(file)
    except config.ConfigException as error:
        if context is None and "KUBERNETES_SERVICE_HOST" in os.environ:
            config.load_incluster_config(client_configuration=configuration)
            return _NAMESPACE_FILE.read_text(encoding="utf-8").strip()
        asked = f"--context {context}: " if context else ""
        raise SpecError(f"{asked}{error}; see: kubectl config get-contexts") from error
    chosen = next((each for each in contexts if each["name"] == context), current)
    return str(chosen["context"].get("namespace") or "default")


def _message(body: bytes) -> str:
    """Return what the API server says; what is no Status comes from no resource of its."""
    try:
        message = json.loads(body)["message"]
    except (ValueError, TypeError, KeyError):
        return ""
    return " ".join(str(message).split())
