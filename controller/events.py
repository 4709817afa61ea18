"""Events of MLJobs: what `kubectl describe` shows. Each is told once, by a name that follows from what it says."""

from __future__ import annotations

import hashlib
import logging
from datetime import UTC, datetime

from controller.api import Api, ApiError, Conflict, Object
from controller.resources import GROUP, VERSION

MESSAGE_MAX = 1024
_log = logging.getLogger("daskyard.controller")


class Events:
    """Writes Events; one that cannot be written is logged and forgotten."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def __call__(self, job: Object, kind: str, reason: str, message: str) -> None:
        """Tell of an MLJob, by type (Normal, Warning), reason and message."""
        metadata = job["metadata"]
        said = f"{metadata['uid']}/{reason}/{message}"
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        made = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "name": f"{metadata['name']}.{hashlib.sha256(said.encode()).hexdigest()[:16]}",
                "namespace": metadata["namespace"],
            },
            "involvedObject": {
                "apiVersion": f"{GROUP}/{VERSION}",
                "kind": "MLJob",
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
            },
            "type": kind,
            "reason": reason,
            "message": message[:MESSAGE_MAX],
            "source": {"component": "daskyard-controller"},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        try:
            self._api.create(made)
        except Conflict:
            pass  # told before
        except ApiError as error:
            _log.warning("%s", error)
