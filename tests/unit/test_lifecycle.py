"""What follows for an MLJob: each class of failure by itself, and whole lives in a made world.

In that world attempts end as a script says, and the controller may be killed between any two of its steps: nothing is
made twice, nothing is left, and the end is the one that the script leads to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.facts import Attempt, Observed, Pod, Role, Runner, Wanted
from controller.lifecycle import (
    BACKOFF_MAX_S,
    DISRUPTIONS,
    IMAGE_GRACE_S,
    SAVED,
    SCHEDULER_GRACE_S,
    TROUBLE_S,
    Action,
    Plan,
    follow,
    pause_s,
)
from controller.resources import Phase

NOW = 1_000_000.0
FIRST = Observed(Wanted(), NOW, NOW - 10, [Attempt(1, NOW - 10)], has_job_file=True)
LOOKED = replace(FIRST, has_cluster=True, has_remains=True, runner=Runner())
BEGUN = replace(LOOKED, has_workers=True, is_input_ready=True)
READY = replace(BEGUN, is_scheduler_ready=True, n_workers=1)
RUNNING = replace(READY, attempts=[Attempt(1, NOW - 10, NOW - 5)])
ENDED = Attempt(1, NOW - 99, NOW - 98, NOW - 50, "RunnerLost", logs=SAVED)


def over(code: int | None = None, line: str = "", error: str = "", is_disrupted: bool = False) -> Observed:
    return replace(RUNNING, runner=Runner(True, code, is_disrupted, error, line))


# --- one round ------------------------------------------------------------------------------------------------------


def test_an_attempt_is_told_before_anything_of_it_is_made() -> None:
    first = follow(Observed(Wanted(), NOW, NOW))
    assert ([a.number for a in first.attempts], first.action) == ([1], None)


@pytest.mark.parametrize(
    ("seen", "action"),
    [
        (replace(FIRST, has_job_file=False), "make job file"),
        (FIRST, "make cluster"),
        (replace(LOOKED, runner=None), "make runner"),
        (LOOKED, None),
        (replace(LOOKED, is_scheduler_ready=True), None),
        (replace(LOOKED, is_input_ready=True), "make workers"),
        (BEGUN, None),
        (replace(BEGUN, is_scheduler_ready=True), None),
        (READY, None),
        (RUNNING, None),
    ],
)
def test_things_are_made_in_their_order_and_once(seen: Observed, action: Action | None) -> None:
    assert follow(seen).action == action


@pytest.mark.parametrize(
    ("seen", "reason", "is_final"),
    [
        (over(2, "error: params.k: 0 is too few"), "WrongSpec", True),
        (over(2, "s3://a: access denied", "StorageDeniedError"), "StorageDenied", True),
        (over(2, "s3://a: no such bucket", "StorageMissingError"), "StorageMissing", True),
        (over(2, "a.csv: no column y", "InputError"), "WrongInput", True),
        (over(1, "error: KeyError"), "CodeError", True),
        (over(75, "s3://a: 503", "StorageError"), "StorageUnreachable", False),
        (over(75, "s3://a: less than 64 KiB moved in 300 s", "StorageStalledError"), "StorageUnreachable", False),
        (over(75, "3 died", "PoisonTaskError"), "PoisonTask", False),
        (over(75, "told to stop", "StoppedError"), "Retriable", False),
        (over(75, "one was lost", "WorkersLostError"), "Retriable", False),
        (replace(over(75, "", "WorkersLostError"), is_scheduler_ready=False), "SchedulerLost", False),
        (over(None), "RunnerLost", False),
        (replace(RUNNING, has_cluster=False, has_workers=False), "SchedulerLost", False),
        (over(None, is_disrupted=True), "Preempted", False),
        (over(0), "NoManifest", False),
        (replace(over(137), troubles=[Pod("r", "runner", ended_by="OOMKilled")]), "OutOfMemory", False),
        (replace(over(75), troubles=[Pod("w", "worker", ended_by="OOMKilled")]), "OutOfMemory", False),
        (replace(BEGUN, troubles=[Pod("s", "scheduler", "ImagePullBackOff", "no such tag", 50)]), "ImagePull", True),
        (replace(BEGUN, troubles=[Pod("s", "scheduler", "InvalidImageName", "A:B:C")]), "ImagePull", True),
        (
            replace(BEGUN, now=NOW + 600, troubles=[Pod("w", "worker", "Unschedulable", "0/3 nodes", 600)]),
            "Unschedulable",
            True,
        ),
        (
            replace(BEGUN, now=NOW + 600, troubles=[Pod("w", "worker", "QuotaExceeded", "cpu: 8", 600)]),
            "QuotaExceeded",
            True,
        ),
        (replace(LOOKED, now=NOW + 600), "RunnerNotReady", False),
        (replace(BEGUN, now=NOW + 600), "SchedulerNotReady", False),
        (replace(BEGUN, now=NOW + 600, is_scheduler_ready=True), "TooFewWorkers", False),
        (replace(BEGUN, now=NOW + 600, has_runtime=False), "RuntimeMissing", True),
        (replace(RUNNING, wanted=Wanted(active_deadline_s=10)), "DeadlineExceeded", True),
        (replace(RUNNING, wanted=Wanted(problem="params.k: 0")), "WrongSpec", True),
    ],
)
def test_each_class_of_failure_has_its_reason_and_its_retry(seen: Observed, reason: str, is_final: bool) -> None:
    plan = follow(seen)
    assert plan.attempts[-1].reason == plan.reason == reason
    assert plan.attempts[-1].end == seen.now
    assert (plan.phase == "Failed") == is_final
    assert plan.action is None  # it is written down first


def test_what_was_said_last_is_the_message() -> None:
    assert follow(over(2, "error: params.k: 0 is too few")).message == "error: params.k: 0 is too few"


def test_an_image_that_does_not_come_at_once_is_given_a_while() -> None:
    late = Pod("s", "scheduler", "ErrImagePull", "timeout", IMAGE_GRACE_S - 1)
    plan = follow(replace(BEGUN, troubles=[late]))
    assert (plan.phase, plan.attempts[-1].end) == ("Pending", None)
    assert plan.again_s is not None
    assert plan.again_s <= 5
    assert "ErrImagePull (timeout)" in plan.message


def test_what_a_pod_waits_for_is_said_while_it_waits() -> None:
    waiting = Pod("w", "worker", "Unschedulable", "0/3 nodes", 5)
    plan = follow(replace(BEGUN, is_scheduler_ready=True, troubles=[waiting]))
    assert (plan.phase, plan.reason) == ("Pending", "Unschedulable")
    assert plan.message == "0 of 1 workers are there; w: Unschedulable (0/3 nodes)"


def test_a_cluster_that_was_complete_once_may_lose_workers_and_the_deadline_for_its_start_is_over() -> None:
    first = follow(READY)
    assert (first.phase, first.attempts[-1].ready) == ("Running", NOW)
    later = replace(RUNNING, n_workers=0, is_scheduler_ready=False, now=NOW + 9999)
    assert (follow(later).phase, follow(later).attempts[-1].end) == ("Running", None)


def test_a_scheduler_that_was_started_anew_ends_the_attempt_where_its_runner_does_not() -> None:
    anew = replace(RUNNING, scheduler_start=NOW - 4)  # it was ready before
    assert (follow(anew).phase, follow(anew).attempts[-1].end) == ("Running", None)
    late = follow(replace(anew, now=NOW - 4 + SCHEDULER_GRACE_S))
    assert late.attempts[-1].reason == "SchedulerLost"
    before = replace(RUNNING, scheduler_start=NOW - 6, now=NOW + 9999)
    assert follow(before).attempts[-1].end is None


def test_success_is_the_manifest_and_nothing_else() -> None:
    assert follow(over(0)).phase != "Succeeded"
    for seen in (over(1), over(75), RUNNING, LOOKED, Observed(Wanted(), NOW, NOW)):
        assert follow(replace(seen, manifest={"r2": 0.6})).phase == "Succeeded"


def test_logs_are_collected_before_pods_go_and_saved_before_the_next_attempt() -> None:
    ended = replace(ENDED, logs="")
    seen = replace(over(75), attempts=[ended])
    steps: list[Action | None] = []
    for change in (
        {},
        {"has_log_files": True},
        {"log_job": Runner()},
        {"runner": None},
        {"has_remains": False, "has_cluster": False},
    ):
        seen = replace(seen, **change)
        steps.append(follow(seen).action)
    assert steps == ["collect logs", "make log job", "remove runner", "remove cluster", None]
    assert len(follow(seen).attempts) == 1  # they are on their way
    saved = follow(replace(seen, log_job=Runner(True, 0)))
    assert saved.attempts[-1].logs == SAVED
    failed = follow(replace(seen, log_job=Runner(True, 2, last_line="s3://a: access denied")))
    assert failed.attempts[-1].logs == "not saved: s3://a: access denied"
    assert follow(replace(seen, attempts=saved.attempts, log_job=Runner(True, 0))).action == "remove logs"
    rest = replace(seen, attempts=saved.attempts, log_job=None, has_log_files=False)
    assert [a.number for a in follow(rest).attempts] == [1, 2]


def test_logs_whose_job_gets_no_image_are_given_up() -> None:
    ended = replace(RUNNING, attempts=[replace(ENDED, logs="")], has_log_files=True, log_job=Runner(), runner=None)
    ended = replace(ended, has_cluster=False, has_remains=False)

    def looked(reason: str, since: float, role: Role = "logs", finished: tuple[Phase, float] | None = None) -> Plan:
        pod = Pod("a-1-logs-x", role, "ErrImagePull", "no such tag", since)
        attempts = [replace(ended.attempts[0], reason=reason)]
        return follow(replace(ended, attempts=attempts, troubles=[pod], finished=finished))

    for early in (looked("CodeError", 10), looked("CodeError", 10, finished=("Failed", NOW - 5))):
        assert (early.attempts[0].logs, early.again_s) == ("", TROUBLE_S)
    assert looked("CodeError", 10, "worker").attempts[0].logs == ""
    assert looked("CodeError", 999, "worker").attempts[0].logs == ""
    # Where the attempt ended by its image, nobody waits for it again.
    for late in (looked("CodeError", IMAGE_GRACE_S), looked("ImagePull", 0)):
        assert late.attempts[0].logs == "not saved: a-1-logs-x: no such tag"
    over = replace(ended, attempts=late.attempts, finished=("Failed", NOW - 5))
    assert follow(over).action == "remove logs"


def test_the_last_runner_stays_for_its_log_unless_it_still_runs() -> None:
    ended = replace(RUNNING, attempts=[ENDED], finished=("Failed", NOW - 50))
    assert follow(ended).action == "remove runner"
    assert follow(replace(ended, runner=Runner(True, 1))).action == "remove cluster"
    gone = replace(ended, runner=Runner(True, 1), has_cluster=False, has_remains=False)
    assert follow(gone).action is None


def test_memory_grows_once_after_it_ran_out() -> None:
    first = replace(ENDED, reason="OutOfMemory")
    second = follow(Observed(Wanted(), NOW, NOW - 99, [first])).attempts[-1]
    assert second.memory == 1.5
    again = replace(over(137), attempts=[first, second], troubles=[Pod("w", "worker", ended_by="OOMKilled")])
    assert follow(again).phase == "Failed"


def test_pauses_double_up_to_a_limit_and_disruptions_cost_none() -> None:
    failed = [Attempt(n, 0, 0, 1, "Retriable") for n in range(1, 12)]
    pauses = [pause_s(failed[:n]) for n in range(1, 12)]
    assert pauses[:4] == [5, 10, 20, 40]
    assert pauses[-1] == BACKOFF_MAX_S
    assert pause_s([Attempt(1, 0, 0, 1, "Preempted")]) == 0


def test_suspending_takes_the_pods_away_and_is_no_failure() -> None:
    plan = follow(replace(RUNNING, wanted=Wanted(is_suspended=True)))
    assert (plan.phase, plan.action, plan.attempts[-1].reason) == ("Suspended", None, "Suspended")
    after = replace(RUNNING, wanted=Wanted(is_suspended=True), attempts=plan.attempts)
    assert follow(after).action == "collect logs"
    saved = [replace(plan.attempts[-1], logs=SAVED)]
    assert follow(replace(after, attempts=saved)).action == "remove runner"
    resumed = follow(Observed(Wanted(backoff_limit=0), NOW, NOW - 99, saved))
    assert [a.number for a in resumed.attempts] == [1, 2]


def test_a_finished_job_goes_when_its_time_is_over_and_not_before() -> None:
    finished = Observed(Wanted(ttl_s=60), NOW, NOW - 99, finished=("Succeeded", NOW - 50))
    assert (follow(finished).action, follow(finished).again_s) == (None, 10)
    assert follow(replace(finished, now=NOW + 10)).action == "remove job"
    assert follow(replace(finished, wanted=Wanted())).action is None


def test_a_deadline_is_looked_at_when_it_is_due() -> None:
    assert follow(replace(RUNNING, wanted=Wanted(active_deadline_s=300))).again_s == 290


# --- whole lives ----------------------------------------------------------------------------------------------------

ENDS = ["ok", "75", "2", "1", "none", "preempted", "oom", "image", "node", "silent", "0", "runtime", "denied"]
FINAL = {
    "2": "WrongSpec",
    "1": "CodeError",
    "image": "ImagePull",
    "node": "Unschedulable",
    "runtime": "RuntimeMissing",
    "denied": "StorageDenied",
}
RETRIED = {
    "75": "Retriable",
    "none": "RunnerLost",
    "preempted": "Preempted",
    "oom": "OutOfMemory",
    "silent": "SchedulerNotReady",
    "0": "NoManifest",
}


@dataclass
class World:
    """One MLJob's objects and storage; attempt n ends as `script` says, the ones after its last as the last."""

    script: Sequence[str]
    wanted: Wanted
    now: float = NOW
    attempts: Sequence[Attempt] = ()
    finished: tuple[Phase, float] | None = None
    reason: str = ""
    has_job_file: bool = False
    cluster: int | None = None
    runner: int | None = None
    log_files: int | None = None
    log_job: int | None = None
    workers: int | None = None
    is_committed: bool = False
    made: list[tuple[str, int]] = field(default_factory=list)

    @property
    def number(self) -> int:
        return len(self.attempts)

    def end(self) -> str:
        return self.script[min(self.number, len(self.script)) - 1]

    def observed(self) -> Observed:
        end = self.end() if self.attempts else ""
        troubles = []
        if self.workers is not None and end in ("image", "node"):
            troubles = [Pod("p", "worker", {"image": "ImagePullBackOff", "node": "Unschedulable"}[end], "", 99)]
        is_up = self.workers is not None and end not in ("image", "node", "silent", "runtime")
        runner = None if self.runner is None else Runner()
        if runner is not None and (is_up or end == "denied"):
            codes: dict[str, int | None] = {"ok": 0, "none": None, "preempted": None, "oom": 75, "denied": 2}
            code = codes[end] if end in codes else int(end)
            runner = Runner(True, code, end == "preempted", "StorageDeniedError" if end == "denied" else "")
            self.is_committed = self.is_committed or end == "ok"
            if end == "oom":
                troubles = [Pod("p", "worker", ended_by="OOMKilled")]
        return Observed(
            self.wanted,
            self.now,
            NOW,
            self.attempts,
            has_runtime=end != "runtime",
            has_job_file=self.has_job_file,
            has_cluster=self.cluster is not None,
            has_remains=(self.cluster, self.workers) != (None, None),
            has_workers=self.workers is not None,
            runner=runner,
            is_input_ready=self.runner is not None and end != "denied",
            is_scheduler_ready=is_up,
            n_workers=int(is_up),
            troubles=troubles,
            manifest={} if self.is_committed else None,
            has_log_files=self.log_files is not None,
            log_job=None if self.log_job is None else Runner(True, 0),
            finished=self.finished,
        )

    def do(self, action: Action) -> None:
        verb, _, what = action.partition(" ")
        if verb in ("make", "collect"):
            assert (what, self.number) not in self.made, f"{what} of attempt {self.number} is made twice"
            self.made.append((what, self.number))
        match action:
            case "make job file":
                self.has_job_file = True
            case "make cluster":
                assert (self.runner, self.cluster, self.workers) == (None, None, None)
                self.cluster = self.number
            case "make runner":
                assert (self.runner, self.cluster, self.workers) == (None, self.number, None)
                self.runner = self.number
            case "make workers":
                assert (self.runner, self.cluster, self.workers) == (self.number, self.number, None)
                self.workers = self.number
            case "collect logs":
                assert self.number in (self.runner, self.cluster)
                self.log_files = self.number
            case "make log job":
                assert self.log_files == self.number
                self.log_job = self.number
            case "remove runner":
                self.runner = None
            case "remove cluster":
                self.cluster = self.workers = None
            case "remove logs":
                self.log_files = self.log_job = None


