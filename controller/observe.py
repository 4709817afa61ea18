"""From objects as the API server has them to what `lifecycle.follow` looks at.

Pure functions; times in objects are RFC 3339, ours are seconds since the epoch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from controller.api import Object
from controller.facts import Attempt, Observed, Pod, Role, Runner, Wanted
from controller.objects import ATTEMPT_LABEL, ROLE_LABEL, Of, problems
from controller.ownership import Owned
from controller.resources import MLJobSpec, MLJobStatus, MLRuntimeSpec
from jobs.errors import SpecError
from jobs.plain import plain_tree

MESSAGE_MAX = 1024
_ROLES: Mapping[str, Role] = {"scheduler": "scheduler", "worker": "worker", "runner": "runner", "logs": "logs"}


@dataclass(frozen=True)
class Found:
    """What there is of a job, all attempts; objects that are on their way out count as there.

    `records` has the UIDs by which they are known to be the job's, and `left` what is not, but names it as its owner.
    """

    job: Object
    runtime: MLRuntimeSpec | None = None
    config_maps: Sequence[Object] = ()
    clusters: Sequence[Object] = ()
    groups: Sequence[Object] = ()
    jobs: Sequence[Object] = ()
    pods: Sequence[Object] = ()
    deployments: Sequence[Object] = ()
    records: Mapping[str, str] = field(default_factory=dict)
    left: Mapping[str, Sequence[Object]] = field(default_factory=dict)
    problem: str = ""
    """Why the runtime that there is cannot be read."""

    def having(self, owned: Owned) -> Found:
        """Return this with what is the job's."""
        ours = owned.ours
        return replace(
            self,
            config_maps=ours["ConfigMap"],
            clusters=ours["DaskCluster"],
            groups=ours["DaskWorkerGroup"],
            jobs=ours["Job"],
            pods=ours["Pod"],
            deployments=ours["Deployment"],
            records=owned.records,
            left=owned.claimed,
        )


def seconds(time: str | None) -> float | None:
    """Return seconds since the epoch of a time of Kubernetes."""
    return None if time is None else datetime.fromisoformat(time.replace("Z", "+00:00")).timestamp()


def seconds_between(start: str, end: str) -> float:
    """Return the seconds from one time of Kubernetes to another."""
    return (seconds(end) or 0.0) - (seconds(start) or 0.0)


def spec_of(job: Object) -> MLJobSpec:
    """Return an MLJob's spec.

    Raises
    ------
    pydantic.ValidationError
        When the API server took what the model refuses.
    """
    return MLJobSpec.model_validate(job["spec"])


def status_of(job: Object) -> MLJobStatus:
    """Return what was said of a job last."""
    return MLJobStatus.model_validate(job.get("status") or {})


def of(job: Object, attempt: int) -> Of:
    """Return whose objects those of an attempt are."""
    metadata = job["metadata"]
    return Of(metadata["name"], metadata["namespace"], metadata["uid"], attempt)


def attempts_of(status: MLJobStatus) -> list[Attempt]:
    """Return the attempts of a status."""
    return [
        Attempt(
            number=attempt.number,
            start=seconds(attempt.start_time) or 0.0,
            ready=seconds(attempt.ready_time),
            end=seconds(attempt.end_time),
            reason=attempt.reason or "",
            message=attempt.message or "",
            memory=attempt.memory_factor,
            logs=attempt.logs or "",
            objects=attempt.objects,
        )
        for attempt in status.attempts
    ]


