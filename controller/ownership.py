"""Which objects are a job's: those that the controller made, and what Kubernetes made of them.

Whoever may make pods can write any label and any owner into them, in any namespace, so neither proves anything. What
the controller made it knows by UID, which nobody can choose: the status keeps them. A pod is a Job's where that Job is
its controller, and it was the first that was seen; it is a worker where one of our groups' Deployments made it. Pure
functions.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import datetime

from controller.api import Object
from controller.objects import ROLE_LABEL
from controller.resources import OPERATORS_GROUP

# Kinds that the controller makes itself.
MADE = ("ConfigMap", "NetworkPolicy", "DaskCluster", "DaskWorkerGroup", "Job")
# Mirrors are filled one after another: what is younger may be ours, and its maker not seen yet.
GRACE_S = 15.0
EVENTS_SUFFIX = ".events.txt"
_JOB_LABELS = {f"{prefix}{name}" for prefix in ("", "batch.kubernetes.io/") for name in ("controller-uid", "job-name")}
_HASH_LABEL = "pod-template-hash"
_JOB_ROLES, _DASK_ROLES = ("runner", "logs"), ("scheduler", "worker")

Claims = Mapping[str, Sequence[Object]]
Records = Mapping[str, str]


@dataclass(frozen=True)
class Owned:
    """What is a job's, by kind; what claims to be; and what was learned.

    Attributes
    ----------
    ours
        By kind.
    claimed
        By kind, of what the controller makes: what names the MLJob as its controller. It goes with it in any case, so
        it may be removed with it.
    strangers
        What bears the job's label, and is none of it.
    records
        The UIDs known before, and those of pods that were seen for the first time.
    """

    ours: Claims = field(default_factory=dict)
    claimed: Claims = field(default_factory=dict)
    strangers: Sequence[Object] = ()
    records: Records = field(default_factory=dict)


def key_of(kind: str, name: str) -> str:
    """Return what an object is recorded under; the pod of a Job under the name of the Job."""
    return f"{kind}/{name}"


def owned(job: Object, labelled: Claims, records: Records | None, now: float) -> Owned:
    """Return what is the job's of what bears its label, wherever it is.

    `records` has UIDs by `key_of`; None, of a job from before they were kept, makes all claims true.
    """
    namespace, uid = job["metadata"]["namespace"], job["metadata"]["uid"]
    near = {kind: [i for i in items if i["metadata"]["namespace"] == namespace] for kind, items in labelled.items()}
    known = dict(records or {})
    claimed: dict[str, list[Object]] = {}
    for kind in MADE:
        claimed[kind] = [item for item in near.get(kind, ()) if is_claimed(item, claimants(uid, known))]
        if records is None:
            known |= {key_of(kind, _name(item)): _uid(item) for item in claimed[kind]}
    ours = {kind: [i for i in items if known.get(key_of(kind, _name(i))) == _uid(i)] for kind, items in claimed.items()}
    # The operator makes these, and a group of its own, without workers.
    others = [group for group in claimed["DaskWorkerGroup"] if group not in ours["DaskWorkerGroup"]]
    ours["DaskWorkerGroup"] += [group for group in others if _is_operators(group)]
    makers = claimants(uid, known) - {uid}
    makers |= {_uid(group) for group in ours["DaskWorkerGroup"]}
    ours["Deployment"] = [d for d in near.get("Deployment", ()) if is_claimed(d, makers)]
    deployments = set(map(_name, ours["Deployment"]))
    pods = []
    for pod in sorted(near.get("Pod", ()), key=_age):
        role = _label(pod, ROLE_LABEL)
        if role in _JOB_ROLES:
            maker = next((j for j in ours["Job"] if _uid(j) == _controller(pod).get("uid")), None)
            if maker is None or not _runs(pod, maker):
                continue
            if known.setdefault(key_of("Pod", _name(maker)), _uid(pod)) == _uid(pod):
                pods.append(pod)
        elif role in _DASK_ROLES and _deployment_of(pod) in deployments:
            pods.append(pod)
    ours["Pod"] = pods
    mine = {_uid(item) for items in ours.values() for item in items}
    strangers = [
        item
        for items in labelled.values()
        for item in items
        if _uid(item) not in mine and "deletionTimestamp" not in item["metadata"] and now - _created(item) > GRACE_S
    ]
    return Owned(ours, claimed, strangers, known)


def claimants(uid: str, records: Records) -> set[str]:
    """Return the UIDs of whoever may own what is the job's: the MLJob, and its clusters, which adopt their groups."""
    return {uid, *(value for key, value in records.items() if key.startswith("DaskCluster/"))}


