"""Who leads: the holder of a Lease, as all of Kubernetes' own controllers settle it.

The package `kubernetes` has an election too; its calls have no deadline, so that a leader whose call hangs would go on
leading beside the next one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from controller.api import Api, ApiError, Conflict, Missing, Object

# A Lease that its holder has not renewed for so long is free.
DURATION_S = 18.0
# A holder that could not renew for so long stops. A last try, after a pause, is two calls: it has stopped before the
# Lease is free, whatever the calls do.
RENEW_S = 9.0
RETRY_S = 2.0
_CALL_S = 3.0

_log = logging.getLogger("daskyard.controller")


class Lease:
    """A Lease, as one candidate sees it.

    Parameters
    ----------
    api, namespace, name
        Which Lease.
    identity
        Who the candidate is; no two are alike.
    clock
        Seconds; those of other machines are never compared with it.
    """

    def __init__(
        self, api: Api, namespace: str, name: str, identity: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._api, self._namespace, self._name, self.identity = api, namespace, name, identity
        self._clock = clock
        self._last: tuple[Any, Any] | None = None
        self._changed_at = 0.0
        self._renewed_at = 0.0

    def acquire(self, stop: threading.Event) -> bool:
        """Wait until the Lease is held; False when told to stop before."""
        while not stop.is_set():
            if self.try_once():
                _log.info("%s leads", self.identity)
                return True
            stop.wait(RETRY_S)
        return False

    def keep(self, stop: threading.Event) -> bool:
        """Renew until told to stop (True), or until that has failed for too long (False)."""
        while not stop.wait(RETRY_S):
            if not self.try_once() and self._clock() - self._renewed_at >= RENEW_S:
                _log.error("%s could not renew the Lease for %.0f s and leads no more", self.identity, RENEW_S)
                return False
        return True

    def try_once(self) -> bool:
        """Take or renew the Lease if it is free or held by this candidate; return whether it is held now."""
        began = self._clock()
        is_held = self._tried()
        if is_held:
            # Others count from when they saw it, which was not before this.
            self._renewed_at = began
        return is_held

    def _tried(self) -> bool:
        try:
            try:
                there = self._api.get("Lease", self._namespace, self._name, timeout_s=_CALL_S)
            except Missing:
                self._api.create(self._made())
                return True
            if self._is_held_by_another(there):
                return False
            change = {
                "metadata": {"resourceVersion": there["metadata"]["resourceVersion"]},
                "spec": self._spec(there.get("spec", {})),
            }
            self._api.patch("Lease", self._namespace, self._name, change, timeout_s=_CALL_S)
        except Conflict:
            return False  # another one was quicker
        except ApiError as error:
            _log.warning("%s", error)
            return False
        return True

    def release(self) -> None:
        """Let the next one lead at once; only who held the Lease may call this, and has stopped leading."""
        try:
            there = self._api.get("Lease", self._namespace, self._name, timeout_s=_CALL_S)
            if there.get("spec", {}).get("holderIdentity") == self.identity:
                version = {"resourceVersion": there["metadata"]["resourceVersion"]}
                change = {"metadata": version, "spec": {"holderIdentity": ""}}
                self._api.patch("Lease", self._namespace, self._name, change, timeout_s=_CALL_S)
        except ApiError as error:
            _log.warning("%s; the next one leads after %.0f s", error, DURATION_S)

    def _is_held_by_another(self, there: Object) -> bool:
        spec = there.get("spec", {})
        holder, record = spec.get("holderIdentity"), (spec.get("holderIdentity"), spec.get("renewTime"))
        if record != self._last:
            self._last, self._changed_at = record, self._clock()
        if not holder or holder == self.identity:
            return False
        return self._clock() - self._changed_at < float(spec.get("leaseDurationSeconds", DURATION_S))

    def _made(self) -> Object:
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._name, "namespace": self._namespace},
            "spec": self._spec({}),
        }

    def _spec(self, before: Object) -> Object:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        is_new = before.get("holderIdentity") != self.identity
        return {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": int(DURATION_S),
            "renewTime": now,
            **({"acquireTime": now, "leaseTransitions": before.get("leaseTransitions", -1) + 1} if is_new else {}),
        }