def observed(found: Found, spec: MLJobSpec, now: float) -> Observed:
    """Return what is to be looked at."""
    job, status = found.job, status_of(found.job)
    attempts = attempts_of(status)
    created = seconds(job["metadata"]["creationTimestamp"]) or now
    seen = Observed(
        wanted=_wanted(found, spec),
        now=now,
        start=seconds(status.start_time) or created,
        attempts=attempts,
        has_runtime=found.runtime is not None,
        has_remains=any(found.left.get(kind) for kind in ("DaskCluster", "DaskWorkerGroup")),
        finished=_finished(status),
    )
    if not attempts:
        return seen
    attempts[-1] = replace(attempts[-1], objects=_records_of(found, attempts))
    whose = of(job, attempts[-1].number)
    pods = [pod for pod in found.pods if pod["metadata"]["labels"].get(ATTEMPT_LABEL) == str(whose.attempt)]
    runner_pods = _in_role(pods, "runner")
    runner = runner_of(_named(found.jobs, whose.cluster), runner_pods)
    groups = {f"{whose.cluster}-{name}" for name in spec.workers}
    return replace(
        seen,
        has_job_file=_named(found.config_maps, whose.cluster) is not None,
        has_cluster=_named(found.clusters, whose.cluster) is not None,
        has_workers=groups <= set(map(_name, found.groups)),
        runner=runner,
        has_runner_left=_stays(_named(found.left.get("Job", ()), whose.cluster)),
        is_input_ready=any(map(_has_passed_preflight, runner_pods)),
        is_scheduler_ready=any(map(is_ready, _in_role(pods, "scheduler"))),
        scheduler_start=max(map(_started, _in_role(pods, "scheduler")), default=0.0),
        n_workers=sum(map(is_ready, _in_role(pods, "worker"))),
        troubles=[*_troubles(pods, now), *_not_let_in(found.deployments, whose.attempt)],
        manifest=_committed(runner_pods) if runner is not None and runner.is_over else None,
        has_log_files=_named(found.config_maps, whose.logs) is not None,
        log_job=runner_of(_named(found.jobs, whose.logs), _in_role(pods, "logs")),
    )


def _records_of(found: Found, attempts: Sequence[Attempt]) -> dict[str, str]:
    """Return the UIDs that are to be kept with the last attempt: those that no other one has."""
    others = {key for attempt in attempts[:-1] for key in attempt.objects or ()}
    return {key: uid for key, uid in sorted(found.records.items()) if key not in others}


def _wanted(found: Found, spec: MLJobSpec) -> Wanted:
    return Wanted(
        backoff_limit=spec.backoff_limit,
        active_deadline_s=spec.active_deadline_seconds,
        pending_deadline_s=spec.pending_deadline_seconds,
        ttl_s=spec.ttl_seconds_after_finished,
        is_suspended=spec.suspend,
        min_workers=sum(group.min for group in spec.workers.values()),
        problem=problem_of(found, spec),
    )


def problem_of(found: Found, spec: MLJobSpec) -> str:
    """Return why the job can never run, or nothing: by the pipeline's models, or by the runtime."""
    try:
        spec.job_spec(_name(found.job))
    except SpecError as error:
        return str(error)
    if found.problem:
        return found.problem
    return problems(spec, found.runtime) if found.runtime is not None else ""


def _finished(status: MLJobStatus) -> tuple[Any, float] | None:
    at = seconds(status.completion_time)
    return None if at is None else (status.phase, at)


def runner_of(job: Object | None, pods: Sequence[Object]) -> Runner | None:
    """Return how a Job of one pod stands; None where there is no such Job, or it is on its way out."""
    if job is None or "deletionTimestamp" in job["metadata"]:
        return None
    over = {c["type"]: c for c in job.get("status", {}).get("conditions", []) if c["status"] == "True"}
    if not over.keys() & {"Complete", "Failed"}:
        return Runner()
    is_disrupted = over.get("Failed", {}).get("reason") == "PodFailurePolicy" or any(map(_is_disrupted, pods))
    # That its preflight ended well says nothing of how the pod did.
    ends = [end for pod in pods for end in _ends(pod)]
    main = [end for pod in pods for end in _terminated(pod, "containerStatuses")]
    failed = next((end for end in ends if end["exitCode"] != 0), main[-1] if main else None)
    if failed is None:
        said = over.get("Failed", {}).get("message", "")
        return Runner(is_over=True, is_disrupted=is_disrupted, last_line=said)
    told = result_of(failed)
    code = failed["exitCode"]
    return Runner(
        is_over=True,
        # What was killed had no say: it is as if the pod had gone.
        exit_code=None if code in (137, 143) and failed.get("reason") != "OOMKilled" else code,
        is_disrupted=is_disrupted,
        error=str(told.get("error", "")),
        last_line=str(told.get("message", "")) or _last_line(failed),
    )


