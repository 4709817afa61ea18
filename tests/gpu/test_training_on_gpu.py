"""Ranks that compute on a GPU: is the result the same for any number of them, and after one was killed?

Two ranks share the machine's GPU and meet over gloo; where there are two GPUs, they meet over NCCL. Sums of floats on a
GPU have no fixed order, so results are compared to 1e-4.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from distributed import Client, LocalCluster
from torch import Tensor

from benchmarks import training_work
from benchmarks.faults import pids_of, ranks
from jobs.training.convnet import ImageData
from jobs.training.trainer import Trainer, TrainResult
from tests.gpu import eager_model
from tests.integration import counted
from tests.integration.counted import Counts, N, Numbers, assert_each_was_counted_once

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")


class OnGpu(Counts):
    """The counting model, which takes samples on a GPU alone."""

    def forward(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        assert numbers.is_cuda
        assert self.counts.is_cuda
        return super().forward(numbers)


TRAINER = replace(counted.TRAINER, model_fn=partial(OnGpu, N), hardware="gpu")


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=4, resources={"GPU": 1}, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def of_one(client: Client) -> TrainResult:
    """What one rank finds."""
    return TRAINER.fit(client)


def assert_same(result: TrainResult, expected: TrainResult) -> None:
    assert_each_was_counted_once(result, rtol=1e-4)
    for ours, theirs in zip(result.history, expected.history, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-4)
        assert ours.validation_loss == pytest.approx(theirs.validation_loss, rel=1e-4)


def test_two_ranks_learn_what_one_does(client: Client, of_one: TrainResult) -> None:
    assert_same(replace(TRAINER, world_size=2).fit(client), of_one)


@pytest.mark.parametrize("which", [0, 1])
def test_a_killed_rank_is_done_without(client: Client, of_one: TrainResult, which: int) -> None:
    killed: list[int] = []

    def kill(n_seen: int, n_total: int) -> None:
        if not killed and n_seen > 0.4 * n_total:
            killed.append(ranks(pids_of(client))[which])
            os.kill(killed[0], signal.SIGKILL)

    result = replace(TRAINER, data=Numbers(N, 0.02), world_size=2).fit(client, kill)
    assert_same(result, of_one)
    assert [change.kind for change in result.timeline].count("lost") == 1


def test_a_model_whose_module_uses_cuda_as_it_is_imported(client: Client, of_one: TrainResult) -> None:
    assert_same(replace(TRAINER, model_fn=partial(eager_model.Eager, N), world_size=2).fit(client), of_one)


def test_a_network_in_bfloat16_and_channels_last(client: Client, tmp_path: Path) -> None:
    trainer = Trainer(
        partial(training_work.network, replace(training_work.CONFIG, is_bfloat16=True)),
        training_work.loss,
        training_work.optimiser,
        ImageData(training_work.folder_of_images(tmp_path, 4_096), 0, True, 2),
        batch_size=512,
        hardware="gpu",
    )
    one, two = (replace(trainer, world_size=size).fit(client) for size in (1, 2))
    # Each product is rounded to 8 bits; what differs in the last of them shows.
    assert two.history[0].loss == pytest.approx(one.history[0].loss, rel=1e-2)
