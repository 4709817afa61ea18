"""Sizes worker groups by what their scheduler tells: reads the group's Deployments, decides, acts.

The operator makes Deployments when `replicas` grows. It is never asked to choose which to take away: the chosen ones go
first (each pod retires its worker before it ends: `jobs.pods.retire`), then `replicas` follows, so that the operator
finds the count already right. While it still makes some, nothing is taken away.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from controller.api import Api, Object
from controller.mirror import Mirrored
from controller.objects import Of
from controller.observe import Found
from controller.resources import GROUP, MLJobSpec
from controller.scaling import Decision, Demand, Group, Limits, Worker, decide

# Fewer workers must have been enough for so long before one goes.
QUIET_S = 60.0
# Deployments that the operator has not made by then are not on their way.
SHORT_S = 60.0
WORKER_GROUP = "dask.org/workergroup-name"
# Of a DaskWorkerGroup that is not an MLJob's: how far it may be changed.
MIN, MAX = f"{GROUP}/min-workers", f"{GROUP}/max-workers"
# Which Deployments are being taken away, and how many workers are left then.
INTENTION = f"{GROUP}/leaving"

_log = logging.getLogger("daskyard.controller")


class Autoscaler:
    """Decides and acts for one group after another.

    Parameters
    ----------
    api, mirrors
        Where groups and Deployments are read and changed.
    on_sizes
        Is told of each group how many workers are wanted, ready and idle.
    quiet_s
        See `scaling.Limits`.
    clock
        Seconds.
    """

    def __init__(
        self,
        api: Api,
        mirrors: Mapping[str, Mirrored],
        on_sizes: Callable[[Object, int, int, int], None] | None = None,
        quiet_s: float = QUIET_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api, self._mirrors, self._quiet_s, self._clock = api, mirrors, quiet_s, clock
        self._on_sizes = on_sizes or (lambda group, wanted, ready, idle: None)
        # Since when fewer were enough, by UID. Another process begins the quiet time anew, which is harmless.
        self._enough_since: dict[str, float | None] = {}
        self._short: dict[str, tuple[int, float]] = {}

    def scale_job(self, found: Found, spec: MLJobSpec, whose: Of, state: Mapping[str, Any]) -> None:
        """Size the groups of a job's attempt."""
        runtime = found.runtime
        by_name = {group["metadata"]["name"]: group for group in found.groups}
        pairs = []
        for name, group in spec.workers.items():
            there = by_name.get(f"{whose.cluster}-{name}")
            hardware = runtime.hardware.get(spec.hardware(name)) if runtime is not None else None
            if there is None or hardware is None or "deletionTimestamp" in there["metadata"]:
                return  # the cluster is being taken away, or nobody knows what its workers offer
            pairs.append((there, Limits(group.min, group.max, self._quiet_s), hardware.offers, hardware.threads))
        self._scale(pairs, found.deployments, state)

    def scale_cluster(self, groups: Sequence[Object], deployments: Sequence[Object], state: Mapping[str, Any]) -> None:
        """Size the groups of a DaskCluster that say by annotations how far they may be changed.

        Raises
        ------
        ValueError
            When an annotation is no number, or the least is above the most.
        """
        pairs = []
        for group in groups:
            bounds = bounds_of(group)
            if bounds is not None and "deletionTimestamp" not in group["metadata"]:
                offers, n_threads = _offered(group)
                pairs.append((group, Limits(*bounds, self._quiet_s), offers, n_threads))
        self._scale(pairs, deployments, state)

    def forget(self, uid: str) -> None:
        """Forget a group that has gone."""
        self._enough_since.pop(uid, None)
        self._short.pop(uid, None)

    def _scale(
        self,
        pairs: Sequence[tuple[Object, Limits, Mapping[str, float], int]],
        deployments: Sequence[Object],
        state: Mapping[str, Any],
    ) -> None:
        known = {worker["name"]: worker for worker in state["workers"]}
        demands = [Demand(d["needs"], d["n_tasks"], d["seconds"]) for d in state["demands"]]
        members = [members_of(group, deployments) for group, *_ in pairs]
        seen = [
            _seen(group, limits, offers, n_threads, names, known, self._enough_since.get(group["metadata"]["uid"]))
            for (group, limits, offers, n_threads), names in zip(pairs, members, strict=True)
        ]
        for (group, *_), there, decision in zip(pairs, members, decide(seen, demands, self._clock()), strict=True):
            self._enough_since[group["metadata"]["uid"]] = decision.enough_since
            self._apply(group, there, decision)
            ready = [known[name] for name in map(_name, there) if name in known]
            self._on_sizes(group, decision.n, len(ready), sum(worker["n_tasks"] == 0 for worker in ready))

    def _apply(self, group: Object, members: Sequence[Object], decision: Decision) -> None:
        replicas, by_name = _replicas(group), {_name(member): member for member in members}
        intention = group["metadata"].get("annotations", {}).get(INTENTION)
        leaving = [name for name in (*decision.cancel, *decision.retire) if name in by_name]
        if intention:
            self._remove(group, json.loads(intention), by_name)
        elif decision.n > replicas:
            self._patch(group, decision.n)
        elif len(members) < replicas:
            if self._is_short_for_long(group, len(members)):
                self._patch(
                    group, len(members)
                )  # somebody took them away; what is needed comes again in the next round
        elif leaving and len(members) == replicas:
            wanted = {"n": replicas - len(leaving), "leaving": leaving}
            # Written first: whoever finds fewer Deployments than replicas knows whether more are to come.
            group = self._patch(group, None, json.dumps(wanted))
            self._remove(group, wanted, by_name)

    def _remove(self, group: Object, wanted: Mapping[str, Any], by_name: Mapping[str, Object]) -> None:
        for name in wanted["leaving"]:
            if name in by_name:
                self._api.delete("Deployment", by_name[name])
        self._patch(group, wanted["n"], None)

    def _is_short_for_long(self, group: Object, n: int) -> bool:
        """Whether the operator has made none of the missing ones for a while."""
        uid, now = group["metadata"]["uid"], self._clock()
        last, since = self._short.get(uid, (n, now))
        self._short[uid] = (n, since if last == n else now)
        if last != n or now - since < SHORT_S:
            return False
        del self._short[uid]
        return True

    def _patch(self, group: Object, n: int | None, intention: str | None = None) -> Object:
        metadata = group["metadata"]
        change: Object = {"metadata": {"annotations": {INTENTION: intention}}}
        if n is not None:
            _log.info("%s/%s: %d workers", metadata["namespace"], metadata["name"], n)
            change["spec"] = {"worker": {"replicas": n}}
        there = self._api.patch("DaskWorkerGroup", metadata["namespace"], metadata["name"], change)
        self._mirrors["DaskWorkerGroup"].learn(there)
        return there


