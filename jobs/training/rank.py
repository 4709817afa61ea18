"""One rank of a fit: generations of ranks come and go, the steps of the fit go on.

Each step's global batch is cut into the same micro-batches whatever the number of ranks; rank r of W computes those
numbered r, r + W, …. What they yield is summed over the ranks in one all-reduce, and nothing of the step is kept before
that: a step that lost a rank is done again by those that are left. All-reduce may have ended for some when another one
died, so whoever is behind when a generation begins gets the state of one that is ahead; so does who joins.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from jobs.errors import SpecError
from jobs.training.collective import CollectiveError, Form, Group, Peer, pick_device
from jobs.training.control import Control, Unled
from jobs.training.meeting import MeetingPlace
from jobs.training.plan import Data, Plan, Step, steps
from jobs.training.prefetch import Prefetcher
from jobs.training.progress import Epoch, Progress, Timings
from jobs.training.snapshots import Snapshots
from jobs.training.sums import Sums

_PROGRESS_EVERY_S = 0.5
_model_lock = threading.Lock()  # torch's generator is one for the process, in which other ranks may run


@dataclass
class RankResult:
    """What a rank ends with."""

    digest: str
    timings: Timings
    state_dict: dict[str, Tensor]
    history: list[Epoch]
    position: int


class PeerFailedError(RuntimeError):
    """Another rank failed, and said so."""


class LeftError(RuntimeError):
    """This rank was told to leave, and did."""


def build_model(plan: Plan) -> nn.Module:
    """Make the model with torch's generator seeded, and leave the generator as it was."""
    with _model_lock, torch.random.fork_rng():
        torch.manual_seed(plan.seed)
        return plan.model_fn()


def run_alone(plan: Plan, n_threads: int | None, is_on_cpu: bool = False) -> RankResult:
    """Train in this process, as the only rank. Raises what the model, the data or the loss raised."""
    device = torch.device("cpu") if is_on_cpu else pick_device()
    with _threads(n_threads or torch.get_num_threads()), torch.random.fork_rng():
        return Rank(plan, "here", device, Unled(), None).run()


