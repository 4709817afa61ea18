"""Take kopf's finalizer off the objects that the operator leaves behind.

Runs once, after ``helm uninstall`` has removed the operator. The operator has timers on DaskClusters and
DaskAutoscalers, and kopf marks what has a timer, so that it can stop the timer before the object goes. With nobody left
to take the mark off, deleting such an object, or its namespace, would wait for ever. Other finalizers stay.

Arguments: the namespaces to go through; none means all.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from typing import Any

from kubernetes import client, config

GROUP, VERSION = "kubernetes.dask.org", "v1"
PLURALS = ("daskclusters", "daskautoscalers")
FINALIZER = "kopf.zalando.org/KopfFinalizerMarker"
PAUSE_S = 5.0  # an operator that is still ending may put one mark more
REQUEST_TIMEOUT_S = 30
NOT_FOUND, CONFLICT = 404, 409

log = logging.getLogger("release_finalizers")


def marked(api: client.CustomObjectsApi, plural: str, namespaces: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the objects of one kind that bear the finalizer."""
    what = {"group": GROUP, "version": VERSION, "plural": plural, "_request_timeout": REQUEST_TIMEOUT_S}
    try:
        if namespaces:
            lists = [api.list_namespaced_custom_object(namespace=namespace, **what) for namespace in namespaces]
        else:
            lists = [api.list_cluster_custom_object(**what)]
    except client.ApiException as error:
        if error.status == NOT_FOUND:  # the definitions are gone, and the objects with them
            return
        raise
    for found in lists:
        for item in found["items"]:
            if FINALIZER in item["metadata"].get("finalizers", []):
                yield item


def release(api: client.CustomObjectsApi, plural: str, item: dict[str, Any]) -> None:
    """Take the finalizer off one object, unless it has changed or gone meanwhile: the next pass sees to it."""
    metadata = item["metadata"]
    others = [finalizer for finalizer in metadata["finalizers"] if finalizer != FINALIZER]
    where = f"{plural} {metadata['namespace']}/{metadata['name']}"
    try:
        api.patch_namespaced_custom_object(
            GROUP,
            VERSION,
            metadata["namespace"],
            plural,
            metadata["name"],
            {"metadata": {"resourceVersion": metadata["resourceVersion"], "finalizers": others}},
            _content_type="application/merge-patch+json",
            _request_timeout=REQUEST_TIMEOUT_S,
        )
    except client.ApiException as error:
        if error.status not in (NOT_FOUND, CONFLICT):
            raise
        log.info("%s: %s; looking again", where, error.reason)
    else:
        log.info("%s: released", where)


def release_all(api: client.CustomObjectsApi, namespaces: list[str], pause_s: float = PAUSE_S) -> None:
    """Go through all objects until a pass finds none that is marked. The Job's deadline ends what never ends."""
    while True:
        found = [(plural, item) for plural in PLURALS for item in marked(api, plural, namespaces)]
        for plural, item in found:
            release(api, plural, item)
        if not found:
            log.info("no object bears %s", FINALIZER)
            return
        time.sleep(pause_s)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stdout)
    config.load_incluster_config()
    release_all(client.CustomObjectsApi(), sys.argv[1:])
