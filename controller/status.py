"""From a plan to the status of an MLJob, with its conditions; pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from controller.api import Object
from controller.facts import Observed
from controller.lifecycle import SAVED, Plan
from controller.observe import MESSAGE_MAX, Found, status_of
from controller.resources import AttemptStatus, Condition, MLJobSpec, MLJobStatus

# Conditions of an MLJob.
COMPLETE, FAILED, INPUT_READY, CLUSTER_READY, LOGS_SAVED = (
    "Complete",
    "Failed",
    "InputReady",
    "ClusterReady",
    "LogsSaved",
)
SCHEDULER_REACHED = "SchedulerReached"


def time_of(at: float | None) -> str | None:
    """Return a time as Kubernetes writes it, to the microsecond: attempts and deadlines are counted from it."""
    return None if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@dataclass(frozen=True)
class Told:
    """What a scheduler told of the run.

    `problem` is why it could not be asked, and `is_asked` whether anybody tried.
    """

    progress: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""
    is_asked: bool = False


def status_after(found: Found, spec: MLJobSpec, seen: Observed, plan: Plan, told: Told) -> Object:
    """Return the status that follows from a plan, as the API server keeps it; keys without a value are null."""
    before, now = status_of(found.job), seen.now
    is_finished = seen.finished is not None
    phase = before.phase if is_finished else plan.phase
    is_over = phase in ("Succeeded", "Failed")
    attempts = [
        AttemptStatus(
            number=a.number,
            start_time=time_of(a.start) or "",
            ready_time=time_of(a.ready),
            end_time=time_of(a.end),
            reason=a.reason or None,
            message=a.message[:MESSAGE_MAX] or None,
            memory_factor=a.memory,
            logs=a.logs[:MESSAGE_MAX] or None,
            objects=None if a.objects is None else dict(a.objects),
        )
        for a in plan.attempts
    ]
    progress: Mapping[str, Any] = {}
    if phase == "Running" and told.is_asked:
        progress = told.progress
    elif phase == "Running":
        progress = {"percent": before.progress, "seconds_left": before.seconds_left}
    seconds_left = progress.get("seconds_left")
    made = MLJobStatus(
        phase=phase,
        observed_generation=found.job["metadata"].get("generation"),
        conditions=_merged(before.conditions, _said(found, seen, plan, told, is_finished), now, found.job),
        attempts=attempts,
        attempt=attempts[-1].number if attempts else None,
        stage=progress.get("stage") or (before.stage if phase in ("Running", "Failed") else None),
        progress=progress.get("percent"),
        seconds_left=None if seconds_left is None else round(seconds_left),
        metrics=dict(seen.manifest or progress.get("metrics") or before.metrics),
        run_url=spec.run_url(found.job["metadata"]["name"]) if phase == "Succeeded" else None,
        start_time=before.start_time or time_of(seen.start),
        completion_time=before.completion_time or (time_of(now) if is_over else None),
    )
    if phase == "Succeeded":
        made = made.model_copy(update={"progress": 100, "stage": None})
    return made.model_dump(mode="json", by_alias=True)


Said = tuple[str, bool | None, str, str]


def _said(found: Found, seen: Observed, plan: Plan, told: Told, is_finished: bool) -> list[Said]:
    """Return conditions as type, status, reason, message; those that are not said stay as they are."""
    said: list[Said] = []
    if not is_finished:
        said.append((COMPLETE, plan.phase == "Succeeded", plan.reason, plan.message))
        said.append((FAILED, plan.phase == "Failed", plan.reason, plan.message if plan.phase == "Failed" else ""))
        if seen.is_input_ready:
            said.append((INPUT_READY, True, "PreflightPassed", ""))
        elif seen.runner is not None and seen.runner.is_over and plan.attempts and plan.attempts[-1].ready is None:
            said.append((INPUT_READY, False, plan.reason, plan.message))
        is_up = plan.phase == "Running" and bool(plan.attempts and plan.attempts[-1].ready is not None)
        said.append((CLUSTER_READY, is_up, "Ready" if is_up else plan.reason, "" if is_up else plan.message))
        if told.is_asked:
            said.append((SCHEDULER_REACHED, not told.problem, "Silent" if told.problem else "Answers", told.problem))
    else:
        said.append((CLUSTER_READY, False, "Finished", ""))
        said.append((SCHEDULER_REACHED, None, "Finished", ""))
    logs = plan.attempts[-1].logs if plan.attempts else ""
    if logs:
        is_saved = logs == SAVED
        said.append((LOGS_SAVED, is_saved, SAVED if is_saved else "NotSaved", "" if is_saved else logs))
    return said


def _merged(before: Sequence[Condition], said: Iterable[Said], now: float, job: Object) -> list[Condition]:
    """Return conditions with the time of their last change kept where their status is the same."""
    conditions = {condition.type: condition for condition in before}
    for name, is_so, reason, message in said:
        value = "Unknown" if is_so is None else str(is_so)
        last = conditions.get(name)
        if last is None and is_so is None:
            continue
        is_new = last is None or last.status != value
        conditions[name] = Condition.model_validate(
            {
                "type": name,
                "status": value,
                "reason": reason or "Unknown",
                "message": message[:MESSAGE_MAX],
                "last_transition_time": time_of(now) if is_new or last is None else last.last_transition_time,
                "observed_generation": job["metadata"].get("generation"),
            }
        )
    return list(conditions.values())