def result_of(terminated: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a container of ours told as its last word; what is no number, which no status can hold, is null."""
    try:
        told = plain_tree(json.loads(terminated.get("message") or "{}"))
    except (ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}


def _last_line(terminated: Mapping[str, Any]) -> str:
    if result_of(terminated).get("outcome") == "running":
        return f"killed in the midst of it ({terminated.get('reason', 'no reason told')})"
    lines = str(terminated.get("message") or "").strip().splitlines()
    return lines[-1].strip() if lines else str(terminated.get("reason", ""))


def _committed(pods: Iterable[Object]) -> dict[str, Any] | None:
    for pod in pods:
        for end in _ends(pod):
            told = result_of(end)
            if end["exitCode"] == 0 and told.get("outcome") == "committed":
                metrics = told.get("metrics")
                return metrics if isinstance(metrics, dict) else {}
    return None


_CONTAINERS = ("initContainerStatuses", "containerStatuses")


def _statuses(pod: Object) -> list[Object]:
    return [status for key in _CONTAINERS for status in pod.get("status", {}).get(key, [])]


def _terminated(pod: Object, key: str) -> list[Object]:
    statuses = pod.get("status", {}).get(key, [])
    return [s["state"]["terminated"] for s in statuses if "terminated" in s.get("state", {})]


def _ends(pod: Object) -> list[Object]:
    """Return how the pod's containers ended, those that start up first."""
    return [end for key in _CONTAINERS for end in _terminated(pod, key)]


def _has_passed_preflight(pod: Object) -> bool:
    starts = pod.get("status", {}).get("initContainerStatuses", [])
    return bool(starts) and all(s.get("state", {}).get("terminated", {}).get("exitCode") == 0 for s in starts)


def _is_disrupted(pod: Object) -> bool:
    return _is_true(pod, "DisruptionTarget")


def _is_true(found: Object, condition: str) -> bool:
    return any(c["type"] == condition and c["status"] == "True" for c in _conditions(found))


def _conditions(found: Object) -> list[Object]:
    return list(found.get("status", {}).get("conditions", []))


def _started(pod: Object) -> float:
    """Return when the pod's first container was started; 0 where it does not run."""
    statuses = pod.get("status", {}).get("containerStatuses", [])
    running = [s["state"]["running"]["startedAt"] for s in statuses if "running" in s.get("state", {})]
    return (seconds(running[0]) or 0.0) if running else 0.0


def is_ready(pod: Object) -> bool:
    """Whether the pod says that it is ready, and stays."""
    return _is_true(pod, "Ready") and "deletionTimestamp" not in pod["metadata"]


def _troubles(pods: Iterable[Object], now: float) -> list[Pod]:
    troubles = []
    for pod in pods:
        role = pod["metadata"]["labels"].get(ROLE_LABEL)
        if role not in _ROLES or "deletionTimestamp" in pod["metadata"]:
            continue
        since = now - (seconds(pod["metadata"]["creationTimestamp"]) or now)
        for waits_for, message in _waits(pod):
            troubles.append(Pod(_name(pod), _ROLES[role], waits_for, message, since))
        for status in _statuses(pod):
            ends = [status.get(key, {}).get("terminated", {}) for key in ("state", "lastState")]
            if any(end.get("reason") == "OOMKilled" for end in ends):
                troubles.append(Pod(_name(pod), _ROLES[role], since=since, ended_by="OOMKilled"))
    return troubles


def _waits(pod: Object) -> list[tuple[str, str]]:
    for condition in _conditions(pod):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return [(condition.get("reason", "Unschedulable"), condition.get("message", "")[:MESSAGE_MAX])]
    return [
        (waiting["reason"], waiting.get("message", "")[:MESSAGE_MAX])
        for status in _statuses(pod)
        if (waiting := status.get("state", {}).get("waiting", {})).get("reason", "PodInitializing")
        not in ("PodInitializing", "ContainerCreating")
    ]


def _not_let_in(deployments: Iterable[Object], attempt: int) -> list[Pod]:
    """Return the pods that the API server did not take: over the quota, or against a policy."""
    found = []
    for deployment in deployments:
        labels = deployment["metadata"]["labels"]
        if labels.get(ATTEMPT_LABEL) != str(attempt):
            continue
        for condition in _conditions(deployment):
            if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
                message = condition.get("message", "")
                why = "QuotaExceeded" if "exceeded quota" in message else condition.get("reason", "FailedCreate")
                is_scheduler = labels.get(ROLE_LABEL) == "scheduler"
                found.append(
                    Pod(_name(deployment), "scheduler" if is_scheduler else "worker", why, message[:MESSAGE_MAX])
                )
    return found


def _in_role(pods: Iterable[Object], role: str) -> list[Object]:
    return [pod for pod in pods if pod["metadata"]["labels"].get(ROLE_LABEL) == role]


def _stays(found: Object | None) -> bool:
    return found is not None and "deletionTimestamp" not in found["metadata"]


def _named(found: Iterable[Object], name: str) -> Object | None:
    return next((item for item in found if _name(item) == name), None)


def _name(found: Object) -> str:
    return str(found["metadata"]["name"])