def live(world: World, kills: Sequence[int]) -> None:
    """Go round until nothing more is to be done; `kills` has the rounds after which only half was done."""
    for n in range(400):
        plan = follow(world.observed())
        if n in kills and n % 2:
            continue  # killed before the status was written
        if plan.phase in ("Succeeded", "Failed") and world.finished is None:
            world.finished, world.reason = (plan.phase, world.now), plan.reason
        world.attempts = plan.attempts
        if n in kills:
            continue  # killed before the action
        if plan.action is not None:
            world.do(plan.action)
        elif plan.again_s is not None:
            world.now += plan.again_s
        elif world.finished is not None:
            return
    raise AssertionError(f"no end after 400 rounds: {world}")


@given(
    st.lists(st.sampled_from(ENDS), min_size=1, max_size=6),
    st.integers(0, 5),
    st.lists(st.integers(0, 60), max_size=20),
)
def test_every_life_ends_as_its_script_says_whenever_the_controller_is_killed(
    script: list[str], backoff_limit: int, kills: list[int]
) -> None:
    world = World(script, Wanted(backoff_limit=backoff_limit))
    live(world, kills)
    assert (world.cluster, world.workers, world.log_files, world.log_job) == (None, None, None, None)
    assert world.runner in (None, world.number)
    assert world.finished is not None
    assert all(a.logs for a in world.attempts)
    phase, _ = world.finished
    ends = [script[min(n, len(script) - 1)] for n in range(world.number)]
    assert [a.reason for a in world.attempts[:-1]] == [RETRIED[end] for end in ends[:-1]]
    counted = [a for a in world.attempts if a.reason not in DISRUPTIONS]
    assert len(counted) <= backoff_limit + 1
    if ends[-1] == "ok":
        assert phase == "Succeeded"
    else:
        assert (phase, world.reason) == ("Failed", {**FINAL, **RETRIED}[ends[-1]])
