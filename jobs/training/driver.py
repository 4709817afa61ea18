"""Leads the ranks of a fit from the process that asked for it: starts them, forms their generations, ends them.

It talks through Dask alone (events, `Client.run`, task results), so it needs no port of its own and no other
permission, and what Dask encrypts is encrypted. It takes no part in a step.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import random
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace
from typing import Any

import cloudpickle
from distributed import Client, Future, Semaphore

from jobs.errors import WorkersLostError
from jobs.training.hardware import Hardware, allowed_workers, choose_workers
from jobs.training.keeper import Orders, RankLostError, deliver, keep
from jobs.training.membership import Change, Membership, NewGeneration
from jobs.training.plan import DataOnWorkers, Plan
from jobs.training.processes import modules_in
from jobs.training.progress import Timings
from jobs.training.rank import RankResult

_log = logging.getLogger("daskyard.training")

_POLL_S = 0.1
_LOOK_EVERY_S = 0.5
_TELL_EVERY_S = 2.0
# What storage imports when it first sees an address of S3: where this process did, ranks will, for more than a second.
_LATE = {"s3fs"}
# One fit at a time takes workers, so that no two wait for each other's.
GANG = "daskyard-gang"
_GANG_TRY_S = 30.0
_GANG_PAUSE_S = 2.0
# The last ranks to end, after the first one did.
_END_S = 5.0
_RESULT_TIMEOUT_S = 300.0
_MAX_PAUSE_S = 60.0


@dataclass(frozen=True)
class Limits:
    """How many ranks, where, and how long is waited.

    Attributes
    ----------
    n_wanted, n_min, n_max
        Ranks at the start; fewest to go on with; most that are let in.
    start_timeout_s
        Longest wait for the ranks to be ready, at the start and when all were lost.
    timeout_s
        Longest wait of a rank for the others; nothing new in twice that time ends the fit.
    hang_timeout_s
        Longest silence of a rank's process.
    """

    n_wanted: int
    n_min: int
    n_max: int
    hardware: Hardware
    start_timeout_s: float
    timeout_s: float
    hang_timeout_s: float
    n_threads: int | None


@dataclass(frozen=True)
class Outcome:
    """What a fit ends with: the first rank's result, every last rank's timings, and who came and went."""

    result: RankResult
    digests: frozenset[str]
    timings: list[Timings]
    timeline: list[Change]


@dataclass
class _Keeper:
    member: str
    address: str
    future: Future
    is_started: bool = False


class Driver:
    """One fit."""

    def __init__(
        self,
        client: Client,
        plan: Plan,
        limits: Limits,
        on_progress: Callable[[int, int], None] | None = None,
        on_change: Callable[[Change], None] | None = None,
    ) -> None:
        self._client, self._plan, self._limits = client, plan, limits
        self._on_progress, self._on_change = on_progress, on_change
        self._topic = f"fit-{uuid.uuid4().hex[:12]}"
        pickled = cloudpickle.dumps(plan)
        self._orders = Orders(
            member="",
            topic=self._topic,
            plan=pickled,
            modules=(*modules_in(pickled), *(_LATE & sys.modules.keys())),
            data=cloudpickle.dumps(plan.data) if isinstance(plan.data, DataOnWorkers) else None,
            n_threads=limits.n_threads,
            is_on_cpu=limits.hardware == "cpu",
            hang_timeout_s=limits.hang_timeout_s,
            work_timeout_s=limits.timeout_s,
        )
        self._events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._membership = Membership(limits.n_wanted, limits.n_min, limits.n_max)
        self._keepers: dict[str, _Keeper] = {}
        self._futures: list[Future] = []
        self._n_started = 0
        self._losses: Counter[str] = Counter()  # by worker
        self._retry_at: dict[str, float] = {}
        self._leaving: set[str] = set()
        self._done: dict[str, dict[str, Any]] = {}
        self._n_seen = self._n_changes_told = 0
        self._moved_at = self._told_at = self._looked_at = time.monotonic()

    def run(self) -> Outcome:
        """See `Trainer.fit`."""
        client = self._client
        client.subscribe_topic(self._topic, lambda event: self._events.put(event[1]))
        try:
            self._start_gang()
            self._lead()
            return self._outcome()
        finally:
            client.unsubscribe_topic(self._topic)
            with contextlib.suppress(CancelledError, OSError):
                client.cancel(self._futures, force=True)

    # --- start ------------------------------------------------------------------------------------------------------

    def _start_gang(self) -> None:
        """Have all ranks started on workers, or none: workers are not held while others are waited for."""
        limits, deadline = self._limits, time.monotonic() + self._limits.start_timeout_s
        choose_workers(self._client, limits.n_wanted, limits.hardware)  # waits for them without keeping others waiting
        while True:
            with self._gate(deadline):
                for address in choose_workers(self._client, limits.n_wanted, limits.hardware):
                    self._start(address)
                is_last = time.monotonic() + _GANG_TRY_S > deadline
                n_started = self._await_started(min(time.monotonic() + _GANG_TRY_S, deadline))
                if n_started == limits.n_wanted or (is_last and n_started >= limits.n_min):
                    return
                waiting = [keeper.address for keeper in self._keepers.values() if not keeper.is_started]
                self._client.cancel([keeper.future for keeper in self._keepers.values()], force=True)
                self._keepers.clear()
            if time.monotonic() >= deadline:
                raise WorkersLostError(
                    f"training: {n_started} of {limits.n_wanted} ranks started in {limits.start_timeout_s:.0f} s, "
                    f"{', '.join(waiting)} had other work; run the job again, or lower params.world_size"
                )
            time.sleep(random.uniform(0.5, 1.5) * _GANG_PAUSE_S)

    @contextlib.contextmanager
    def _gate(self, deadline: float) -> Iterator[None]:
        # Its lease ends by itself if this process dies.
        gate = Semaphore(1, GANG, self._client.scheduler, self._client.loop)
        try:
            if not gate.acquire(timeout=max(deadline - time.monotonic(), _POLL_S)):
                raise WorkersLostError(
                    f"training: other fits took their workers for {self._limits.start_timeout_s:.0f} s; "
                    "run the job again later"
                )
            try:
                yield
            finally:
                gate.release()
        finally:
            gate.refresh_callback.stop()

    def _await_started(self, deadline: float) -> int:
        while any(not keeper.is_started for keeper in self._keepers.values()) and time.monotonic() < deadline:
            self._take_events()
            self._look_at_futures()
        return sum(keeper.is_started for keeper in self._keepers.values())

    def _start(self, address: str) -> None:
        self._n_started += 1
        member = f"{address}#{self._n_started}"
        future = self._client.submit(
            keep,
            replace(self._orders, member=member),
            key=f"{self._topic}-rank-{self._n_started}",
            workers=[address],
            allow_other_workers=False,
            pure=False,
            retries=0,
            # The scheduler then knows that the GPU is in use, and gives it to no other task that asks for one.
            **({"resources": {"GPU": 1}} if self._limits.hardware == "gpu" else {}),
        )
        self._futures.append(future)
        self._keepers[member] = _Keeper(member, address, future)

    # --- lead -------------------------------------------------------------------------------------------------------

    def _lead(self) -> None:
        """Return when the ranks are through."""
        membership, limits = self._membership, self._limits
        short_since = time.monotonic()
        first_done_at: float | None = None
        while True:
            self._take_events()
            self._look_at_futures()
            self._tell_changes()
            now = time.monotonic()
            if self._done:
                first_done_at = first_done_at or now
                if all(m in self._done or m not in self._keepers for m in membership.current):
                    return
                if now - first_done_at > _END_S:
                    return
                continue
            if now - self._looked_at > _LOOK_EVERY_S:
                self._looked_at = now
                self._look_at_workers()
            if not membership.is_short:
                short_since = now
            is_late = now - short_since > limits.start_timeout_s
            following = membership.decide(time.time(), is_late)
            if following is not None:
                self._tell(following)
            elif membership.current and not membership.is_formed and now - self._told_at > _TELL_EVERY_S:
                self._tell(membership.peers())
            self._give_up(is_late and following is None)

    def _give_up(self, is_late: bool) -> None:
        membership, limits = self._membership, self._limits
        if membership.is_hopeless:
            raise WorkersLostError(
                f"training: ranks were lost {membership.n_tries} times at step {membership.position + 1}, the last: "
                f"{membership.last_loss}; give workers more memory, or lower params.micro_batch_size"
            )
        if is_late:
            why = f", the last was lost: {membership.last_loss}" if membership.last_loss else ""
            raise WorkersLostError(
                f"training: {membership.n_ready} ranks ready in {limits.start_timeout_s:.0f} s, {limits.n_min} are "
                f"needed{why}; run the job again"
            )
        if membership.current and time.monotonic() - self._moved_at > 2 * limits.timeout_s:
            raise WorkersLostError(
                f"training: no step in {2 * limits.timeout_s:.0f} s; look at the workers' logs, or run the job again"
            )

    def _tell(self, generation: NewGeneration) -> None:
        self._told_at = time.monotonic()
        addresses = sorted({keeper.address for keeper in self._keepers.values()})
        self._client.loop.add_callback(self._deliver, generation, addresses)

    async def _deliver(self, generation: NewGeneration, addresses: list[str]) -> None:
        # Not waited for: a worker that hangs must not keep the others waiting. What is lost is told again.
        with contextlib.suppress(Exception):
            await self._client._run(
                deliver,
                self._topic,
                generation.number,
                list(generation.peers),
                workers=addresses,
                on_error="ignore",
            )

    # --- what happens -----------------------------------------------------------------------------------------------

    def _take_events(self) -> None:
        """Wait a moment for events, and take in all there are."""
        with contextlib.suppress(queue.Empty):
            event = self._events.get(timeout=_POLL_S)
            while True:
                self._take(**event)
                event = self._events.get_nowait()

    def _take(self, kind: str, member: str, **facts: Any) -> None:
        membership, now = self._membership, time.time()
        keeper = self._keepers.get(member)
        if keeper is None:
            return  # of one that was given up
        if kind == "started":
            keeper.is_started = True
        elif kind == "ready":
            membership.ready(now, member, tuple(facts["peer"]), f"process {facts['pid']}")
        elif kind == "formed":
            membership.formed(facts["at"], member, facts["generation"], facts["position"])
        elif kind == "committed":
            self._moved_at = time.monotonic()
            membership.committed(now, facts["generation"], facts["position"], facts["at"])
        elif kind == "broken":
            membership.broken(now, facts["generation"], facts["why"])
            self._looked_at = 0.0
        elif kind == "progress":
            self._progress(facts["n_seen"])
        elif kind in ("lost", "left"):
            self._gone(keeper, facts.get("why", "it was told to leave"), is_planned=kind == "left")
        elif kind == "done":
            self._done[member] = facts

    def _progress(self, n_seen: int) -> None:
        self._moved_at = time.monotonic()
        if n_seen > self._n_seen:
            self._n_seen = n_seen
            if self._on_progress is not None:
                self._on_progress(n_seen, self._plan.n_total)

    def _tell_changes(self) -> None:
        timeline = self._membership.timeline
        while self._on_change is not None and self._n_changes_told < len(timeline):
            self._n_changes_told += 1
            self._on_change(timeline[self._n_changes_told - 1])

    def _look_at_futures(self) -> None:
        for keeper in list(self._keepers.values()):
            if keeper.member in self._done:
                continue
            status = keeper.future.status
            if status == "error":
                error = keeper.future.exception(timeout=_RESULT_TIMEOUT_S)
                assert error is not None
                if not self._is_loss(error, keeper):
                    raise error
                self._gone(keeper, str(error))
            elif status in ("cancelled", "lost"):
                if status == "cancelled" and _why_cancelled(keeper.future) == "scheduler-connection-lost":
                    # The client may have found a new scheduler, but no event of this fit would come from there.
                    raise WorkersLostError("training: connection to the scheduler lost; run the job again")
                self._gone(keeper, f"{keeper.address}: the worker's task was {status}")

    def _is_loss(self, error: BaseException, keeper: _Keeper) -> bool:
        """Whether the others go on: the rank was lost, or one that was to join could not get what it needs."""
        if isinstance(error, RankLostError | CancelledError):
            return True
        is_training = keeper.member in self._membership.current
        return bool(self._membership.current) and not is_training and getattr(error, "exit_code", 1) == 75

    def _look_at_workers(self) -> None:
        """Find workers that left, and those that could take part."""
        allowed = allowed_workers(self._client, self._limits.hardware)
        self._look_at_futures()  # a new scheduler may have answered, which knows no worker yet
        for keeper in list(self._keepers.values()):
            if keeper.address not in allowed:
                self._gone(keeper, f"{keeper.address}: the worker is gone")
        used, now = {keeper.address for keeper in self._keepers.values()}, time.monotonic()
        for address in allowed:
            if len(self._keepers) >= self._limits.n_max:
                return
            if address not in used and address not in self._leaving and now >= self._retry_at.get(address, 0.0):
                self._start(address)

    def _gone(self, keeper: _Keeper, why: str, is_planned: bool = False) -> None:
        if self._keepers.pop(keeper.member, None) is None:
            return
        _log.log(logging.INFO if is_planned else logging.WARNING, "training: %s", why)
        self._membership.gone(time.time(), keeper.member, why, is_planned)
        self._looked_at = 0.0
        if is_planned:
            self._leaving.add(keeper.address)
            return
        with contextlib.suppress(CancelledError, OSError):
            self._client.cancel([keeper.future], force=True)
        pause = min(2.0 ** self._losses[keeper.address], _MAX_PAUSE_S)
        self._losses[keeper.address] += 1
        self._retry_at[keeper.address] = time.monotonic() + pause

    # --- end --------------------------------------------------------------------------------------------------------

    def _outcome(self) -> Outcome:
        result = self._fetched_result()
        return Outcome(
            result,
            frozenset(facts["digest"] for facts in self._done.values()),
            [Timings(**facts["timings"]) for facts in self._done.values()],
            self._membership.timeline,
        )

    def _fetched_result(self) -> RankResult:
        """Get the result from a worker that still has it: all of them have the same."""
        for member in sorted(self._done, key=lambda member: self._membership.current.index(member)):
            future = self._keepers[member].future
            try:
                pickled = future.result(timeout=_RESULT_TIMEOUT_S)
            except (TimeoutError, CancelledError, OSError) as error:
                _log.warning("training: %s has its result no more: %s", member, error)
                continue
            if pickled is not None:
                result: RankResult = cloudpickle.loads(pickled)
                return result
        raise WorkersLostError("training: all workers that had the result were lost; run the job again")


def _why_cancelled(future: Future) -> str:
    try:
        future.result(timeout=_RESULT_TIMEOUT_S)
    except CancelledError as error:
        return getattr(error, "reason", None) or ""
    return ""
