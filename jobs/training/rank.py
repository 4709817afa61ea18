"""One rank of a fit: the loop that runs as a task on a worker, or alone in this process.

Each step's global batch is cut into the same micro-batches whatever the number of ranks; rank r of W computes those
numbered r, r + W, …. What they yield is summed over the ranks in one all-reduce, which also tells who failed: so a step
ends for all ranks or for none.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from distributed import get_worker
from torch import Tensor, nn

from jobs.errors import SpecError
from jobs.training.collective import Alone, Group, pick_device
from jobs.training.plan import Plan, Step, steps
from jobs.training.prefetch import Prefetcher
from jobs.training.sums import Sums

_PROGRESS_EVERY_S = 0.5
_model_lock = threading.Lock()  # torch's generator is one for the process, in which other ranks may run


@dataclass
class Timings:
    """Seconds of one rank: waiting for data, computing, summing over the ranks (waiting for them included)."""

    data_wait_s: float = 0.0
    compute_s: float = 0.0
    all_reduce_s: float = 0.0
    total_s: float = 0.0


@dataclass(frozen=True)
class Epoch:
    """One pass: mean loss over its samples, learning rate of the first group at its end, seconds, samples/s."""

    loss: float
    lr: float
    seconds: float
    samples_per_s: float


@dataclass
class RankResult:
    """What a rank returns; only rank 0 sends the weights, the others their digest."""

    digest: str
    timings: Timings
    state_dict: dict[str, Tensor] | None = None
    history: list[Epoch] = field(default_factory=list)


class Watch(Protocol):
    """Who watches a rank from outside."""

    def is_cancelled(self) -> bool:
        """Return whether nobody wants the result any more."""
        ...

    def report(self, n_seen: int) -> None:
        """Take note of how many samples all ranks have seen."""
        ...


class PeerFailedError(RuntimeError):
    """Another rank failed, and said so."""


class CancelledFitError(RuntimeError):
    """Whoever asked for this fit does not want it any more."""


def build_model(plan: Plan) -> nn.Module:
    """Make the model with torch's generator seeded, and leave the generator as it was."""
    with _model_lock, torch.random.fork_rng():
        torch.manual_seed(plan.seed)
        return plan.model_fn()


def run_rank(plan: Plan, rank: int, address: tuple[str, int], topic: str, is_on_cpu: bool = False) -> RankResult:
    """Train; runs as a task. Raises what the model, the data or the loss raised, or CollectiveError."""
    worker = get_worker()
    device = torch.device("cpu") if is_on_cpu else pick_device()
    n_threads = worker.state.nthreads if device.type == "cpu" else torch.get_num_threads()
    with _threads(plan.n_threads or n_threads), torch.random.fork_rng():
        group = Group(address, rank, plan.world_size, device, plan.timeout_s)
        try:
            return _Rank(plan, rank, group, device, _Task(topic)).run()
        except Exception as error:
            # Dask keeps the error, and with its frames would keep what they refer to: the data among it.
            traceback.clear_frames(error.__traceback__)
            raise
        finally:
            group.close()


def run_alone(plan: Plan, is_on_cpu: bool = False) -> RankResult:
    """Train in this process, as the only rank. Raises what the model, the data or the loss raised."""
    device = torch.device("cpu") if is_on_cpu else pick_device()
    with _threads(plan.n_threads or torch.get_num_threads()), torch.random.fork_rng():
        return _Rank(plan, 0, Alone(), device, _Unwatched()).run()


class _Task:
    """The Dask task that runs the rank: who asked for the fit can cancel it, and hears of its progress."""

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.worker = get_worker()
        self.key = self.worker.get_current_task()

    def is_cancelled(self) -> bool:
        task = self.worker.state.tasks.get(self.key)
        return task is None or task.state == "cancelled"

    def report(self, n_seen: int) -> None:
        self.worker.log_event(self.topic, {"n_seen": n_seen})


class _Unwatched:
    def is_cancelled(self) -> bool:
        return False

    def report(self, n_seen: int) -> None:
        return


