"""One round for one MLJob: read what there is, say what follows, do the one thing that is next.

Whatever a round did is found done by the next one, of this process or another: it may end after any call.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ValidationError

from controller import objects, observe, ownership
from controller.api import Api, Conflict, Missing, Object, Refused
from controller.autoscale import Autoscaler
from controller.facts import Attempt, Observed
from controller.lifecycle import Action, Plan, follow
from controller.logs import collected
from controller.mirror import Mirrored, key_of
from controller.objects import UID_LABEL
from controller.observe import Found, seconds_between
from controller.resources import MLJobSpec, MLRuntimeSpec
from controller.schedulers import State, Unreachable
from controller.status import COMPLETE, Told, status_after

# A running job's scheduler is asked so often.
POLL_S = 5.0
# What stands in the way of an action is looked at again: a name that somebody else's object bears, a refusal.
NAME_TAKEN_S, REFUSED_S = 2.0, 10.0
# What goes is gone only when the mirrors say so.
REMOVALS = ("remove runner", "remove cluster", "remove logs", "remove job")
MAKING: Sequence[Action] = (
    "make job file",
    "make cluster",
    "make runner",
    "make workers",
    "make log job",
)
# Of what claims to be a job's and is not, so much is told.
MAX_STRANGERS = 20
_LABELLED = ("ConfigMap", "NetworkPolicy", "DaskCluster", "DaskWorkerGroup", "Job", "Deployment", "Pod")

_log = logging.getLogger("daskyard.controller")
Mirrors = Mapping[str, Mirrored]
Emit = Callable[[Object, str, str, str], None]


class NameTaken(Exception):
    """An object of the name that ours is to have belongs to somebody else."""


@dataclass
class Reconciler:
    """Brings MLJobs forward.

    Parameters
    ----------
    api, mirrors
        Where objects are written and read; the mirrors by kind.
    ask
        Returns what a scheduler of a namespace told, or None where it is only being asked for this job.
    emit
        Takes an Event: of which MLJob, its type, reason and message.
    autoscaler
        Sizes the worker groups of running jobs.
    clock
        Seconds since the epoch.
    on_ready
        Is told how many seconds a job waited for its first attempt's scheduler and fewest workers.
    """

    api: Api
    mirrors: Mirrors
    ask: Callable[[Object, str], State | None]
    emit: Emit
    autoscaler: Autoscaler
    clock: Callable[[], float] = time.time
    on_ready: Callable[[float], None] = lambda seconds: None
    _obstacles: dict[str, tuple[str, str]] = field(default_factory=dict)
    # By MLJob. What is not in the status yet goes there with what changes next; what was found to be no job's is not
    # looked at again.
    _records: dict[str, dict[str, str]] = field(default_factory=dict)
    _strangers: dict[str, set[str]] = field(default_factory=dict)
    _foreign: dict[str, set[str]] = field(default_factory=dict)

    def forget(self, uid: str) -> None:
        """Forget a job that has gone."""
        self._obstacles.pop(uid, None)
        self._records.pop(uid, None)
        self._strangers.pop(uid, None)
        self._foreign.pop(uid, None)

    def reconcile(self, namespace: str, name: str) -> float | None:
        """Go one round; return after how many seconds to come again, None: when something changes."""
        job = self.mirrors["MLJob"].get(namespace, name)
        if job is None or "deletionTimestamp" in job["metadata"]:
            return None
        try:
            spec = observe.spec_of(job)
        except ValidationError as error:
            # Only an MLJob from before the definition has become stricter gets here.
            raise Refused(f"MLJob {namespace}/{name}: {error.errors()[0]['msg']}") from error
        found = self.found(job, spec)
        seen = self._complete(found, spec, observe.observed(found, spec, self.clock()))
        plan = follow(seen)
        obstacle = self._obstacles.get(job["metadata"]["uid"])
        if obstacle is not None and plan.action is not None:
            plan = replace(plan, reason=obstacle[0], message=obstacle[1])
        told = self._told(found, spec, seen, plan)
        job = self._write_status(found, spec, seen, plan, told)
        if plan.action is not None:
            return self._act(job, found, spec, plan)
        if plan.phase == "Running":
            return POLL_S if plan.again_s is None else min(POLL_S, plan.again_s)
        return plan.again_s

    def _act(self, job: Object, found: Found, spec: MLJobSpec, plan: Plan) -> float | None:
        """Do what is next; what stands in its way is said in the next round's status."""
        uid = job["metadata"]["uid"]
        try:
            self._do(found, spec, plan)
        except (NameTaken, Refused) as error:
            reason = "NameTaken" if isinstance(error, NameTaken) else "Refused"
            is_new = self._obstacles.get(uid) != (reason, str(error))
            self._obstacles[uid] = (reason, str(error))
            if is_new:
                _log.warning("MLJob %s/%s: %s", *key_of(job), error)
                return 0.0
            return NAME_TAKEN_S if reason == "NameTaken" else REFUSED_S
        self._obstacles.pop(uid, None)
        return None if plan.action in REMOVALS else 0.0

    def found(self, job: Object, spec: MLJobSpec) -> Found:
        """Return what the mirrors have of a job."""
        runtime, problem = None, ""
        there = self.mirrors["MLRuntime"].get(job["metadata"]["namespace"], spec.runtime)
        if there is not None:
            try:
                runtime = MLRuntimeSpec.model_validate(there["spec"])
            except ValidationError as error:
                first = error.errors()[0]
                place = ".".join(map(str, first["loc"]))
                problem = f"the MLRuntime {spec.runtime} is wrong: {place}: {first['msg']}"
        attempts = observe.attempts_of(observe.status_of(job))
        owned = self._owned(job, attempts)
        found = Found(job, runtime, problem=problem).having(owned)
        # Groups are known by their cluster, and logs by the pods that they are of.
        for actions in (MAKING, ("make workers",), ("collect logs",)) if attempts else ():
            if self._learn(found, spec, attempts[-1], actions):
                found = found.having(self._owned(job, attempts))
        self._tell_strangers(job, owned)
        return found

    def _owned(self, job: Object, attempts: Sequence[Attempt]) -> ownership.Owned:
        """Return what is the job's of all that bears its label."""
        uid = job["metadata"]["uid"]
        records: dict[str, str] | None = None
        if not attempts or attempts[-1].objects is not None:
            kept = {key: value for attempt in attempts for key, value in (attempt.objects or {}).items()}
            records = {**kept, **self._records.get(uid, {})}
        labelled = {kind: self.mirrors[kind].of(uid) for kind in _LABELLED}
        owned = ownership.owned(job, labelled, records, self.clock())
        self._records[uid] = dict(owned.records)
        return owned

    def _learn(self, found: Found, spec: MLJobSpec, attempt: Attempt, actions: Iterable[Action]) -> bool:
        """Take what a process has made that ended before it could note it; return whether there is any."""
        whose, records = observe.of(found.job, attempt.number), self._records[found.job["metadata"]["uid"]]
        unknown = {
            key: item
            for kind, items in found.left.items()
            for item in items
            if (key := ownership.key_of(kind, item["metadata"]["name"])) not in records
            and item["metadata"]["uid"] not in self._foreign.get(whose.uid, ())
        }
        if not unknown or found.runtime is None or found.problem:
            return False
        learned = False
        for action in actions:
            # Logs are read from the API server: only where there is what to compare them with.
            if action == "collect logs" and ownership.key_of("ConfigMap", whose.logs) not in unknown:
                continue
            for made in self._made(found, action, spec, found.runtime, whose, attempt.memory):
                key = ownership.key_of(made["kind"], made["metadata"]["name"])
                if key in unknown and self._is_ours(unknown[key], made, whose):
                    records[key], learned = unknown[key]["metadata"]["uid"], True
        return learned

    def _is_ours(self, there: Object, made: Object, whose: objects.Of) -> bool:
        """Whether an object that nobody noted is as one of ours would be; else it is remembered as somebody else's."""
        is_so = ownership.is_claimed(there, ownership.claimants(whose.uid, self._records[whose.uid]))
        if is_so and made["kind"] == "ConfigMap" and made["metadata"]["name"] == whose.logs:
            is_so = ownership.has_same_logs(there, made)
        elif is_so:
            probe = {**made, "metadata": {**made["metadata"], "name": f"probe-{whose.uid[:8]}"}}
            is_so = ownership.is_same(there, self.api.create(probe, is_dry_run=True))
        if not is_so:
            self._foreign.setdefault(whose.uid, set()).add(there["metadata"]["uid"])
        return is_so

    def _tell_strangers(self, job: Object, owned: ownership.Owned) -> None:
        """Tell once of what says that it is the job's and is not."""
        told = self._strangers.setdefault(job["metadata"]["uid"], set())
        for item in owned.strangers:
            metadata = item["metadata"]
            if metadata["uid"] not in told and len(told) < MAX_STRANGERS:
                told.add(metadata["uid"])
                what = f"{item['kind']} {metadata['namespace']}/{metadata['name']}"
                self.emit(job, "Warning", "Stranger", f"{what} bears the label of this job and is not of it: ignored")

    def _complete(self, found: Found, spec: MLJobSpec, seen: Observed) -> Observed:
        """Look again where the Job's end has come before its pod's: without the pod nobody knows how it ended."""
        runner = seen.runner
        if seen.finished is not None or runner is None or not runner.is_over or runner.exit_code is not None:
            return seen
        metadata = found.job["metadata"]
        pods, _ = self.api.list("Pod", metadata["namespace"], labelSelector=f"{UID_LABEL}={metadata['uid']}")
        for pod in pods:
            self.mirrors["Pod"].learn(pod)
        return observe.observed(self.found(found.job, spec), spec, seen.now)

    def _told(self, found: Found, spec: MLJobSpec, seen: Observed, plan: Plan) -> Told:
        """Ask the scheduler of a running job, and let its worker groups follow its demand."""
        if plan.phase != "Running" or not plan.attempts or plan.attempts[-1].ready is None:
            return Told()
        if seen.attempts and seen.attempts[-1].ready is None:
            return Told()  # it has just become ready: that is written first
        whose = observe.of(found.job, plan.attempts[-1].number)
        try:
            state = self.ask(found.job, f"{whose.cluster}-scheduler")
        except Unreachable as error:
            return Told(problem=str(error), is_asked=True)
        if state is None:
            return Told()
        self.autoscaler.scale_job(found, spec, whose, state)
        return Told(state.get("progress") or {}, is_asked=True)

    def _write_status(self, found: Found, spec: MLJobSpec, seen: Observed, plan: Plan, told: Told) -> Object:
        """Write the status where it has changed; what changed since the job was read is a Conflict."""
        job = found.job
        status = status_after(found, spec, seen, plan, told)
        before = job.get("status") or {}
        # What is removed next may be all that proves them.
        kept = _without_nulls if plan.action in REMOVALS else _without_records
        if kept(status) == kept(before):
            return job
        metadata = job["metadata"]
        change = {"metadata": {"resourceVersion": metadata["resourceVersion"]}, "status": status}
        written = self.api.patch("MLJob", metadata["namespace"], metadata["name"], change, part="status")
        self.mirrors["MLJob"].learn(written)
        self._tell_change(written, before, status)
        return written

    def _tell_change(self, job: Object, before: Object, status: Object) -> None:
        attempts, known = status["attempts"], before.get("attempts") or []
        if known and attempts[0]["readyTime"] and not known[0].get("readyTime"):
            self.on_ready(seconds_between(job["metadata"]["creationTimestamp"], attempts[0]["readyTime"]))
        if len(attempts) > len(known):
            self.emit(job, "Normal", "AttemptStarted", f"attempt {attempts[-1]['number']}")
        for old, new in zip(known, attempts, strict=False):
            if new["endTime"] and not old.get("endTime") and new["reason"] != "Committed":
                text = f"attempt {new['number']}: {new['reason']}: {new['message'] or ''}"
                self.emit(job, "Warning", "AttemptEnded", text)
        if status["phase"] != before.get("phase") and status["phase"] in ("Running", "Succeeded", "Failed"):
            condition = next(c for c in status["conditions"] if c["type"] == COMPLETE)
            kind = "Warning" if status["phase"] == "Failed" else "Normal"
            self.emit(job, kind, status["phase"], f"{condition['reason']}: {condition['message']}".strip(": "))

    def _do(self, found: Found, spec: MLJobSpec, plan: Plan) -> None:
        whose, runtime = observe.of(found.job, plan.attempts[-1].number if plan.attempts else 0), found.runtime
        memory = plan.attempts[-1].memory if plan.attempts else 1.0
        match plan.action:
            case "remove job":
                self.api.delete("MLJob", found.job)
            case "remove runner":
                self._remove("Job", found.left["Job"], whose.cluster)
            case "remove cluster":
                self._remove("DaskWorkerGroup", found.left["DaskWorkerGroup"])
                self._remove("DaskCluster", found.left["DaskCluster"])
            case "remove logs":
                self._remove("Job", found.left["Job"], whose.logs)
                self._remove("ConfigMap", found.left["ConfigMap"], whose.logs)
            case _:
                assert runtime is not None  # `follow` waits for it
                for made in self._made(found, plan.action, spec, runtime, whose, memory):
                    self._make(whose, made)

    def _made(
        self,
        found: Found,
        action: Action | None,
        spec: MLJobSpec,
        runtime: MLRuntimeSpec,
        whose: objects.Of,
        memory: float,
    ) -> list[Object]:
        """Return what an action makes, in this order: that the last of them is there says that all are."""
        match action:
            case "make job file":
                return [*objects.network_policies(whose, runtime), objects.job_file(whose, spec)]
            case "make runner":
                return [objects.runner(whose, spec, runtime, memory)]
            case "make cluster":
                return [objects.cluster(whose, spec, runtime, memory)]
            case "make workers":
                return objects.worker_groups(whose, spec, runtime, memory)
            case "collect logs":
                return [objects.log_files(whose, collected(self.api, found, whose))]
            case "make log job":
                return [objects.log_job(whose, spec, runtime)]
        raise AssertionError(action)

    def _make(self, whose: objects.Of, made: Object) -> None:
        kind, namespace, name = made["kind"], whose.namespace, made["metadata"]["name"]
        mirror, records = self.mirrors[kind], self._records.setdefault(whose.uid, {})
        key = ownership.key_of(kind, name)
        there = mirror.get(namespace, name)
        if there is None:
            try:
                there = self.api.create(made)
                records[key] = there["metadata"]["uid"]
            except Conflict:
                try:
                    there = self.api.get(kind, namespace, name)
                except Missing:
                    raise NameTaken(f"{kind} {name} has just gone") from None
        if records.get(key) != there["metadata"]["uid"]:
            if not self._is_ours(there, made, whose):
                if name == whose.logs and ownership.is_claimed(there, {whose.uid}):
                    self.api.delete(kind, there)  # logs have grown, so nobody can tell whose it is
                raise NameTaken(f"{kind} {name} is there and not of this job; it waits until that is gone")
            records[key] = there["metadata"]["uid"]
        mirror.learn(there)

    def _remove(self, kind: str, found: Any, name: str = "") -> None:
        for item in found:
            if (not name or item["metadata"]["name"] == name) and "deletionTimestamp" not in item["metadata"]:
                self.api.delete(kind, item)


def _without_records(status: Object) -> Any:
    """Return a status without what alone is worth no write."""
    attempts = [{**attempt, "objects": None} for attempt in status.get("attempts") or ()]
    return _without_nulls({**status, "attempts": attempts})


def _without_nulls(value: Any) -> Any:
    """Return a status as the API server keeps it: what is null or an empty map or list is not there."""
    if isinstance(value, dict):
        return {k: v for k, child in value.items() if (v := _without_nulls(child)) not in (None, {}, [])}
    if isinstance(value, list):
        return [_without_nulls(child) for child in value]
    return value
