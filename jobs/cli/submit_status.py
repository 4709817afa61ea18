"""Shows an MLJob's status as it changes, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.text import Text

from jobs.cli import tables
from jobs.cli.progress import LOG_EVERY_S, duration
from jobs.cli.submit_manifest import Object
from jobs.errors import DaskyardError
from jobs.listener import Listener

_COMPLETE, _FAILED = "Complete", "Failed"
_WRONG = frozenset({"WrongSpec", "StorageDenied", "StorageMissing", "WrongInput"})
_WORTH_A_RETRY = frozenset(
    {
        "Preempted",
        "QuotaExceeded",
        "Retriable",
        "RunnerLost",
        "RunnerNotReady",
        "SchedulerLost",
        "SchedulerNotReady",
        "StorageUnreachable",
        "TooFewWorkers",
        "Unschedulable",
    }
)


class JobFailedError(DaskyardError):
    """The job has failed; its exit code says whether another try makes sense."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class StatusShown:
    """Tells a listener what has changed from one status to the next.

    Parameters
    ----------
    listener : Listener
        Is told.
    stages : sequence of str
        Of the job, in their order.
    has_bars : bool
        Whether the listener shows progress as bars; lines are written by the time that is left otherwise.
    clock : callable
        Returns seconds; for tests.
    """

    def __init__(
        self,
        listener: Listener,
        stages: Sequence[str],
        has_bars: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._listener = listener
        self._stages = stages
        self._has_bars = has_bars
        self._clock = clock
        self._is_first = True
        self._attempt = 0
        self._ended = 0
        self._summary = ""
        self._conditions: dict[str, str] = {}
        self._stage: str | None = None
        self._since: float | None = None
        self._told_at = clock()

    def update(self, status: Object) -> None:
        """Tell what is new."""
        stage = status.get("stage") if status.get("phase") == "Running" else None
        is_same = (status.get("attempt") or 0) == self._attempt
        self._end_stage(stage, has_passed=is_same and (stage is not None or status.get("phase") == "Succeeded"))
        self._tell_attempts(status)
        self._tell_summary(status)
        self._tell_conditions(status)
        self._begin_stage(stage)
        if stage is not None and status.get("progress") is not None:
            self._tell_progress(stage, status["progress"], status.get("secondsLeft"))
        self._is_first = False

    def _tell_attempts(self, status: Object) -> None:
        attempts = status.get("attempts") or []
        for attempt in attempts[self._ended :]:
            if not attempt.get("endTime"):
                break
            self._ended += 1
            # How the job ended is told in the end.
            if not is_over(status) or attempt is not attempts[-1]:
                self._listener.message(_line(f"attempt {attempt['number']} ended", attempt))
        number = status.get("attempt") or 0
        if number > self._attempt:
            self._attempt = number
            self._listener.message(f"attempt {number}")

    def _tell_summary(self, status: Object) -> None:
        if status.get("phase") in (None, "Failed"):
            return
        condition = _conditions(status).get(_COMPLETE, {})
        reason = condition.get("reason")
        attempts = status.get("attempts") or [{}]
        summary = status["phase"] if reason == status["phase"] else _line(status["phase"], condition)
        says_nothing_new = reason in (attempts[-1].get("reason"), "Starting") and status["phase"] == "Pending"
        if summary != self._summary and not says_nothing_new:
            self._listener.message(summary)
        self._summary = summary

    def _tell_conditions(self, status: Object) -> None:
        conditions = _conditions(status)
        why = conditions.get(_COMPLETE, {}).get("reason")
        for name, condition in conditions.items():
            before, now = self._conditions.get(name), condition.get("status", "")
            self._conditions[name] = now
            # Most say what the whole job's says, of their part.
            if name in (_COMPLETE, _FAILED) or before == now or condition.get("reason") == why or is_over(status):
                continue
            self._listener.message(_line(f"{name} is {now.lower()}", condition))

    def _end_stage(self, stage: str | None, has_passed: bool) -> None:
        if self._stage in (None, stage):
            return
        # Of a stage that was found in its midst nobody here knows how long it took.
        if has_passed and self._since is not None:
            self._listener.stage_ended(str(self._stage), self._clock() - self._since)
        elif self._has_bars:
            # Of nothing all is done: the bar goes, and no line stays.
            self._listener.progress("", 0, 0, "")
        self._stage = None

    def _begin_stage(self, stage: str | None) -> None:
        if stage in (None, self._stage):
            return
        self._stage, self._since = stage, None if self._is_first else self._clock()
        self._told_at = self._clock()
        index = self._stages.index(stage) if stage in self._stages else 0
        self._listener.stage_started(str(stage), index, len(self._stages))

    def _tell_progress(self, stage: str, percent: int, seconds_left: int | None) -> None:
        if self._has_bars:
            self._listener.progress(stage, percent, 100, "%")
        elif self._clock() - self._told_at >= LOG_EVERY_S:
            self._told_at = self._clock()
            left = "" if seconds_left is None else f", {duration(seconds_left)} left"
            self._listener.message(f"{stage}: {percent} %{left}")


def is_over(status: Mapping[str, Any]) -> bool:
    """Whether nothing more is to come."""
    return status.get("phase") in ("Succeeded", "Failed")


def failure(place: str, status: Object) -> JobFailedError:
    """Return the error of a job that failed."""
    condition = _conditions(status).get(_FAILED, {})
    reason = condition.get("reason", "")
    code = 2 if reason in _WRONG else 75 if reason in _WORTH_A_RETRY else DaskyardError.exit_code
    return JobFailedError(_line(f"{place} failed", condition), code)


def summary(console: Console, job: Object) -> None:
    """Show what came out of a job, as far as its status knows."""
    status = job["status"]
    seconds = _seconds(status)
    attempts = len(status.get("attempts") or [])
    facts = [*([duration(seconds)] if seconds is not None else []), *([f"{attempts} attempts"] if attempts > 1 else [])]
    console.print(Text.assemble(tables.shown(job["spec"]["pipeline"], "bold"), "  ", ", ".join(facts)))
    if status.get("metrics"):
        made = tables.table("metric", "value", right=["value"])
        for name, value in status["metrics"].items():
            made.add_row(tables.shown(name), tables.shown(tables.metric_text(value)))
        console.print(made)
    if status.get("runUrl"):
        tables.line(console, f"run     {status['runUrl']}")


def _conditions(status: Object) -> dict[str, Object]:
    return {condition["type"]: condition for condition in status.get("conditions") or []}


def _line(what: str, told: Mapping[str, Any]) -> str:
    """Return a line of what, why and how: those that there are."""
    return ": ".join(str(part) for part in (what, told.get("reason"), told.get("message")) if part)


def _seconds(status: Object) -> float | None:
    ends = status.get("startTime"), status.get("completionTime")
    if not all(ends):
        return None
    start, end = (datetime.fromisoformat(str(time)) for time in ends)
    return (end - start).total_seconds()