class _Rank:
    def __init__(self, plan: Plan, rank: int, group: Group | Alone, device: torch.device, watch: Watch) -> None:
        self.plan, self.rank, self.group, self.device, self.watch = plan, rank, group, device, watch
        self.timings = Timings()
        self.n_total = plan.epochs * plan.data.n_samples
        self.last_progress = 0.0

    def run(self) -> RankResult:
        # Until every rank is ready, one that failed must not leave the others waiting for their deadline.
        failure: Exception | None = None
        try:
            self._prepare()
        except Exception as error:
            failure = error
        self._agree(torch.zeros(2, dtype=torch.float64, device=self.device), failure)
        self.timings = Timings()
        start = time.perf_counter()
        history = self._train()
        self.timings.total_s = time.perf_counter() - start
        state = {name: value.detach().cpu().contiguous() for name, value in self.model.state_dict().items()}
        return RankResult(
            _digest(state),
            self.timings,
            state if self.rank == 0 else None,
            history if self.rank == 0 else [],
        )

    def _prepare(self) -> None:
        self.model = build_model(self.plan).to(self.device)
        self.model.train()
        self.optimiser = self.plan.optimiser_fn(self.model)
        self.base_lrs = [group["lr"] for group in self.optimiser.param_groups]
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.buffers = list(self.model.buffers())
        self.sums = Sums(self.parameters, self.buffers, self.device)
        self.data = self.plan.data.open()

    def _train(self) -> list[Epoch]:
        history: list[Epoch] = []
        loss_sum, epoch_start = 0.0, time.perf_counter()
        with Prefetcher(self.data, self.plan, self.rank, self.device) as prefetcher:
            for step in steps(self.plan):
                loss_sum += self._step(step, prefetcher) * step.n
                if step.is_last_of_epoch:
                    seconds = time.perf_counter() - epoch_start
                    n = self.plan.data.n_samples
                    lr = float(self.optimiser.param_groups[0]["lr"])
                    history.append(Epoch(loss_sum / n, lr, seconds, n / seconds))
                    loss_sum, epoch_start = 0.0, time.perf_counter()
                self._report(step, step.n_seen + step.n)
        return history

    def _step(self, step: Step, prefetcher: Prefetcher) -> float:
        factor = self.plan.schedule_fn(step.n_seen / self.n_total)
        for group, lr in zip(self.optimiser.param_groups, self.base_lrs, strict=True):
            group["lr"] = lr * factor
        failure: Exception | None = None
        self.sums.flat.zero_()
        try:
            self._accumulate(step, prefetcher)
        except Exception as error:
            failure = error
        self._agree(self.sums.flat, failure)
        start = time.perf_counter()
        loss = self.sums.unpack(len(step.micro_batches))
        if not math.isfinite(loss):  # of all ranks alike, since it is the sum
            raise SpecError(
                f"params.learning_rate: the loss became {loss} in epoch {step.epoch + 1}; "
                "lower it, or look for infinite values in the input"
            )
        self.optimiser.step()
        self.timings.compute_s += time.perf_counter() - start
        return loss

    def _accumulate(self, step: Step, prefetcher: Prefetcher) -> None:
        before = [buffer.clone() for buffer in self.buffers]
        for index in range(self.rank, len(step.micro_batches), self.plan.world_size):
            start = time.perf_counter()
            inputs, targets = prefetcher.next()
            ready = time.perf_counter()
            self.timings.data_wait_s += ready - start
            with torch.no_grad():
                for buffer, value in zip(self.buffers, before, strict=True):
                    buffer.copy_(value)
            # Dropout and the like draw the same numbers for the same samples on any rank.
            torch.manual_seed(_mixed(self.plan.seed, step.n_seen, index))
            self.optimiser.zero_grad(set_to_none=True)
            loss = self.plan.loss_fn(self.model(inputs), targets)
            loss.backward()
            share = len(targets) * len(step.micro_batches) / step.n
            self.sums.add(loss.detach(), share)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.timings.compute_s += time.perf_counter() - ready

    def _agree(self, flat: Tensor, failure: Exception | None) -> None:
        """Sum `flat` over the ranks; its last two places say how many of them failed and were cancelled."""
        flat[-2] = float(failure is not None)
        flat[-1] = float(self.watch.is_cancelled())
        start = time.perf_counter()
        try:
            self.group.sum_(flat)
        except RuntimeError:
            if failure is None:
                raise
        self.timings.all_reduce_s += time.perf_counter() - start
        if failure is not None:
            raise failure
        n_failed, n_cancelled = flat[-2:].tolist()
        if n_failed:
            raise PeerFailedError(f"rank {self.rank}: another rank failed")
        if n_cancelled:
            raise CancelledFitError(f"rank {self.rank}: the fit was cancelled")

    def _report(self, step: Step, n_seen: int) -> None:
        now = time.monotonic()
        if self.rank == 0 and (now - self.last_progress > _PROGRESS_EVERY_S or step.is_last_of_epoch):
            self.last_progress = now
            self.watch.report(n_seen)


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
