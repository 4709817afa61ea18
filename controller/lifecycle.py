"""What is to be done for an MLJob, and what is to be said of it: a pure function of what there is.

The loop around it reads everything, calls `follow`, writes the status, does the first action, and comes again. So any
round may be the last one of its process: what was done is found done. Names follow from the job and the number of the
attempt, so that a thing made twice is one thing. Times are seconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from controller.resources import Phase

# How long an image may fail to come before it is believed: a registry may be down for a moment.
IMAGE_GRACE_S = 45.0
# A pod that is not well may get well, or not: it is looked at so often.
TROUBLE_S = 5.0
# The first pause before a further attempt; it doubles, up to the second one.
BACKOFF_S, BACKOFF_MAX_S = 5.0, 300.0
# Memory of the attempt after one that ran out of it, and how often that is tried.
MORE_MEMORY, OUT_OF_MEMORY_RETRIES = 1.5, 1
# Attempts that the cluster, not the job, ended are not counted, but not without end.
MAX_DISRUPTIONS = 20


@dataclass(frozen=True)
class Wanted:
    """What the MLJob asks for, as far as it decides what happens."""

    backoff_limit: int = 3
    active_deadline_s: float | None = None
    pending_deadline_s: float = 600.0
    ttl_s: float | None = None
    is_suspended: bool = False
    min_workers: int = 1
    problem: str = ""
    """Why the spec can never run: what the pipeline's models or the runtime say against it."""


@dataclass(frozen=True)
class Pod:
    """A pod of an attempt that is not well.

    `waits_for` is why it is not scheduled or its container does not start, `ended_by` why its container ended
    (`OOMKilled`, an exit code), `since` how long that is so.
    """

    name: str
    role: Literal["scheduler", "worker", "runner"]
    waits_for: str = ""
    message: str = ""
    since: float = 0.0
    ended_by: str = ""


@dataclass(frozen=True)
class Runner:
    """The runner's Job. `exit_code` is None while it runs, and where its pod went without one."""

    is_over: bool = False
    exit_code: int | None = None
    is_disrupted: bool = False
    last_line: str = ""


@dataclass(frozen=True)
class Attempt:
    """One attempt, as the status keeps it. `reason` is empty while it lasts."""

    number: int
    start: float
    end: float | None = None
    reason: str = ""
    message: str = ""
    memory: float = 1.0


@dataclass(frozen=True)
class Observed:
    """Everything that is read for a job in one round.

    Attributes
    ----------
    wanted
        The spec.
    start
        When the MLJob was made, or first not suspended.
    attempts
        Of the status, by number.
    has_runtime
        Whether the MLRuntime that it names exists.
    has_job_file, has_cluster, runner
        What exists of the last attempt.
    is_scheduler_ready, n_workers
        Of its cluster.
    troubles
        Its pods that are not well.
    manifest
        The committed manifest's metrics; None where there is no manifest.
    storage_problem
        Why that could not be found out; empty where it could.
    finished
        The phase it ended in, and when; None before.
    """

    wanted: Wanted
    now: float
    start: float
    attempts: Sequence[Attempt] = ()
    has_runtime: bool = True
    has_job_file: bool = False
    has_cluster: bool = False
    runner: Runner | None = None
    is_scheduler_ready: bool = False
    n_workers: int = 0
    troubles: Sequence[Pod] = ()
    manifest: Mapping[str, Any] | None = None
    storage_problem: str = ""
    finished: tuple[Phase, float] | None = None


Action = Literal["make job file", "make cluster", "make runner", "remove runner", "remove cluster", "remove job"]


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


def follow(seen: Observed) -> Plan:
    """Return what follows from what is seen."""
    plan = _follow(seen)
    if seen.finished is not None or plan.phase in ("Succeeded", "Failed"):
        return plan
    clocks = [plan.again_s] if plan.again_s is not None else []
    if seen.wanted.active_deadline_s is not None:
        clocks.append(seen.start + seen.wanted.active_deadline_s - seen.now)
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
    runner = seen.runner
    if runner is not None and runner.is_over:
        return _end_of_runner(seen, runner)
    for pod in seen.troubles:
        if pod.waits_for in ("ErrImagePull", "ImagePullBackOff", "InvalidImageName") and (
            pod.since >= IMAGE_GRACE_S or pod.waits_for == "InvalidImageName"
        ):
            return _End("ImagePull", f"{pod.name}: {pod.message or pod.waits_for}", is_final=True)
        if pod.waits_for == "CreateContainerConfigError" and pod.since >= IMAGE_GRACE_S:
            return _End("WrongRuntime", f"{pod.name}: {pod.message}", is_final=True)
    is_running = seen.is_scheduler_ready and seen.n_workers >= seen.wanted.min_workers
    if runner is None and not is_running and seen.now - current.start >= seen.wanted.pending_deadline_s:
        return _end_of_waiting(seen)
    return None


