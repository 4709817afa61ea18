"""The controller: mirrors of what there is, a queue of jobs to look at, and threads that bring them forward."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from controller.api import Api, ApiError, Conflict, Object
from controller.autoscale import Autoscaler, bounds_of
from controller.events import Events
from controller.metrics import Metrics
from controller.mirror import WATCH_S, Mirror, key_of
from controller.objects import JOB_LABEL, UID_LABEL
from controller.queue import Queue
from controller.reconcile import POLL_S, Reconciler
from controller.schedulers import Ask, Poll, Schedulers, State, Unreachable

# What has gone wrong is tried again after this pause, which doubles.
BACKOFF_S, BACKOFF_MAX_S = 0.5, 60.0
CONFLICT_S = 0.2
# A mirror that has heard nothing for so long is dead, whatever its thread believes.
STALL_S = 2.5 * WATCH_S
N_THREADS = 8

_OURS = JOB_LABEL
_OF_CLUSTERS = "dask.org/cluster-name"
_log = logging.getLogger("daskyard.controller")


@dataclass(frozen=True)
class Key:
    """What is to be looked at: an MLJob, or a DaskCluster that is somebody else's and scaled by us."""

    kind: str
    namespace: str
    name: str


class Controller:
    """Everything but leading and the command line.

    Parameters
    ----------
    api
        The API server.
    namespaces
        Which are served; empty: all.
    ask
        Asks schedulers.
    """

    def __init__(self, api: Api, namespaces: Sequence[str] = (), ask: Ask | None = None, quiet_s: float = 60.0) -> None:
        self._queue: Queue[Key] = Queue()
        self._failures: dict[Key, int] = {}
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._parts = [
            Mirror(api, kind, namespace, selector, label, self._changed)
            for namespace in namespaces or [""]
            for kind, selector, label in (
                ("MLRuntime", "", ""),
                ("ConfigMap", _OURS, UID_LABEL),
                ("NetworkPolicy", _OURS, UID_LABEL),
                ("DaskCluster", "", UID_LABEL),
                ("DaskWorkerGroup", "", UID_LABEL),
                ("Job", _OURS, UID_LABEL),
                ("Pod", _OURS, UID_LABEL),
                ("Deployment", _OF_CLUSTERS, UID_LABEL),
                ("MLJob", "", ""),
            )
        ]
        self.mirrors = {
            kind: Several([m for m in self._parts if m.kind == kind]) for kind in {m.kind for m in self._parts}
        }
        self.metrics = Metrics(self.mirrors["MLJob"].all, lambda: len(self._queue))
        self._poll = Poll(ask or Schedulers())
        self._autoscaler = Autoscaler(api, self.mirrors, self.metrics.on_sizes, quiet_s)
        self._reconciler = Reconciler(
            api,
            self.mirrors,
            self._ask_for,
            Events(api),
            self._autoscaler,
            on_ready=self.metrics.starts.observe,
        )

    def start_mirrors(self) -> None:
        """Begin to mirror; a standby does that too, so that it can lead at once."""
        for mirror in self._parts:
            self._start(lambda mirror=mirror: mirror.run(self._stop), f"mirror {mirror.kind}")

    def lead(self) -> None:
        """Begin to act, once everything is mirrored."""
        for mirror in self._parts:
            while not mirror.is_filled.wait(1.0):
                if self._stop.is_set():
                    return
        for n in range(N_THREADS):
            self._start(self._work, f"rounds {n}")

    def stop(self, timeout_s: float = 5.0) -> None:
        """End; what has been begun is finished where it takes no longer than the timeout."""
        self._stop.set()
        self._queue.close()
        self._poll.close()
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            if thread.name.startswith("rounds"):
                thread.join(max(deadline - time.monotonic(), 0.0))

    @property
    def is_ready(self) -> bool:
        """Whether everything has been mirrored once."""
        return all(mirror.is_filled.is_set() for mirror in self._parts)

    @property
    def problem(self) -> str:
        """Why this process is of no use any more, or nothing."""
        for mirror in self._parts:
            if mirror.silent_s > STALL_S:
                return f"nothing heard of {mirror.kind} for {mirror.silent_s:.0f} s"
        dead = [thread.name for thread in self._threads if not thread.is_alive()]
        return f"dead: {', '.join(dead)}" if dead and not self._stop.is_set() else ""

    def _start(self, target: object, name: str) -> None:
        thread = threading.Thread(target=target, name=name, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _changed(self, kind: str, found: Object) -> None:
        namespace, name = key_of(found)
        labels = found["metadata"].get("labels", {})
        if self.mirrors[kind].get(namespace, name) is None:
            self._forget(kind, found)
        if kind == "MLJob":
            self._queue.add(Key("MLJob", namespace, name))
        elif kind == "MLRuntime":
            for job in self.mirrors["MLJob"].all():
                if key_of(job)[0] == namespace and job["spec"].get("runtime") == name:
                    self._queue.add(Key("MLJob", *key_of(job)))
        elif JOB_LABEL in labels:
            self._queue.add(Key("MLJob", namespace, labels[JOB_LABEL]))
        elif kind == "DaskWorkerGroup":
            self._queue.add(Key("DaskCluster", namespace, found["spec"]["cluster"]))

    def _forget(self, kind: str, gone: Object) -> None:
        """Drop what is remembered of an object that has gone."""
        namespace, name = key_of(gone)
        match kind:
            case "MLJob":
                self._reconciler.forget(gone["metadata"]["uid"])
                self._failures.pop(Key(kind, namespace, name), None)
            case "DaskCluster":
                self._poll.forget(namespace, f"{name}-scheduler")
            case "DaskWorkerGroup":
                self._autoscaler.forget(gone["metadata"]["uid"])
                self.metrics.forget(gone)

    def _work(self) -> None:
        while (key := self._queue.take()) is not None:
            again: float | None = None
            try:
                with self.metrics.rounds.time():
                    again = self._round(key)
                self._failures.pop(key, None)
            except Conflict as error:
                _log.debug("%s", error)
                again = CONFLICT_S
            except Exception as error:
                again = self._pause(key)
                self.metrics.failures.labels(type(error).__name__).inc()
                is_told = isinstance(error, ApiError)
                _log.error("%s %s/%s: %s", key.kind, key.namespace, key.name, error, exc_info=not is_told)
            finally:
                self._queue.done(key)
            if again is not None:
                self._queue.add_after(key, again)

    def _pause(self, key: Key) -> float:
        n = self._failures.get(key, 0)
        self._failures[key] = n + 1
        return float(min(BACKOFF_S * 2.0**n, BACKOFF_MAX_S))

    def _round(self, key: Key) -> float | None:
        if key.kind == "MLJob":
            return self._reconciler.reconcile(key.namespace, key.name)
        return self._scale_cluster(key)

    def _ask_for(self, job: Object, service: str) -> State | None:
        key = Key("MLJob", *key_of(job))
        return self._poll.take(key.namespace, service, lambda: self._queue.add(key))

    def _scale_cluster(self, key: Key) -> float | None:
        """Size the annotated groups of a DaskCluster that is not an MLJob's."""
        groups = [
            group
            for group in self.mirrors["DaskWorkerGroup"].all()
            if key_of(group)[0] == key.namespace and group["spec"]["cluster"] == key.name
        ]
        try:
            if not any(bounds_of(group) for group in groups):
                return None
            deployments = [d for d in self.mirrors["Deployment"].all() if key_of(d)[0] == key.namespace]
            state = self._poll.take(key.namespace, f"{key.name}-scheduler", lambda: self._queue.add(key))
            if state is None:
                return None
            self._autoscaler.scale_cluster(groups, deployments, state)
        except (Unreachable, ValueError) as error:
            _log.warning("DaskCluster %s/%s: not scaled: %s", key.namespace, key.name, error)
        return POLL_S


class Several:
    """The mirrors of a kind in several namespaces, as one."""

    def __init__(self, parts: Sequence[Mirror]) -> None:
        self._parts = parts

    def get(self, namespace: str, name: str) -> Object | None:
        """Return an object, or None."""
        return next((found for part in self._parts if (found := part.get(namespace, name)) is not None), None)

    def of(self, value: str) -> list[Object]:
        """Return the objects whose label has this value."""
        return [found for part in self._parts for found in part.of(value)]

    def all(self) -> list[Object]:
        """Return all objects."""
        return [found for part in self._parts for found in part.all()]

    def learn(self, found: Object) -> None:
        """Take in what the API server answered to a write."""
        for part in self._parts:
            if part.serves(found):
                part.learn(found)
