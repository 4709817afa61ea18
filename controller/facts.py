"""What is known of an MLJob in one round, and what the decision about it looks at.

`controller.observe` fills it in from what the API server has, `controller.lifecycle` reads it. Times are seconds since
the epoch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from controller.resources import Phase


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


Role = Literal["scheduler", "worker", "runner", "logs"]


@dataclass(frozen=True)
class Pod:
    """A pod of an attempt that is not well.

    `waits_for` is why it is not scheduled or its container does not start, `ended_by` why its container ended
    (`OOMKilled`, an exit code), `since` how long that is so.
    """

    name: str
    role: Role
    waits_for: str = ""
    message: str = ""
    since: float = 0.0
    ended_by: str = ""


@dataclass(frozen=True)
class Runner:
    """The runner's Job, or the one that saves logs.

    `exit_code` is None while it runs, and where its pod went without one; `error` is the class of the error that it
    told of, `last_line` its message.
    """

    is_over: bool = False
    exit_code: int | None = None
    is_disrupted: bool = False
    error: str = ""
    last_line: str = ""


@dataclass(frozen=True)
class Attempt:
    """One attempt, as the status keeps it.

    `ready` is when its scheduler and fewest workers were there, `reason` is empty while it lasts, `logs` what became of
    its logs: empty until that is known. `objects` has the UIDs of what it is made of (`controller.ownership`); None, of
    an attempt from before they were kept.
    """

    number: int
    start: float
    ready: float | None = None
    end: float | None = None
    reason: str = ""
    message: str = ""
    memory: float = 1.0
    logs: str = ""
    objects: Mapping[str, str] | None = field(default_factory=dict)


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
    has_job_file, has_cluster, has_workers, runner
        What exists of the last attempt; a cluster has no worker groups at first.
    has_remains, has_runner_left
        Whether there is anything that claims to be of a cluster of this job, of whichever attempt, or the last one's
        runner: they are removed by their claim.
    is_input_ready
        Whether the runner's preflight has found input and output in order.
    is_scheduler_ready, n_workers
        Of its cluster.
    scheduler_start
        When its scheduler's container was started; 0 where it does not run.
    troubles
        Its pods that are not well.
    manifest
        The committed manifest's metrics; None where there is no manifest.
    has_log_files, log_job
        Whether the last attempt's logs have been collected, and the Job that takes them to storage.
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
    has_workers: bool = False
    has_remains: bool = False
    has_runner_left: bool = False
    runner: Runner | None = None
    is_input_ready: bool = False
    is_scheduler_ready: bool = False
    scheduler_start: float = 0.0
    n_workers: int = 0
    troubles: Sequence[Pod] = ()
    manifest: Mapping[str, Any] | None = None
    has_log_files: bool = False
    log_job: Runner | None = None
    finished: tuple[Phase, float] | None = None