def _end_of_waiting(seen: Observed) -> _End:
    late = f"in {seen.wanted.pending_deadline_s:.0f} s"
    for pod in seen.troubles:
        if pod.waits_for == "Unschedulable":
            return _End("Unschedulable", f"{pod.name} found no node {late}: {pod.message}", is_final=True)
        if pod.waits_for == "QuotaExceeded":
            return _End("QuotaExceeded", f"{pod.name} was not let in {late}: {pod.message}", is_final=True)
    if not seen.has_runtime:
        return _End("RuntimeMissing", f"there was no such MLRuntime {late}", is_final=True)
    if not seen.is_scheduler_ready:
        return _End("SchedulerNotReady", f"the scheduler was not ready {late}")
    return _End("TooFewWorkers", f"{seen.n_workers} of {seen.wanted.min_workers} workers were there {late}")


def _end_of_runner(seen: Observed, runner: Runner) -> _End:
    said = runner.last_line or "it said nothing"
    ended_by = {pod.role: pod.ended_by for pod in seen.troubles if pod.ended_by}
    if "OOMKilled" in ended_by.values():
        who = ", ".join(role for role, why in ended_by.items() if why == "OOMKilled")
        return _End("OutOfMemory", f"{who}: killed for its memory; {said}")
    if runner.is_disrupted:
        return _End("Preempted", "the runner's pod was taken away")
    if runner.exit_code == 0:
        if seen.storage_problem:
            return _End("StorageUnreachable", seen.storage_problem)
        return _End("NoManifest", f"the runner ended well, but committed nothing; {said}")
    if runner.exit_code == 2:
        return _End("WrongSpec", said, is_final=True)
    if runner.exit_code == 75:
        return _End("Retriable" if seen.is_scheduler_ready else "SchedulerLost", said)
    if runner.exit_code is None:
        return _End("RunnerLost", "the runner's pod went without an exit code")
    return _End("CodeError", said, is_final=True)


def _proceed(seen: Observed, current: Attempt) -> Plan:
    """Go on with an attempt: what of it is missing is made, in this order."""
    attempts, again = seen.attempts, max(current.start + seen.wanted.pending_deadline_s - seen.now, 1.0)
    if not seen.has_runtime:
        return Plan("Pending", "RuntimeMissing", "there is no such MLRuntime", attempts, again_s=again)
    if not seen.has_job_file:
        return Plan("Pending", "Starting", "", attempts, "make job file")
    if not seen.has_cluster:
        return Plan("Pending", "Starting", "", attempts, "make cluster")
    if seen.runner is not None:
        return Plan("Running", "Running", seen.storage_problem, attempts)
    if not seen.is_scheduler_ready:
        return Plan("Pending", "SchedulerNotReady", _told(seen), attempts, again_s=again)
    if seen.n_workers < seen.wanted.min_workers:
        n = f"{seen.n_workers} of {seen.wanted.min_workers} workers are there"
        return Plan("Pending", "TooFewWorkers", "; ".join(filter(None, [n, _told(seen)])), attempts, again_s=again)
    return Plan("Running", "Running", "", attempts, "make runner")


def _told(seen: Observed) -> str:
    return "; ".join(f"{p.name}: {p.waits_for}{f' ({p.message})' if p.message else ''}" for p in seen.troubles[:3])


def _next_attempt(seen: Observed) -> Plan:
    attempts = list(seen.attempts)
    last = attempts[-1] if attempts else None
    if last is not None:
        left = _removal(seen)
        if left is not None:
            return Plan("Pending", last.reason, last.message, attempts, left)
        if seen.storage_problem:  # it may be committed: nothing is begun that could be done already
            return Plan("Pending", "StorageUnreachable", seen.storage_problem, attempts, again_s=BACKOFF_S)
        assert last.end is not None
        wait = last.end + pause_s(attempts) - seen.now
        if wait > 0:
            return Plan("Pending", last.reason, last.message, attempts, again_s=wait)
    memory = 1.0 if last is None else last.memory * (MORE_MEMORY if last.reason == "OutOfMemory" else 1.0)
    attempts.append(Attempt(len(attempts) + 1, seen.now, memory=memory))
    return Plan("Pending", "Starting", f"attempt {len(attempts)}", attempts, again_s=0.0)


def _suspended(seen: Observed) -> Plan:
    attempts = list(seen.attempts)
    if attempts and attempts[-1].end is None:
        attempts[-1] = replace(attempts[-1], end=seen.now, reason="Suspended")
    return Plan("Suspended", "Suspended", "spec.suspend is true", attempts, _removal(seen))


def _ended(seen: Observed, phase: Phase, reason: str, message: str) -> Plan:
    attempts = list(seen.attempts)
    if attempts and attempts[-1].end is None:
        attempts[-1] = replace(attempts[-1], end=seen.now, reason=reason, message=message)
    return Plan(phase, reason, message, attempts, again_s=0.0)


def _after_the_end(seen: Observed, phase: Phase, at: float) -> Plan:
    """Take away what is left, and at last the MLJob itself where it has a time to live."""
    left = _removal(seen)
    if left is not None or seen.wanted.ttl_s is None:
        return Plan(phase, "", "", seen.attempts, left)
    rest = at + seen.wanted.ttl_s - seen.now
    return Plan(phase, "", "", seen.attempts, "remove job" if rest <= 0 else None, rest if rest > 0 else None)


def _removal(seen: Observed) -> Action | None:
    """Return what is to go next: the runner first, since it would only find its cluster gone."""
    if seen.runner is not None:
        return "remove runner"
    return "remove cluster" if seen.has_cluster else None
