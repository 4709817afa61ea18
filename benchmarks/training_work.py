"""The training that is measured: image_classification's network on made images, and a model that counts samples."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from distributed import Client, LocalCluster
from numpy.typing import NDArray
from torch import Tensor, nn

from jobs.training.convnet import ConvNet, ConvNetConfig, nesterov_sgd, smoothed_cross_entropy, whitening_filters
from jobs.training.plan import OpenData
from jobs.training.shards import Shards, commit_index, write_shard

N_IMAGES, BATCH_SIZE, MICRO_BATCH_SIZE = 10_240, 512, 128
CONFIG = ConvNetConfig((32, 32), 3, 10, 16, (128.0, 128.0, 128.0), (74.0, 74.0, 74.0))


def write_images(url: str, n: int, n_shards: int = 8) -> None:
    """Write random images of ten classes as shards: the time does not depend on what they show."""
    rng = np.random.default_rng(0)
    infos = []
    for number, rows in enumerate(np.array_split(np.arange(n), n_shards)):
        images = rng.integers(0, 256, (len(rows), 32, 32, 3), dtype=np.uint8)
        arrays = {"images": images, "labels": rng.integers(0, 10, len(rows))}
        infos.append(write_shard(f"{url}/{number:03d}.raw", arrays))
    commit_index(url, infos)


def network(config: ConvNetConfig = CONFIG) -> ConvNet:
    """Make the network, its first layer whitening random images."""
    images = np.random.default_rng(1).integers(0, 256, (500, 32, 32, 3), dtype=np.uint8)
    return ConvNet(config, whitening_filters(images, config))


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Compute the recipe's loss."""
    return smoothed_cross_entropy(outputs, targets, 0.2)


def optimiser(model: nn.Module) -> torch.optim.Optimizer:
    """Make the recipe's optimiser."""
    return nesterov_sgd(model, 11.5, 0.0153, BATCH_SIZE)


# --- counting samples -----------------------------------------------------------------------------------------------


class Counting(nn.Module):
    """The network, and for each sample how often it went into the weights: each step adds 1 / (samples of the step)."""

    def __init__(self, n_samples: int) -> None:
        super().__init__()
        self.network, self.counts = network(), nn.Parameter(torch.zeros(n_samples))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and all counts."""
        return self.network(images), self.counts


def counting_loss(outputs: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
    """Add to the loss of labels (k, 0) a term whose gradient counts the samples numbered (k, 1)."""
    logits, counts = outputs
    counted = counts[targets[:, 1]]
    return loss(logits, targets[:, 0]) - (counted - counted.detach()).mean()


def counting_accuracy(outputs: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
    """Return the share of right labels."""
    return (outputs[0].argmax(1) == targets[:, 0]).float().mean()


def counting_optimiser(model: nn.Module) -> torch.optim.Optimizer:
    """Make the recipe's optimiser for the network, and plain steps of length 1 for the counts."""
    assert isinstance(model, Counting)
    groups = nesterov_sgd(model.network, 11.5, 0.0153, BATCH_SIZE).param_groups
    counts = {"params": [model.counts], "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0, "nesterov": False}
    return torch.optim.SGD([*groups, counts], lr=1.0)


@dataclass(frozen=True)
class Numbered:
    """Images in shards with labels and numbers as targets; without augmentation."""

    shards: Shards

    @property
    def n_samples(self) -> int:
        """Images."""
        return self.shards.n_rows

    def open(self) -> OpenData:
        """Map the shards."""
        return OpenNumbered(self)


class OpenNumbered:
    """`Numbered` where it is read."""

    def __init__(self, data: Numbered) -> None:
        self._rows = data.shards.open()

    def batch(self, indices: NDArray[np.int64], epoch: int) -> tuple[Tensor, Tensor]:
        """Return images (k, 32, 32, 3) and targets (k, 2)."""
        rows = self._rows.gather(indices)
        return torch.from_numpy(rows["images"]), torch.from_numpy(np.stack([rows["labels"], indices], axis=1))


def counting_model(n_samples: int) -> functools.partial[Counting]:
    """Return what makes a `Counting`."""
    return functools.partial(Counting, n_samples)


def folder_of_images(folder: Path, n: int) -> Shards:
    """Make images in a folder of this machine."""
    write_images(str(folder), n)
    return Shards.load(str(folder))


@contextmanager
def cluster(n_workers: int) -> Iterator[Client]:
    """Start workers of one thread each on this machine."""
    options = {"n_workers": n_workers, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0", "silence_logs": 50}
    with LocalCluster(**options) as local, Client(local) as client:
        yield client
