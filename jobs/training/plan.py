"""What a fit consists of, known to all ranks alike: the trainer's arguments, the data, and the order of steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from jobs.training.checkpoints import Checkpoints

Batch = tuple[Tensor, Tensor]
Precision = Literal["auto", "float32", "bfloat16"]


class OpenData(Protocol):
    """Data where it is used."""

    def batch(self, indices: NDArray[np.int64], epoch: int) -> Batch:
        """Return inputs (k, ...) and targets (k, ...); augmentation depends on seed, epoch and index alone."""
        ...


class Data(Protocol):
    """Data as it is sent to the ranks: small and picklable."""

    @property
    def n_samples(self) -> int:
        """How many there are."""
        ...

    def open(self) -> OpenData:
        """Make it readable in a rank's process."""
        ...


@runtime_checkable
class DataOnWorkers(Protocol):
    """Data that only a Dask worker's own process can reach."""

    @property
    def n_samples(self) -> int:
        """How many there are."""
        ...

    def fetched(self) -> AbstractContextManager[Data]:
        """Bring it to this machine for as long as a rank runs; called on the worker, before the rank starts."""
        ...


@dataclass(frozen=True)
class Plan:
    """What all ranks know: the trainer's arguments."""

    model_fn: Callable[[], nn.Module]
    loss_fn: Callable[[Tensor, Tensor], Tensor]
    optimiser_fn: Callable[[nn.Module], torch.optim.Optimizer]
    schedule_fn: Callable[[float], float]
    data: Data | DataOnWorkers
    epochs: int
    batch_size: int
    micro_batch_size: int
    seed: int
    timeout_s: float
    validation: Data | None = None
    metric_fn: Callable[[Tensor, Tensor], Tensor] | None = None
    precision: Precision = "float32"
    checkpoints: Checkpoints | None = None
    checkpoint_every_s: float = 60.0

    # Asked for in each step, and data may have to count.
    @cached_property
    def n_samples(self) -> int:
        """Training samples."""
        return self.data.n_samples

    @cached_property
    def n_validation(self) -> int:
        """Validation samples."""
        return self.validation.n_samples if self.validation is not None else 0

    @property
    def n_total(self) -> int:
        """Training samples of all epochs."""
        return self.epochs * self.n_samples

    @property
    def n_train_steps(self) -> int:
        """Optimiser steps of an epoch."""
        return math.ceil(self.n_samples / self.batch_size)

    @property
    def n_epoch_steps(self) -> int:
        """Steps of an epoch, those of its validation among them."""
        return self.n_train_steps + math.ceil(self.n_validation / self.batch_size)

    @property
    def n_steps(self) -> int:
        """Steps of the fit."""
        return self.epochs * self.n_epoch_steps


@dataclass(frozen=True)
class Step:
    """What is done by all ranks or by none: a batch trained on, or one that the model is validated on.

    Attributes
    ----------
    micro_batches
        Its samples.
    epoch
        Counted from 0.
    n_seen
        Training samples seen before it.
    is_training
        Whether the optimiser takes a step.
    is_last_of_epoch
        Whether the epoch ends with it.
    """

    micro_batches: list[NDArray[np.int64]]
    epoch: int
    n_seen: int
    is_training: bool
    is_last_of_epoch: bool

    @property
    def n(self) -> int:
        """Samples of the step."""
        return sum(map(len, self.micro_batches))


def steps(plan: Plan, first: int = 0) -> Iterator[Step]:
    """Yield the steps of a fit from the `first` on: a function of seed and sizes alone. Last batches may be smaller."""
    n = plan.n_samples
    for epoch in range(first // plan.n_epoch_steps, plan.epochs):
        order = np.random.default_rng(np.random.SeedSequence([plan.seed, epoch])).permutation(n)
        for index in range(max(first - epoch * plan.n_epoch_steps, 0), plan.n_epoch_steps):
            is_training = index < plan.n_train_steps
            start = (index if is_training else index - plan.n_train_steps) * plan.batch_size
            if is_training:
                batch = order[start : start + plan.batch_size]
            else:
                batch = np.arange(start, min(start + plan.batch_size, plan.n_validation))
            micro_batches = np.array_split(batch, math.ceil(len(batch) / plan.micro_batch_size))
            n_seen = epoch * n + min(start if is_training else n, n)
            yield Step(micro_batches, epoch, n_seen, is_training, index == plan.n_epoch_steps - 1)