def bounds_of(group: Object) -> tuple[int, int] | None:
    """Return fewest and most workers of a group, by its annotations; None where it says nothing of them.

    Raises
    ------
    ValueError
        When one is no number, or the fewest are more than the most.
    """
    annotations = group["metadata"].get("annotations", {})
    if MIN not in annotations and MAX not in annotations:
        return None
    try:
        n_min, n_max = int(annotations.get(MIN, 1)), int(annotations[MAX])
    except (KeyError, ValueError):
        raise ValueError(
            f"{_name(group)}: {MIN} and {MAX} must be whole numbers; write for example '1' and '8'"
        ) from None
    if not 0 <= n_min <= n_max:
        raise ValueError(f"{_name(group)}: {MIN} {n_min} is above {MAX} {n_max}, or negative; swap or align them")
    return n_min, n_max


def _offered(group: Object) -> tuple[dict[str, float], int]:
    """Return what each worker of a group offers, and its threads, by its command line."""
    args = list(map(str, group["spec"]["worker"]["spec"]["containers"][0].get("args", [])))

    def after(option: str) -> str:
        return args[args.index(option) + 1] if option in args[:-1] else ""

    offers = dict(pair.split("=", 1) for pair in after("--resources").replace(",", " ").split() if "=" in pair)
    return {name: float(amount) for name, amount in offers.items()}, int(after("--nthreads") or 1)


def members_of(group: Object, deployments: Sequence[Object]) -> list[Object]:
    """Return the group's Deployments, one a worker, the oldest first; those on their way out are none."""
    found = [
        deployment
        for deployment in deployments
        if deployment["metadata"].get("labels", {}).get(WORKER_GROUP) == _name(group)
        and "deletionTimestamp" not in deployment["metadata"]
    ]
    return sorted(found, key=lambda deployment: (deployment["metadata"]["creationTimestamp"], _name(deployment)))


def _seen(
    group: Object,
    limits: Limits,
    offers: Mapping[str, float],
    n_threads: int,
    members: Sequence[Object],
    known: Mapping[str, Any],
    enough_since: float | None,
) -> Group:
    names = list(map(_name, members))
    workers = [Worker(name, known[name]["n_tasks"], known[name]["idle_s"]) for name in names if name in known]
    # Those that the operator has still to make have no name, and nobody can take them back.
    unmade = [f"{_name(group)}#{n}" for n in range(max(_replicas(group) - len(members), 0))]
    coming = [name for name in names if name not in known] + unmade
    return Group(_name(group), limits, offers, n_threads, workers, coming, enough_since)


def _replicas(group: Object) -> int:
    return int(group["spec"]["worker"]["replicas"])


def _name(found: Object) -> str:
    return str(found["metadata"]["name"])