def is_claimed(found: Object, owners: Set[str]) -> bool:
    """Whether an object names one of these as its controller."""
    return _controller(found).get("uid") in owners


def is_same(there: Object, made: Object) -> bool:
    """Whether two objects of a kind, both as the API server has them, are alike in all that they do.

    How many workers a group has is not: that changes as the job goes.
    """
    labels, wanted = (item["metadata"].get("labels", {}) for item in (there, made))
    return bool(wanted.items() <= labels.items()) and _content(there) == _content(made)


def has_same_logs(there: Object, made: Object) -> bool:
    """Whether two ConfigMaps hold the same logs; what happened meanwhile does not count."""
    one, other = (
        {name: text for name, text in item.get("data", {}).items() if not name.endswith(EVENTS_SUFFIX)}
        for item in (there, made)
    )
    return one == other and there.get("immutable") is True


def _content(found: Object) -> Object:
    content: Object = {key: copy.deepcopy(found.get(key)) for key in ("spec", "data", "binaryData", "immutable")}
    spec = content["spec"]
    if found["kind"] == "DaskWorkerGroup":
        del spec["worker"]["replicas"]
    elif found["kind"] == "Job":
        # The API server puts its UID into these.
        spec.pop("selector", None)
        labels = spec["template"]["metadata"]["labels"]
        spec["template"]["metadata"]["labels"] = {k: v for k, v in labels.items() if k not in _JOB_LABELS}
    return content


def _is_operators(group: Object) -> bool:
    return _name(group) == f"{group['spec']['cluster']}-{OPERATORS_GROUP}"


def _runs(pod: Object, job: Object) -> bool:
    """Whether the pod runs what the Job's template says; images may have been renamed on the way in."""

    def programs(spec: Object) -> dict[str, tuple[object, object]]:
        containers = [*spec.get("initContainers", ()), *spec.get("containers", ())]
        return {c["name"]: (c.get("command"), c.get("args")) for c in containers}

    wanted, there = programs(job["spec"]["template"]["spec"]), programs(pod["spec"])
    return wanted.items() <= there.items()


def _deployment_of(pod: Object) -> str | None:
    """Return the name of the Deployment whose ReplicaSet the pod names as its controller."""
    maker, ending = _controller(pod), f"-{_label(pod, _HASH_LABEL)}"
    if maker.get("kind") != "ReplicaSet" or not maker["name"].endswith(ending):
        return None
    return str(maker["name"].removesuffix(ending))


def _controller(found: Object) -> Object:
    return next((o for o in found["metadata"].get("ownerReferences", ()) if o.get("controller")), {})


def _label(found: Object, name: str) -> str:
    return str(found["metadata"].get("labels", {}).get(name, ""))


def _age(found: Object) -> tuple[str, str]:
    return found["metadata"]["creationTimestamp"], _name(found)


def _created(found: Object) -> float:
    return datetime.fromisoformat(found["metadata"]["creationTimestamp"].replace("Z", "+00:00")).timestamp()


def _name(found: Object) -> str:
    return str(found["metadata"]["name"])


def _uid(found: Object) -> str:
    return str(found["metadata"]["uid"])