class Rank:
    """Trains, in whatever generations it is led through."""

    def __init__(
        self, plan: Plan, member: str, device: torch.device, control: Control, place: MeetingPlace | None
    ) -> None:
        self.plan, self.member, self.device, self.control, self.place = plan, member, device, control, place
        self.timings, self.progress = Timings(), Progress()
        self.last_report, self.is_first = 0.0, False
        is_bfloat16 = plan.precision == "bfloat16" or (plan.precision == "auto" and device.type == "cuda")
        self.precision = torch.autocast(device.type, torch.bfloat16) if is_bfloat16 else nullcontext()

    def run(self) -> RankResult:
        """Train to the end.

        Raises
        ------
        LeftError, PeerFailedError
            When it was told to leave, or another rank failed.
        Exception
            What the model, the data or the loss raised.
        """
        self._prepare()
        if self.place is not None:
            peer = Peer.of(self.member, self.place, self.device)
            self.control.tell("ready", pid=os.getpid(), peer=list(asdict(peer).values()))
        form = self.control.next_form(0)
        self.start = self.mark = time.perf_counter()
        while not self._generation(form):
            if self.control.is_leaving:
                raise LeftError(self.member)
            self.control.doing("wait")
            form = self.control.next_form(form.generation)
        return self._result()

    def _prepare(self) -> None:
        self.model = build_model(self.plan).to(self.device)
        if self.device.type == "cuda":
            self.model = self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimiser = self.plan.optimiser_fn(self.model)
        self.base_lrs = [group["lr"] for group in self.optimiser.param_groups]
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.buffers = list(self.model.buffers())
        self.sums = Sums(self.parameters, self.buffers, self.device)
        start = time.perf_counter()
        self.data = cast(Data, self.plan.data).open()  # what lay on workers, the keeper has fetched
        self.validation = self.plan.validation.open() if self.plan.validation is not None else None
        self.timings.open_s = time.perf_counter() - start
        self.snapshots = Snapshots(self.plan.checkpoints, self.plan.checkpoint_every_s)

    def _generation(self, form: Form) -> bool:
        """Train with these peers; return whether that was to the end of the fit."""
        group, is_broken, self.is_first = None, False, form.members[0] == self.member
        self.control.doing("wait")
        try:
            group = Group(form, self.member, self.plan.timeout_s, self.control.is_over, self.control.is_followed)
            self.control.on_news(group.look_again)
            self._catch_up(group)
            self.control.tell("formed", generation=form.generation, position=self.progress.position, at=time.time())
            self._count_as_lost()
            self._train(group)
        except CollectiveError as error:
            is_broken = True
            self.control.tell("broken", generation=form.generation, why=str(error))
        finally:
            self.control.on_news(lambda: None)
            if group is not None:
                group.close(is_broken)
        return self.progress.position == self.plan.n_steps

    def _train(self, group: Group) -> None:
        first = self.progress.position
        rest = (self.data, self.validation, self.plan, first, group.rank, group.world_size, self.device)
        with Prefetcher(*rest) as prefetcher:
            for step in steps(self.plan, first):
                is_changed = self._step(step, group, prefetcher)
                if self.progress.position == first + 1:
                    self.control.tell("committed", generation=group.generation, position=first + 1, at=time.time())
                self._report(step, group)
                if self.is_first and self.progress.position < self.plan.n_steps:
                    self.control.doing("store")
                    start = time.perf_counter()
                    self.snapshots.offer(self.progress.position, self._state, is_due=step.is_last_of_epoch)
                    self.timings.checkpoint_s += time.perf_counter() - start
                if is_changed:
                    return

    # --- one step ---------------------------------------------------------------------------------------------------

    def _step(self, step: Step, group: Group, prefetcher: Prefetcher) -> bool:
        """Do a step and keep it; return whether the generation is to end with it."""
        self.mark = time.perf_counter()
        before = [buffer.clone() for buffer in self.buffers]
        self.spent = Timings()
        failure: Exception | None = None
        self.sums.begin(step.is_training)
        try:
            self._set_learning_rate(step)
            self._accumulate(step, group, prefetcher, before)
        except Exception as error:
            failure = error
        try:
            is_changed = self._agree(group, failure)
        except BaseException:
            self._restore(before)
            raise
        start = time.perf_counter()
        loss, metric = self.sums.unpack(len(step.micro_batches))
        if step.is_training:
            if not math.isfinite(loss):  # of all ranks alike, since it is the sum
                raise SpecError(
                    f"params.learning_rate: the loss became {loss} in epoch {step.epoch + 1}; "
                    "lower it, or look for infinite values in the input"
                )
            self.optimiser.step()
        else:
            self._restore(before)
        self.spent.compute_s += time.perf_counter() - start
        self._commit(step, loss, metric)
        return is_changed

    def _set_learning_rate(self, step: Step) -> None:
        if step.is_training:
            factor = self.plan.schedule_fn(step.n_seen / self.plan.n_total)
            for group, lr in zip(self.optimiser.param_groups, self.base_lrs, strict=True):
                group["lr"] = lr * factor

    def _accumulate(self, step: Step, group: Group, prefetcher: Prefetcher, before: list[Tensor]) -> None:
        self.model.train(step.is_training)
        for index in range(group.rank, len(step.micro_batches), group.world_size):
            self.control.doing("read")
            start = time.perf_counter()
            inputs, targets = prefetcher.next()
            ready = time.perf_counter()
            self.spent.data_wait_s += ready - start
            self.control.doing("compute" if step.is_training else "validate")
            self._restore(before)
            # Dropout and the like draw the same numbers for the same samples on any rank.
            torch.manual_seed(_mixed(self.plan.seed, step.n_seen, index))
            self.optimiser.zero_grad(set_to_none=True)
            with torch.set_grad_enabled(step.is_training), self.precision:
                outputs = self.model(inputs)
                loss = self.plan.loss_fn(outputs, targets)
                metric = None
                if self.plan.metric_fn is not None and not step.is_training:
                    metric = self.plan.metric_fn(outputs, targets)
            if step.is_training:
                loss.backward()
            self.sums.add(loss, metric, len(targets) * len(step.micro_batches) / step.n)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.spent.compute_s += time.perf_counter() - ready

    def _restore(self, before: list[Tensor]) -> None:
        with torch.no_grad():
            for buffer, value in zip(self.buffers, before, strict=True):
                buffer.copy_(value)

    def _agree(self, group: Group, failure: Exception | None) -> bool:
        """Sum over the ranks; return whether one of them wants the generation to end."""
        self.sums.sign(failure is not None, self.control.wants_change())
        self.control.doing("wait")
        start = time.perf_counter()
        try:
            group.sum_(self.sums.flat)
        except CollectiveError:
            if failure is None:
                raise
        self.spent.all_reduce_s += time.perf_counter() - start
        if failure is not None:
            raise failure
        is_failed, is_changed = self.sums.signs()
        if is_failed:
            raise PeerFailedError(f"{self.member}: another rank failed")
        self.control.doing("step")
        return is_changed

    def _commit(self, step: Step, loss: float, metric: float) -> None:
        now = time.perf_counter()
        lr = float(self.optimiser.param_groups[0]["lr"])
        self.progress = self.progress.after(self.plan, step, loss, metric, lr, now - self.mark)
        self.timings.add(self.spent)
        self.mark = now

    # --- state ------------------------------------------------------------------------------------------------------

    def _catch_up(self, group: Group) -> None:
        """Bring all ranks to the state of the one that is furthest; where all begin, to the last checkpoint."""
        positions = group.gather(self.progress.position)
        furthest = max(positions)
        if furthest == min(positions) and furthest > 0:
            return
        source = positions.index(furthest)
        state = None
        if group.rank == source:
            if furthest == 0:
                stored = self.snapshots.last()
                if stored is not None:
                    self._load(stored)
            state = self._state()
        if group.world_size > 1:
            state = group.hand_out(state, source)
            if group.rank != source:
                self._load(state)

    def _state(self) -> bytes:
        buffer = io.BytesIO()
        state = {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "progress": asdict(self.progress),
        }
        torch.save(state, buffer)
        return buffer.getvalue()

    def _load(self, data: bytes) -> None:
        state: dict[str, Any] = torch.load(io.BytesIO(data), map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.progress = Progress.of(state["progress"])

    def _result(self) -> RankResult:
        self.timings.total_s = time.perf_counter() - self.start
        if self.is_first:
            self.snapshots.end(self.progress.position, self._state)
        weights = {name: value.detach().cpu().contiguous() for name, value in self.model.state_dict().items()}
        return RankResult(_digest(weights), self.timings, weights, self.progress.history, self.progress.position)

    # --- reports ----------------------------------------------------------------------------------------------------

    def _count_as_lost(self) -> None:
        now = time.perf_counter()
        self.timings.lost_s += now - self.mark
        self.mark = now

    def _report(self, step: Step, group: Group) -> None:
        now = time.perf_counter()
        if now - self.last_report > _PROGRESS_EVERY_S or step.is_last_of_epoch:
            self.last_report = now
            self.timings.total_s = now - self.start
            n_seen = step.n_seen + (step.n if step.is_training else 0)
            self.control.tell("progress", rank=group.rank, n_seen=n_seen, timings=asdict(self.timings))


@contextmanager
def _threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _mixed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _digest(state: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
