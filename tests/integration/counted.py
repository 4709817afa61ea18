"""A model that counts how often each sample went into its weights, and fits of it under faults."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


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
