"""What stands in for a node: it says of each pod what a kubelet would, by a script."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from kubernetes.client import ApiClient, ApiException, CoreV1Api

from controller.api import Api, ApiError, Object
from controller.mirror import Mirror

NODE = "hand"
COMMITTED = {"outcome": "committed", "metrics": {"inertia": 7.5}}
_CAPACITY = {"cpu": "256", "memory": "1Ti", "pods": "2000", "ephemeral-storage": "1Ti", "nvidia.com/gpu": "16"}
_BEAT_S = 10.0
_STEP_S = 0.05


@dataclass(frozen=True)
class Life:
    """What becomes of a pod.

    Attributes
    ----------
    seconds
        How long it runs; None: until it is deleted.
    exit_code, said
        How its container ends, and its last word.
    preflight_code, preflight_said
        The same of its first container, where it has one that comes before.
    waits_for
        Why its containers do not start; it may change, as the function is asked each time.
    """

    seconds: float | None = None
    exit_code: int = 0
    said: object = field(default_factory=dict)
    preflight_code: int = 0
    preflight_said: object = field(default_factory=dict)
    waits_for: str = ""


Script = Callable[[Object], Life]


class Kubelet:
    """Plays all pods of the node.

    Attributes
    ----------
    runners
        By namespace and MLJob: the lives of its runners by attempt, the last one for all that follow.
    script
        Says for each pod what becomes of it; by default `runners`, and whatever else is there runs, logs end well.
    """

    def __init__(self, client: ApiClient) -> None:
        self.runners: dict[tuple[str, str], list[Life]] = {}
        self.script: Script = self.by_runners
        self._core, self._api = CoreV1Api(client), Api(client)
        self._stop = threading.Event()
        self._mirror = Mirror(self._api, "Pod")
        self._since: dict[str, float] = {}

    def by_runners(self, pod: Object) -> Life:
        """Return what becomes of a pod where nothing else is said."""
        labels: Mapping[str, str] = pod["metadata"].get("labels", {})
        role = labels.get("app.kubernetes.io/component")
        if role == "logs":
            return Life(0.0)
        if role != "runner":
            return Life()
        lives = self.runners.get((pod["metadata"]["namespace"], labels["daskyard.dev/job"]), [Life()])
        return lives[min(int(labels["daskyard.dev/attempt"]), len(lives)) - 1]

    def run(self) -> None:
        """Play until told to stop."""
        threading.Thread(target=self._mirror.run, args=(self._stop,), daemon=True).start()
        beat = 0.0
        while not self._stop.wait(_STEP_S):
            if time.monotonic() >= beat:
                self._beat()
                beat = time.monotonic() + _BEAT_S
            for pod in self._mirror.all():
                if pod["spec"].get("nodeName") == NODE:
                    with suppress(ApiError, ApiException):
                        self._play(pod)

    def stop(self) -> None:
        """Play no more."""
        self._stop.set()

    def _beat(self) -> None:
        conditions = [{"type": "Ready", "status": "True", "reason": "Played", "lastHeartbeatTime": _now()}]
        status = {"capacity": _CAPACITY, "allocatable": _CAPACITY, "conditions": conditions}
        with suppress(ApiException):
            self._core.patch_node_status(NODE, {"status": status})

    def _play(self, pod: Object) -> None:
        metadata = pod["metadata"]
        if "deletionTimestamp" in metadata:
            self._core.delete_namespaced_pod(metadata["name"], metadata["namespace"], grace_period_seconds=0)
            return
        before = pod.get("status", {})
        if before.get("phase") in ("Succeeded", "Failed"):
            return
        life = self.script(pod)
        uid = metadata["uid"]
        if life.waits_for:
            self._say_once(pod, _waiting(pod, life.waits_for))
            return
        is_started = "startTime" in before and before.get("phase") == "Running"
        if not is_started:
            self._since[uid] = time.monotonic()
            failed = life.preflight_code if _first(pod) else 0
            status = _failed_first(pod, life) if failed else _running(pod, life)
            self._say_once(pod, status)
        elif life.seconds is not None and time.monotonic() - self._since.get(uid, 0.0) >= life.seconds:
            self._say_once(pod, _over(pod, life))

    def _say_once(self, pod: Object, status: Object) -> None:
        there = pod.get("status", {})
        if there.get("phase") == status["phase"] and _reasons(there) == _reasons(status):
            return
        self._mirror.learn(self._write(pod, status))

    def _write(self, pod: Object, status: Object) -> Object:
        metadata = pod["metadata"]
        return self._api.patch("Pod", metadata["namespace"], metadata["name"], {"status": status}, part="status")


def _reasons(status: Object) -> list[str]:
    statuses = status.get("containerStatuses", []) + status.get("initContainerStatuses", [])
    return [str(s.get("state", {}).get("waiting", {}).get("reason", "")) for s in statuses]


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _first(pod: Object) -> list[Object]:
    return list(pod["spec"].get("initContainers", []))


def _status(container: Object, state: Object, is_ready: bool = False) -> Object:
    common = {"name": container["name"], "image": container["image"], "imageID": "", "restartCount": 0}
    return {**common, "ready": is_ready, "started": is_ready, "state": state}


def _ended(exit_code: int, said: object) -> Object:
    message = said if isinstance(said, str) else json.dumps(said)
    at = {"startedAt": _now(), "finishedAt": _now()}
    return {"terminated": {"exitCode": exit_code, "message": message, "reason": "Ended", **at}}


def _conditions(is_ready: bool) -> list[Object]:
    value = str(is_ready)
    return [{"type": name, "status": value} for name in ("Initialized", "ContainersReady", "Ready")]


def _first_over(pod: Object, life: Life) -> list[Object]:
    return [_status(c, _ended(life.preflight_code, life.preflight_said)) for c in _first(pod)]


def _waiting(pod: Object, reason: str) -> Object:
    state = {"waiting": {"reason": reason, "message": f"{reason}: played"}}
    held, rest = (
        ("initContainerStatuses", _first(pod)) if _first(pod) else ("containerStatuses", pod["spec"]["containers"])
    )
    return {"phase": "Pending", "conditions": _conditions(False), held: [_status(c, state) for c in rest]}


def _running(pod: Object, life: Life) -> Object:
    containers = [_status(c, {"running": {"startedAt": _now()}}, True) for c in pod["spec"]["containers"]]
    return {
        "phase": "Running",
        "startTime": _now(),
        "podIP": "10.0.0.1",
        "conditions": _conditions(True),
        "initContainerStatuses": _first_over(pod, life),
        "containerStatuses": containers,
    }


def _failed_first(pod: Object, life: Life) -> Object:
    return {
        "phase": "Failed",
        "startTime": _now(),
        "conditions": _conditions(False),
        "initContainerStatuses": _first_over(pod, life),
    }


def _over(pod: Object, life: Life) -> Object:
    containers = [_status(c, _ended(life.exit_code, life.said)) for c in pod["spec"]["containers"]]
    return {
        "phase": "Failed" if life.exit_code else "Succeeded",
        "conditions": _conditions(False),
        "containerStatuses": containers,
    }


@contextmanager
def kubelet(client: ApiClient) -> Iterator[Kubelet]:
    """Yield one that plays the pods of a node of its own."""
    made = Kubelet(client)
    thread = threading.Thread(target=made.run, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.stop()
        thread.join(10)


def node() -> dict[str, Any]:
    """Return the node."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": NODE, "labels": {"kubernetes.io/os": "linux", "kubernetes.io/hostname": NODE}},
        "status": {"capacity": _CAPACITY, "allocatable": _CAPACITY},
    }
