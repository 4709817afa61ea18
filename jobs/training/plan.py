"""What a fit consists of, known to all ranks alike: the trainer's arguments, the data, and the order of steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]


class OpenData(Protocol):
    """Training data where it is used."""

    def batch(self, indices: NDArray[np.int64], epoch: int) -> Batch:
        """Return inputs (k, ...) and targets (k, ...); augmentation depends on seed, epoch and index alone."""
        ...


class Data(Protocol):
    """Training data as it is sent to the ranks: small and picklable."""

    @property
    def n_samples(self) -> int:
        """How many there are."""
        ...

    def open(self) -> OpenData:
        """Make it readable on this worker."""
        ...


@dataclass(frozen=True)
class Plan:
    """What all ranks know: the trainer's arguments."""

    model_fn: Callable[[], nn.Module]
    loss_fn: Callable[[Tensor, Tensor], Tensor]
    optimiser_fn: Callable[[nn.Module], torch.optim.Optimizer]
    schedule_fn: Callable[[float], float]
    data: Data
    epochs: int
    batch_size: int
    micro_batch_size: int
    seed: int
    world_size: int
    timeout_s: float
    n_threads: int | None = None


@dataclass(frozen=True)
class Step:
    """One optimiser step: its samples by micro-batch, the epoch, and the samples seen before it."""

    micro_batches: list[NDArray[np.int64]]
    epoch: int
    n_seen: int
    is_last_of_epoch: bool

    @property
    def n(self) -> int:
        """Samples of the step."""
        return sum(map(len, self.micro_batches))


def steps(plan: Plan) -> Iterator[Step]:
    """Yield all steps of a fit: a function of seed and sizes alone. An epoch's last batch may be smaller."""
    n = plan.data.n_samples
    for epoch in range(plan.epochs):
        order = np.random.default_rng(np.random.SeedSequence([plan.seed, epoch])).permutation(n)
        for start in range(0, n, plan.batch_size):
            batch = order[start : start + plan.batch_size]
            micro_batches = np.array_split(batch, math.ceil(len(batch) / plan.micro_batch_size))
            yield Step(micro_batches, epoch, epoch * n + start, start + plan.batch_size >= n)
