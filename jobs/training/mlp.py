"""A multi-layer perceptron for tables: network, data, loss and schedule for the Trainer. Called by neural_network."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from jobs.training.shards import OpenShards, Shards

# Share of the training in which the learning rate rises to its highest value.
_WARM_UP = 0.1


class MLP(nn.Sequential):
    """Linear layers with ReLU between them: (n, n_inputs) → (n, n_outputs)."""

    def __init__(self, n_inputs: int, hidden: Sequence[int], n_outputs: int) -> None:
        sizes = [n_inputs, *hidden]
        layers: list[nn.Module] = []
        for size, following in itertools.pairwise(sizes):
            layers += [nn.Linear(size, following), nn.ReLU()]
        super().__init__(*layers, nn.Linear(sizes[-1], n_outputs))


def adamw(model: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019); biases are not decayed."""
    biases = [p for p in model.parameters() if p.ndim == 1]
    weights = [p for p in model.parameters() if p.ndim > 1]
    groups = [{"params": weights, "weight_decay": weight_decay}, {"params": biases, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate)


def warm_up_and_cosine(share: float) -> float:
    """Factor on the learning rate at a share of the training in [0, 1)."""
    if share < _WARM_UP:
        return share / _WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (share - _WARM_UP) / (1 - _WARM_UP)))


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of logits (n, k) against classes (n,)."""
    return F.cross_entropy(outputs, targets.long())


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error of outputs (n, 1) against standardised targets (n,)."""
    return F.mse_loss(outputs[:, 0], targets)


@dataclass(frozen=True)
class TableData:
    """Prepared shards of a table, for the Trainer; targets are standardised as (y − mean) / scale."""

    shards: Shards
    mean: float = 0.0
    scale: float = 1.0

    @property
    def n_samples(self) -> int:
        """Rows."""
        return self.shards.n_rows

    def open(self) -> OpenTable:
        """Map the shards on this machine."""
        return OpenTable(self.shards.open(), self.mean, self.scale)


@dataclass(frozen=True)
class OpenTable:
    """Rows by number."""

    rows: OpenShards
    mean: float
    scale: float

    def batch(self, indices: NDArray[np.int64], epoch: int) -> tuple[Tensor, Tensor]:
        """Return features (k, p) and targets (k,), float32; the same in every epoch."""
        taken = self.rows.gather(indices)
        targets = (taken["y"] - self.mean) / self.scale
        return torch.from_numpy(taken["X"]), torch.from_numpy(targets.astype(np.float32))
