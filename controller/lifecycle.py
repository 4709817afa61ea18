"""What is to be done for an MLJob, and what is to be said of it: a pure function of what there is.

The loop around it reads everything, calls `follow`, writes the status, does the first action, and comes again. So any
round may be the last one of its process: what was done is found done. Names follow from the job and the number of the
attempt, so that a thing made twice is one thing. Times are seconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from controller.facts import Attempt, Observed, Pod, Runner, Wanted
from controller.resources import Phase

# How long an image may fail to come before it is believed: a registry may be down for a moment.
IMAGE_GRACE_S = 45.0
# A pod that is not well may get well, or not: it is looked at so often.
TROUBLE_S = 5.0
# A runner whose scheduler was started anew ends by itself, most of the time: it is given so long.
SCHEDULER_GRACE_S = 20.0
# The first pause before a further attempt; it doubles, up to the second one.
BACKOFF_S, BACKOFF_MAX_S = 5.0, 300.0
# Memory of the attempt after one that ran out of it, and how often that is tried.
MORE_MEMORY, OUT_OF_MEMORY_RETRIES = 1.5, 1
# Attempts that the cluster, not the job, ended are not counted, but not without end.
MAX_DISRUPTIONS = 20


Action = Literal[
    "make job file",
    "make cluster",
    "make runner",
    "make workers",
    "collect logs",
    "make log job",
    "remove runner",
    "remove cluster",
    "remove logs",
    "remove job",
]


@dataclass(frozen=True)
class Plan:
    """What follows.

    Attributes
    ----------
    phase, reason, message
        Of the condition Complete, or Failed: why the job is as it is.
    attempts
        For the status; written before `action` is done, so that an attempt is known before anything of it exists.
    action
        The one thing to do now; None: wait.
    again_s
        Look again after so many seconds, whatever happens; None: when something changes.
    """

    phase: Phase
    reason: str
    message: str = ""
    attempts: Sequence[Attempt] = ()
    action: Action | None = None
    again_s: float | None = None


@dataclass(frozen=True)
class _End:
    """How an attempt ended, and whether another one makes sense."""

    reason: str
    message: str
    is_final: bool = False


# Ends that the job is not to blame for.
DISRUPTIONS = frozenset({"Preempted", "Suspended"})
# What an error that the runner told of is called, where its class says more than its exit code.
_REASONS = {
    "InputError": "WrongInput",
    "StorageDeniedError": "StorageDenied",
    "StorageMissingError": "StorageMissing",
    "StorageError": "StorageUnreachable",
    "StorageStalledError": "StorageUnreachable",
    "OutOfMemoryError": "OutOfMemory",
    "PoisonTaskError": "PoisonTask",
}
_IMAGE = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName")
# Why a pod waits, and what an attempt is said to wait for.
_WAITS = {
    **dict.fromkeys(_IMAGE, "ImagePull"),
    "CreateContainerConfigError": "WrongRuntime",
    "Unschedulable": "Unschedulable",
    "QuotaExceeded": "QuotaExceeded",
}
SAVED = "Saved"


def follow(seen: Observed) -> Plan:
    """Return what follows from what is seen."""
    plan = _follow(seen)
    if seen.finished is not None or plan.phase in ("Succeeded", "Failed"):
        return plan
    clocks = [plan.again_s] if plan.again_s is not None else []
    if seen.wanted.active_deadline_s is not None:
        clocks.append(max(seen.start + seen.wanted.active_deadline_s - seen.now, 0.0))
    if seen.troubles:
        clocks.append(TROUBLE_S)
    return replace(plan, again_s=min(clocks) if clocks else None)


def _follow(seen: Observed) -> Plan:
    wanted, attempts = seen.wanted, list(seen.attempts)
    if seen.finished is not None:
        return _after_the_end(seen, *seen.finished)
    if seen.manifest is not None:
        return _ended(seen, "Succeeded", "Committed", "manifest.json is there")
    if wanted.problem:
        return _ended(seen, "Failed", "WrongSpec", wanted.problem)
    if wanted.active_deadline_s is not None and seen.now - seen.start >= wanted.active_deadline_s:
        return _ended(seen, "Failed", "DeadlineExceeded", f"it took longer than {wanted.active_deadline_s:.0f} s")
    if wanted.is_suspended:
        return _suspended(seen)
    current = attempts[-1] if attempts else None
    if current is None or current.end is not None:
        return _next_attempt(seen)
    end = _end_of(seen, current)
    if end is None:
        return _proceed(seen, current)
    attempts[-1] = replace(current, end=seen.now, reason=end.reason, message=end.message)
    if end.is_final or _is_used_up(wanted, attempts):
        return _ended(replace(seen, attempts=attempts), "Failed", end.reason, end.message)
    # Written first; what is left of the attempt goes in the next rounds.
    return Plan("Pending", end.reason, end.message, attempts, again_s=0.0)


def pause_s(attempts: Sequence[Attempt]) -> float:
    """Return how long the attempt after these waits, from the end of the last one."""
    n = sum(attempt.reason not in DISRUPTIONS for attempt in attempts)
    return min(BACKOFF_S * 2.0 ** max(n - 1, 0), BACKOFF_MAX_S) if n else 0.0


def _is_used_up(wanted: Wanted, attempts: Sequence[Attempt]) -> bool:
    reasons = [attempt.reason for attempt in attempts]
    n_disruptions = sum(reason in DISRUPTIONS for reason in reasons)
    return (
        len(reasons) - n_disruptions > wanted.backoff_limit
        or reasons.count("Preempted") > MAX_DISRUPTIONS
        or reasons.count("OutOfMemory") > OUT_OF_MEMORY_RETRIES
    )


def _end_of(seen: Observed, current: Attempt) -> _End | None:
    """Return how the attempt ended, if it did."""
    if seen.runner is not None and seen.runner.is_over:
        return _end_of_runner(seen, seen.runner)
    if current.ready is not None and not seen.has_cluster:
        return _End("SchedulerLost", "the DaskCluster is gone")
    if current.ready is not None and current.ready < seen.scheduler_start <= seen.now - SCHEDULER_GRACE_S:
        return _End("SchedulerLost", "the scheduler was started anew, and knows nothing of the run")
    stuck = _stuck(seen.troubles, IMAGE_GRACE_S)
    if stuck is not None:
        return stuck
    if current.ready is None and seen.now - current.start >= seen.wanted.pending_deadline_s and not _is_up(seen):
        return _end_of_waiting(seen)
    return None


def _stuck(pods: Sequence[Pod], grace_s: float) -> _End | None:
    """Return the end that comes of the first pod that has waited long enough for what will not come."""
    for pod in pods:
        reason = _WAITS.get(pod.waits_for, "")
        is_believed = pod.since >= grace_s or pod.waits_for == "InvalidImageName"
        if reason in ("ImagePull", "WrongRuntime") and is_believed:
            return _End(reason, f"{pod.name}: {pod.message or pod.waits_for}", is_final=True)
    return None


def _is_up(seen: Observed) -> bool:
    return seen.is_input_ready and seen.is_scheduler_ready and seen.n_workers >= seen.wanted.min_workers


def _end_of_waiting(seen: Observed) -> _End:
    late = f"in {seen.wanted.pending_deadline_s:.0f} s"
    for pod in seen.troubles:
        if pod.waits_for == "Unschedulable":
            return _End("Unschedulable", f"{pod.name} found no node {late}: {pod.message}", is_final=True)
        if pod.waits_for == "QuotaExceeded":
            return _End("QuotaExceeded", f"{pod.name} was not let in {late}: {pod.message}", is_final=True)
    if not seen.has_runtime:
        return _End("RuntimeMissing", f"there was no such MLRuntime {late}", is_final=True)
    if not seen.is_input_ready:
        return _End("RunnerNotReady", f"the runner's preflight had not ended {late}")
    if not seen.is_scheduler_ready:
        return _End("SchedulerNotReady", f"the scheduler was not ready {late}")
    return _End("TooFewWorkers", f"{seen.n_workers} of {seen.wanted.min_workers} workers were there {late}")


def _end_of_runner(seen: Observed, runner: Runner) -> _End:
    said = runner.last_line or "it said nothing"
    ended_by = {pod.role: pod.ended_by for pod in seen.troubles if pod.ended_by}
    # A runner that knows why it ended is believed, whatever happened to a worker on the way.
    if "OOMKilled" in ended_by.values() and runner.exit_code != 2 and runner.error != "PoisonTaskError":
        who = ", ".join(role for role, why in ended_by.items() if why == "OOMKilled")
        return _End("OutOfMemory", f"{who}: killed for its memory; {said}")
    if runner.is_disrupted:
        return _End("Preempted", "the runner's pod was taken away")
    if runner.exit_code == 0:
        return _End("NoManifest", f"the runner ended well, but told of no commit; {said}")
    if runner.exit_code == 2:
        return _End(_REASONS.get(runner.error, "WrongSpec"), said, is_final=True)
    if runner.exit_code == 75:
        is_lost = runner.error == "WorkersLostError" and not seen.is_scheduler_ready
        return _End("SchedulerLost" if is_lost else _REASONS.get(runner.error, "Retriable"), said)
    if runner.exit_code is None:
        return _End("RunnerLost", "the runner's pod went without an exit code")
    return _End(_REASONS.get(runner.error, "CodeError"), said, is_final=True)


def _proceed(seen: Observed, current: Attempt) -> Plan:
    """Go on with an attempt: what of it is missing is made, in this order."""
    attempts, again = seen.attempts, max(current.start + seen.wanted.pending_deadline_s - seen.now, 1.0)

    def waiting(reason: str, message: str = "") -> Plan:
        why = next((_WAITS[pod.waits_for] for pod in seen.troubles if pod.waits_for in _WAITS), reason)
        return Plan("Pending", why, "; ".join(filter(None, [message, _told(seen)])), attempts, again_s=again)

    if not seen.has_runtime:
        return waiting("RuntimeMissing", "there is no such MLRuntime")
    if not seen.has_job_file:
        return Plan("Pending", "Starting", "", attempts, "make job file")
    # The cluster before the runner, which would take a scheduler of somebody else by that name for its own.
    if not seen.has_cluster:
        return Plan("Pending", "Starting", "", attempts, "make cluster")
    if seen.runner is None:
        return Plan("Pending", "Starting", "", attempts, "make runner")
    if not seen.is_input_ready and current.ready is None:
        return waiting("Preflight", "the runner looks whether input and output are in order")
    if not seen.has_workers:
        return Plan("Pending", "Starting", "", attempts, "make workers")
    if current.ready is not None:
        return Plan("Running", "Running", _told(seen), attempts)
    if not seen.is_scheduler_ready:
        return waiting("SchedulerNotReady")
    if not _is_up(seen):
        return waiting("TooFewWorkers", f"{seen.n_workers} of {seen.wanted.min_workers} workers are there")
    return Plan("Running", "Running", "", [*attempts[:-1], replace(current, ready=seen.now)])


def _told(seen: Observed) -> str:
    waiting = [pod for pod in seen.troubles if pod.waits_for]
    return "; ".join(f"{p.name}: {p.waits_for}{f' ({p.message})' if p.message else ''}" for p in waiting[:3])


def _next_attempt(seen: Observed) -> Plan:
    attempts = list(seen.attempts)
    last = attempts[-1] if attempts else None
    if last is not None:
        left = _removal(seen, last, keeps_runner=False)
        if left is not None:
            return replace(left, phase="Pending", reason=last.reason, message=last.message)
        assert last.end is not None
        wait = last.end + pause_s(attempts) - seen.now
        if wait > 0:
            return Plan("Pending", last.reason, last.message, attempts, again_s=wait)
    memory = 1.0 if last is None else last.memory * (MORE_MEMORY if last.reason == "OutOfMemory" else 1.0)
    attempts.append(Attempt(len(attempts) + 1, seen.now, memory=memory))
    return Plan("Pending", "Starting", f"attempt {len(attempts)}", attempts, again_s=0.0)


def _suspended(seen: Observed) -> Plan:
    attempts = list(seen.attempts)
    plan = Plan("Suspended", "Suspended", "spec.suspend is true", attempts)
    if not attempts:
        return plan
    if attempts[-1].end is None:
        attempts[-1] = replace(attempts[-1], end=seen.now, reason="Suspended")
        return replace(plan, again_s=0.0)
    left = _removal(seen, attempts[-1], keeps_runner=False)
    return plan if left is None else replace(left, phase="Suspended", reason="Suspended", message=plan.message)


def _ended(seen: Observed, phase: Phase, reason: str, message: str) -> Plan:
    attempts = list(seen.attempts)
    if attempts and attempts[-1].end is None:
        attempts[-1] = replace(attempts[-1], end=seen.now, reason=reason, message=message)
    return Plan(phase, reason, message, attempts, again_s=0.0)


def _after_the_end(seen: Observed, phase: Phase, at: float) -> Plan:
    """Take away what is left, and at last the MLJob itself where it has a time to live."""
    plan = Plan(phase, "", "", seen.attempts)
    if seen.attempts:
        # Its log can be read as long as the MLJob is there, as that of any Job.
        left = _removal(seen, seen.attempts[-1], keeps_runner=seen.runner is not None and seen.runner.is_over)
        if left is not None:
            return replace(left, phase=phase)
    if seen.wanted.ttl_s is None:
        return plan
    rest = at + seen.wanted.ttl_s - seen.now
    return replace(plan, action="remove job") if rest <= 0 else replace(plan, again_s=rest)


def _removal(seen: Observed, last: Attempt, *, keeps_runner: bool) -> Plan | None:
    """Return how to go on with taking away what is left of the last attempt, or None: nothing is left.

    Logs are collected while there are pods to ask. The runner goes before its cluster: it would only find that gone.
    """

    def step(action: Action | None, attempts: Sequence[Attempt] = seen.attempts) -> Plan:
        return Plan("Pending", "", "", attempts, action, again_s=None if action else 0.0)

    def with_logs(outcome: str) -> Plan:
        return step(None, [*seen.attempts[:-1], replace(last, logs=outcome)])

    is_collecting = not last.logs
    has_runner = seen.runner is not None or seen.has_runner_left
    has_pods = has_runner or seen.has_remains
    if is_collecting and not seen.has_log_files:
        return step("collect logs") if has_pods and seen.has_runtime else with_logs("there are none")
    if is_collecting and seen.log_job is None:
        return step("make log job") if seen.has_runtime else with_logs("not saved: the MLRuntime is gone")
    if has_runner and not keeps_runner:
        return step("remove runner")
    if seen.has_remains:
        return step("remove cluster")
    if is_collecting and seen.log_job is not None:
        if not seen.log_job.is_over:
            pods = [pod for pod in seen.troubles if pod.role == "logs"]
            # An attempt that an image has ended has waited for one already; most often it is the same.
            stuck = _stuck(pods, 0.0 if last.reason == "ImagePull" else IMAGE_GRACE_S)
            if stuck is not None:
                return with_logs(f"not saved: {stuck.message}")
            return Plan("Pending", "", "", seen.attempts, again_s=TROUBLE_S if pods else None)
        is_saved = seen.log_job.exit_code == 0
        return with_logs(SAVED if is_saved else f"not saved: {seen.log_job.last_line or 'the Job did not end well'}")
    if seen.has_log_files or seen.log_job is not None:
        return step("remove logs")
    return None
