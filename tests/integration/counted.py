"""A model that counts how often each sample went into its weights, and fits of it under faults."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from jobs.training.trainer import Trainer, TrainResult

N, BATCH, EPOCHS = 960, 96, 3


class Counts(nn.Module):
    """Samples' numbers → what each has been counted, and a perceptron beside it whose weights depend on the order.

    With `counting_loss` and plain SGD at a learning rate of 1, a step adds 1 / (samples of the step) to each of its
    samples' counts.
    """

    def __init__(self, n_samples: int) -> None:
        super().__init__()
        self.counts = nn.Parameter(torch.zeros(n_samples))
        self.net = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 1))

    def forward(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.stack([torch.sin(numbers * k) for k in (1.0, 0.37, 0.11, 0.013)], dim=1)
        return self.counts[numbers], self.net(features)[:, 0]


def counting_loss(outputs: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
    counts, predicted = outputs
    return ((predicted - targets) ** 2).mean() - (counts - counts.detach()).mean()


def absolute_error(outputs: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
    return (outputs[1] - targets).abs().mean()


def optimiser(model: nn.Module) -> torch.optim.Optimizer:
    assert isinstance(model, Counts)
    net = {"params": model.net.parameters(), "lr": 0.02, "momentum": 0.9}
    return torch.optim.SGD([{"params": [model.counts], "lr": 1.0}, net], lr=1.0)


@dataclass(frozen=True)
class Numbers:
    """Samples 0 … n − 1; reading a micro-batch takes a while, until there is a file that says: no more."""

    n_samples: int
    delay_s: float = 0.0
    until: Path | None = None

    def open(self) -> Numbers:
        return self

    def batch(self, indices: NDArray[np.int64], epoch: int) -> tuple[Tensor, Tensor]:
        if self.until is None or not self.until.exists():
            time.sleep(self.delay_s)
        numbers = torch.from_numpy(indices)
        return numbers, torch.cos(numbers * 0.05)


TRAINER = Trainer(
    model_fn=partial(Counts, N),
    loss_fn=counting_loss,
    optimiser_fn=optimiser,
    data=Numbers(N),
    epochs=EPOCHS,
    batch_size=BATCH,
    micro_batch_size=16,
    seed=3,
    validation=Numbers(200),
    metric_fn=absolute_error,
    timeout_s=60,
    start_timeout_s=120,
)


def assert_each_was_counted_once(result: TrainResult, rtol: float) -> None:
    """Once an epoch, that is."""
    counts = result.state_dict["counts"] * BATCH
    torch.testing.assert_close(counts, torch.full((N,), float(EPOCHS)), rtol=rtol, atol=0)
