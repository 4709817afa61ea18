"""Which objects are a job's: by the UIDs that the controller noted, and not by what they say of themselves."""

from __future__ import annotations

from typing import Any

import pytest

from controller import ownership
from controller.api import Object
from controller.ownership import GRACE_S, Owned, owned

MADE, NOW = "2026-11-30T12:00:00Z", 1796040000.0 + GRACE_S + 1
JOB: Object = {"metadata": {"name": "bio", "namespace": "team", "uid": "job"}}
RECORDS = {"Job/bio-1": "runner", "DaskCluster/bio-1": "cluster", "DaskWorkerGroup/bio-1-cpu": "group"}
CONTAINERS = {"containers": [{"name": "runner", "args": ["run"]}]}


def an(kind: str, name: str, uid: str, owner: str = "job", namespace: str = "team", **content: Any) -> Object:
    owners = [{"uid": owner, "controller": True, "kind": content.pop("owner_kind", ""), "name": content.pop("by", "")}]
    metadata = {"name": name, "namespace": namespace, "uid": uid, "creationTimestamp": content.pop("made", MADE)}
    metadata |= {"labels": content.pop("labels", {}), "ownerReferences": owners if owner else []}
    return {"kind": kind, "metadata": metadata, **content}


def pod(name: str, owner: str = "runner", role: str = "runner", **content: Any) -> Object:
    labels = {"app.kubernetes.io/component": role, **content.pop("labels", {})}
    return an("Pod", name, name, owner, labels=labels, **{"spec": CONTAINERS, **content})


RUNNER = an("Job", "bio-1", "runner", spec={"template": {"spec": CONTAINERS}})
CLUSTER = an("DaskCluster", "bio-1", "cluster")
# The operator has clusters adopt their groups.
GROUP = an("DaskWorkerGroup", "bio-1-cpu", "group", "cluster", spec={"cluster": "bio-1"})
DEFAULT = an("DaskWorkerGroup", "bio-1-default", "default", "cluster", spec={"cluster": "bio-1"})
DEPLOYMENT = an("Deployment", "bio-1-cpu-worker-a", "deployment", "group")
WORKER = pod(
    "worker",
    "set",
    "worker",
    owner_kind="ReplicaSet",
    by="bio-1-cpu-worker-a-h",
    labels={"pod-template-hash": "h"},
)


def of(*items: Object, records: dict[str, str] | None = RECORDS) -> Owned:
    labelled: dict[str, list[Object]] = {}
    for item in (RUNNER, CLUSTER, GROUP, DEFAULT, DEPLOYMENT, WORKER, *items):
        labelled.setdefault(item["kind"], []).append(item)
    return owned(JOB, labelled, records, NOW)


def names(items: Any) -> list[str]:
    return sorted(item["metadata"]["name"] for item in items)


@pytest.mark.parametrize("records", [RECORDS, None], ids=["noted", "from before that"])
def test_what_the_controller_made_and_what_came_of_it_is_the_jobs(records: dict[str, str] | None) -> None:
    found = of(pod("bio-1-x"), records=records)
    assert names(found.ours["Job"]) == ["bio-1"]
    assert names(found.ours["DaskWorkerGroup"]) == ["bio-1-cpu", "bio-1-default"]
    assert names(found.ours["Pod"]) == ["bio-1-x", "worker"]
    assert found.strangers == []
    assert found.records.items() >= {**RECORDS, "Pod/bio-1": "bio-1-x"}.items()


@pytest.mark.parametrize(
    "forged",
    [
        pod("owner is the MLJob", "job"),
        pod("no owner", ""),
        pod("elsewhere", namespace="other"),
        pod("other program", spec={"containers": [{"name": "runner", "args": ["sh"]}]}),
        pod("other container", spec={"containers": [{"name": "other", "args": ["run"]}]}),
        pod("worker of nobody", "job", "worker"),
        pod("worker by name", "set", "worker", owner_kind="ReplicaSet", by="bio-1-cpu-worker-b-h"),
        an("Job", "bio-1", "another", spec={}),
        an("Job", "bio-2", "runner of another attempt", spec={}),
        an("ConfigMap", "bio-1", "file"),
        an("DaskCluster", "bio-2", "another cluster"),
        an("DaskWorkerGroup", "bio-1-gpu", "another group", "cluster", spec={"cluster": "bio-1"}),
        an("Deployment", "bio-1-cpu-worker-c", "c", "job"),
    ],
    ids=lambda item: f"{item['kind']}, {item['metadata']['name']}",
)
def test_what_only_says_so_is_a_stranger(forged: Object) -> None:
    found = of(pod("bio-1-x"), forged)
    assert names(found.ours["Pod"]) == ["bio-1-x", "worker"]
    assert found.strangers == [forged]
    assert forged not in [item for items in found.ours.values() for item in items]


def test_of_a_jobs_pods_the_one_that_was_seen_first_counts() -> None:
    first, later = pod("bio-1-x"), pod("a-copy", made="2026-11-30T12:00:01Z")
    assert names(of(first, later).ours["Pod"]) == ["bio-1-x", "worker"]
    known = {**RECORDS, "Pod/bio-1": "bio-1-x"}
    backdated = pod("a-copy", made="2026-11-30T11:00:00Z")
    assert names(of(first, backdated, records=known).ours["Pod"]) == ["bio-1-x", "worker"]


def test_nobody_is_called_a_stranger_before_who_made_it_is_seen() -> None:
    young = pod("early", "unseen", made="2026-11-30T12:00:10Z")
    assert of(young).strangers == []


def test_objects_are_alike_where_they_do_the_same() -> None:
    made = {**RUNNER, "spec": {"template": {"metadata": {"labels": {"a": "b"}}, "spec": CONTAINERS}}}
    labels = {"a": "b", "controller-uid": "u", "batch.kubernetes.io/job-name": "n"}
    there = {**RUNNER, "spec": {"selector": {}, "template": {"metadata": {"labels": labels}, "spec": CONTAINERS}}}
    assert ownership.is_same(there, made)
    changed = {**CONTAINERS, "hostNetwork": True}
    other = {**RUNNER, "spec": {"template": {"metadata": {"labels": {"a": "b"}}, "spec": changed}}}
    assert not ownership.is_same(other, made)
    groups = [{**GROUP, "spec": {"cluster": "bio-1", "worker": {"replicas": n}}} for n in (1, 5)]
    assert ownership.is_same(*groups)
