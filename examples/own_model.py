"""Train a PyTorch model of your own on Dask workers, elastically: `python examples/own_model.py`.

The same code runs on a cluster: `Client("tcp://scheduler:8786")` in place of the local one. Kill one of the ranks'
processes while it runs, and it goes on with the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from distributed import Client, LocalCluster
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor, nn

from jobs.training.trainer import Trainer


@dataclass(frozen=True)
class Digits:
    """Handwritten digits, 8 × 8: the rows whose number is, or is not, a multiple of five."""

    is_test: bool

    def rows(self) -> NDArray[np.int64]:
        """Return which rows of the data set these are."""
        numbers = np.arange(len(load_digits().target))
        return numbers[(numbers % 5 == 0) == self.is_test]

    @property
    def n_samples(self) -> int:
        """How many there are."""
        return len(self.rows())

    def open(self) -> OpenDigits:
        """Load them in the process of a rank."""
        digits, rows = load_digits(), self.rows()
        return OpenDigits(digits.images[rows].astype(np.float32) / 16, digits.target[rows])


@dataclass(frozen=True)
class OpenDigits:
    """Images (n, 8, 8) and labels (n,), in memory."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64]

    def batch(self, indices: NDArray[np.int64], epoch: int) -> tuple[Tensor, Tensor]:
        """Return the images (k, 1, 8, 8) and labels (k,) with these numbers."""
        return torch.from_numpy(self.images[indices, None]), torch.from_numpy(self.labels[indices])


def model() -> nn.Module:
    """Make the network; its weights are drawn with the Trainer's seed."""
    convolution = [nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*convolution, nn.Flatten(), nn.Dropout(0.2), nn.Linear(32 * 4 * 4, 10))


def optimiser(network: nn.Module) -> torch.optim.Optimizer:
    """Make the optimiser of a network."""
    return torch.optim.AdamW(network.parameters(), lr=3e-3)


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Share of right answers."""
    return (outputs.argmax(1) == targets).float().mean()


def main() -> None:
    """Train with two ranks and tell how well it went after each epoch."""
    with LocalCluster(n_workers=2, threads_per_worker=1, security=True) as cluster, Client(cluster) as client:
        result = Trainer(
            model,
            nn.functional.cross_entropy,
            optimiser,
            Digits(is_test=False),
            epochs=10,
            batch_size=64,
            micro_batch_size=32,
            world_size=2,
            validation=Digits(is_test=True),
            metric_fn=accuracy,
        ).fit(client)
    for number, epoch in enumerate(result.history, start=1):
        print(f"epoch {number}: loss {epoch.loss:.3f}, accuracy on the test set {epoch.validation_metric:.3f}")


if __name__ == "__main__":
    main()
