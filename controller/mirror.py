"""What the API server has of one kind, kept up to date by a thread: list once, then watch.

Readers get whole objects that nobody changes. A watch is asked to end after a minute and begun anew where it ended, so
that a connection that has died is noticed: `silent_s` grows, and with it the liveness probe fails.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Protocol

from controller.api import Api, ApiError, Gone, Object

WATCH_S = 60
BACKOFF_S, BACKOFF_MAX_S = 1.0, 30.0

_log = logging.getLogger("daskyard.controller")
Key = tuple[str, str]


def key_of(found: Object) -> Key:
    """Namespace and name."""
    return found["metadata"]["namespace"], found["metadata"]["name"]


class Mirrored(Protocol):
    """Objects of one kind, wherever they are kept."""

    def get(self, namespace: str, name: str) -> Object | None:
        """Return an object, or None."""
        ...

    def of(self, value: str) -> list[Object]:
        """Return the objects whose label has this value, by name."""
        ...

    def all(self) -> list[Object]:
        """Return all objects."""
        ...

    def learn(self, found: Object) -> None:
        """Take in what the API server answered to a write, so that the next look does not miss it."""
        ...


class Mirror:
    """Objects of one kind in one namespace, or all.

    Parameters
    ----------
    api
        Where they are read.
    kind, namespace, selector
        Which ones: an empty namespace means all, an empty label selector all of them.
    label
        The label by which `of` finds objects.
    on_change
        Is told of each object that came, changed or went, from the mirror's thread.
    """

    def __init__(
        self,
        api: Api,
        kind: str,
        namespace: str = "",
        selector: str = "",
        label: str = "",
        on_change: Callable[[str, Object], None] | None = None,
    ) -> None:
        self.kind = kind
        self.is_filled = threading.Event()
        self._api, self._namespace, self._selector, self._label = api, namespace, selector, label
        self._on_change = on_change or (lambda kind, found: None)
        self._lock = threading.Lock()
        self._objects: dict[Key, Object] = {}
        self._by_label: defaultdict[str, set[Key]] = defaultdict(set)
        self._heard = time.monotonic()

    @property
    def silent_s(self) -> float:
        """For how many seconds the API server has said nothing, not even that a watch ended."""
        return time.monotonic() - self._heard

    def get(self, namespace: str, name: str) -> Object | None:
        """Return an object, or None."""
        return self._objects.get((namespace, name))

    def of(self, value: str) -> list[Object]:
        """Return the objects whose label has this value, by name."""
        with self._lock:
            return [self._objects[key] for key in sorted(self._by_label.get(value, ()))]

    def all(self) -> list[Object]:
        """Return all objects."""
        with self._lock:
            return list(self._objects.values())

    def serves(self, found: Object) -> bool:
        """Whether the object is in this mirror's namespace."""
        return self._namespace in ("", found["metadata"]["namespace"])

    def learn(self, found: Object) -> None:
        """Take in what the API server answered to a write, so that the next look does not miss it."""
        with self._lock:
            before = self._objects.get(key_of(found))
            if before is None or _version(before) < _version(found):
                self._put(found)

    def run(self, stop: threading.Event) -> None:
        """Keep up to date until told to stop."""
        pause, version = BACKOFF_S, ""
        while not stop.is_set():
            try:
                if not version:
                    version = self._fill()
                version = self._follow(version, stop)
                pause = BACKOFF_S
            except Gone:
                version = ""
            except ApiError as error:
                _log.warning("%s; again in %.0f s", error, pause)
                stop.wait(pause)
                pause, version = min(2 * pause, BACKOFF_MAX_S), ""

    def _selectors(self) -> dict[str, str]:
        return {"labelSelector": self._selector} if self._selector else {}

    def _fill(self) -> str:
        items, version = self._api.list(self.kind, self._namespace, **self._selectors())
        self._heard = time.monotonic()
        found = {key_of(item): item for item in items}
        with self._lock:
            gone = [item for key, item in self._objects.items() if key not in found]
            self._objects, self._by_label = {}, defaultdict(set)
            for item in items:
                self._put(item)
        self.is_filled.set()
        self._tell([*items, *gone])
        return version

    def _follow(self, version: str, stop: threading.Event) -> str:
        for event in self._api.watch(self.kind, self._namespace, version, WATCH_S, **self._selectors()):
            self._heard = time.monotonic()
            found = event["object"]
            version = found["metadata"]["resourceVersion"]
            if event["type"] != "BOOKMARK":
                with self._lock:
                    if event["type"] == "DELETED":
                        self._drop(found)
                    else:
                        self._put(found)
                self._tell([found])
            if stop.is_set():
                break
        self._heard = time.monotonic()
        return version

    def _tell(self, found: Iterable[Object]) -> None:
        for item in found:
            self._on_change(self.kind, item)

    def _put(self, found: Object) -> None:
        self._drop(found)
        # Who wrote which field: a third of an object, and of no use here.
        found["metadata"].pop("managedFields", None)
        found.setdefault("kind", self.kind)
        self._objects[key_of(found)] = found
        value = found["metadata"].get("labels", {}).get(self._label)
        if value:
            self._by_label[value].add(key_of(found))

    def _drop(self, found: Object) -> None:
        before = self._objects.pop(key_of(found), None)
        value = (before or {}).get("metadata", {}).get("labels", {}).get(self._label)
        if value:
            self._by_label[value].discard(key_of(found))
            if not self._by_label[value]:
                del self._by_label[value]


def _version(found: Object) -> int:
    return int(found["metadata"]["resourceVersion"])
