"""The trainer: the same step whatever the number of ranks, and an end to every failure."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from distributed import Client
from numpy.typing import NDArray
from torch import Tensor, nn

from jobs.errors import SpecError
from jobs.training import keeper
from jobs.training.plan import Plan, steps
from jobs.training.trainer import Trainer, TrainResult
from tests.threads import threads

N_SAMPLES = 203  # neither a multiple of the batch nor of the micro-batch


@pytest.fixture(scope="module")
def threads_client() -> Iterator[Client]:
    with threads(4) as client:
        yield client


@pytest.fixture(scope="module")
def processes_client() -> Iterator[Client]:
    with Client(processes=True, n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as client:
        yield client


@dataclass(frozen=True)
class Blobs:
    """Points of three classes, made where they are used."""

    n_samples: int = N_SAMPLES

    def open(self) -> Blobs:
        return self

    def arrays(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        rng = np.random.default_rng(5)
        targets = rng.integers(3, size=self.n_samples)
        return (rng.normal(size=(self.n_samples, 6)) + targets[:, None]).astype(np.float32), targets

    def batch(self, indices: NDArray[np.int64], epoch: int) -> tuple[Tensor, Tensor]:
        inputs, targets = self.arrays()
        return torch.from_numpy(inputs[indices]), torch.from_numpy(targets[indices])


@dataclass(frozen=True)
class FailingBlobs(Blobs):
    """Cannot be read once a certain sample is asked for."""

    def batch(self, indices: NDArray[np.int64], epoch: int) -> tuple[Tensor, Tensor]:
        if 17 in indices:
            raise ValueError("sample 17 is broken")
        return super().batch(indices, epoch)


@dataclass(frozen=True)
class SlowBlobs(Blobs):
    def batch(self, indices: NDArray[np.int64], epoch: int) -> tuple[Tensor, Tensor]:
        time.sleep(0.05)
        return super().batch(indices, epoch)


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def with_batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))


def with_dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3))


def plain_sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=1.0)


def nesterov(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)


def huge_steps(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=1e30)


def linear_decay(share: float) -> float:
    return 1 - share


def explode_in_third_epoch(share: float) -> float:
    if share >= 2 / 3:
        raise RuntimeError("schedule exploded")
    return 1.0


cross_entropy = nn.functional.cross_entropy


def fit(client: Client, world_size: int, **changes: object) -> TrainResult:
    arguments: dict[str, object] = {
        "model_fn": with_batch_norm,
        "loss_fn": cross_entropy,
        "optimiser_fn": nesterov,
        "data": Blobs(),
        "schedule_fn": linear_decay,
        "epochs": 3,
        "batch_size": 64,
        "micro_batch_size": 10,
        "seed": 3,
        "timeout_s": 50.0,
    }
    return Trainer(**(arguments | changes), world_size=world_size).fit(client)  # type: ignore[arg-type]


def assert_equal_weights(a: TrainResult, b: TrainResult, tolerance: float) -> None:
    assert a.state_dict.keys() == b.state_dict.keys()
    for name, value in a.state_dict.items():
        torch.testing.assert_close(value, b.state_dict[name], rtol=0, atol=tolerance)


def test_one_two_and_four_ranks_give_the_same_weights(threads_client: Client) -> None:
    one, two, four = (fit(threads_client, w) for w in (1, 2, 4))
    assert_equal_weights(one, two, 0)
    assert_equal_weights(one, four, 0)
    assert [epoch.loss for epoch in one.history] == [epoch.loss for epoch in four.history]


def test_ranks_in_processes_give_the_weights_of_ranks_in_threads(
    threads_client: Client, processes_client: Client
) -> None:
    assert_equal_weights(fit(threads_client, 1), fit(processes_client, 2), 1e-6)


def test_dropout_is_the_same_for_one_and_two_processes(processes_client: Client) -> None:
    one, two = (fit(processes_client, w, model_fn=with_dropout) for w in (1, 2))
    assert_equal_weights(one, two, 1e-6)


def test_a_step_is_the_gradient_of_the_mean_loss_of_the_whole_batch(threads_client: Client) -> None:
    result = fit(threads_client, 4, model_fn=perceptron, optimiser_fn=plain_sgd, epochs=1, batch_size=N_SAMPLES)
    torch.manual_seed(3)
    oracle = perceptron()
    inputs, targets = Blobs().batch(np.arange(N_SAMPLES), 0)
    cross_entropy(oracle(inputs), targets).backward()
    for name, parameter in oracle.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(result.state_dict[name], parameter.detach() - parameter.grad, rtol=0, atol=1e-6)


def test_micro_batches_add_up_to_the_batch(threads_client: Client) -> None:
    small = fit(threads_client, 2, model_fn=perceptron, micro_batch_size=7)
    whole = fit(threads_client, 1, model_fn=perceptron, micro_batch_size=64)
    assert_equal_weights(small, whole, 1e-5)


def test_training_equals_a_plain_torch_loop(threads_client: Client) -> None:
    result = fit(threads_client, 2, model_fn=perceptron)
    plan = Plan(perceptron, cross_entropy, nesterov, linear_decay, Blobs(), 3, 64, 64, seed=3, timeout_s=1)
    torch.manual_seed(3)
    oracle = perceptron()
    optimiser = nesterov(oracle)
    for step in steps(plan):
        optimiser.param_groups[0]["lr"] = 0.05 * (1 - step.n_seen / (3 * N_SAMPLES))
        inputs, targets = Blobs().batch(np.concatenate(step.micro_batches), step.epoch)
        optimiser.zero_grad()
        cross_entropy(oracle(inputs), targets).backward()
        optimiser.step()
    for name, parameter in oracle.named_parameters():
        torch.testing.assert_close(result.state_dict[name], parameter.detach(), rtol=0, atol=1e-5)


def test_batch_norm_counts_steps_and_averages_statistics(threads_client: Client) -> None:
    state = fit(threads_client, 2).state_dict
    assert state["1.num_batches_tracked"] == 3 * 4
    assert state["1.running_mean"].abs().sum() > 0


def test_every_sample_is_seen_once_an_epoch_in_an_order_of_seed_and_epoch() -> None:
    def order(seed: int, micro_batch_size: int) -> list[list[int]]:
        plan = Plan(perceptron, cross_entropy, plain_sgd, linear_decay, Blobs(), 2, 64, micro_batch_size, seed, 1.0)
        epochs: list[list[int]] = [[], []]
        for step in steps(plan):
            assert max(map(len, step.micro_batches)) <= micro_batch_size
            epochs[step.epoch] += np.concatenate(step.micro_batches).tolist()
        return epochs

    first, second = order(1, 10)
    assert sorted(first) == sorted(second) == list(range(N_SAMPLES))
    assert first != second
    assert order(1, 33) == [first, second]
    assert order(2, 10) != [first, second]


def test_a_rank_without_a_micro_batch_in_the_last_step_does_not_matter(threads_client: Client) -> None:
    # 203 = 3 x 64 + 11: the last step has one micro-batch of 11 for four ranks.
    one, four = (fit(threads_client, w, micro_batch_size=16) for w in (1, 4))
    assert_equal_weights(one, four, 0)


def test_history_and_timings_tell_the_run(threads_client: Client) -> None:
    result = fit(threads_client, 2)
    assert len(result.history) == 3
    assert result.history[-1].loss < result.history[0].loss
    assert len(result.timings) == result.world_size == 2
    for timing in result.timings:
        parts = timing.data_wait_s + timing.compute_s + timing.all_reduce_s
        assert 0 < timing.compute_s < parts < timing.total_s + 0.5
    # Epochs alone: how long processes take to start says nothing of the training.
    seconds = sum(epoch.seconds for epoch in result.history)
    assert result.samples_per_s == pytest.approx(3 * N_SAMPLES / seconds)
    assert 0 < seconds < result.seconds


def test_progress_reaches_the_client(threads_client: Client) -> None:
    seen: list[tuple[int, int]] = []
    trainer = Trainer(perceptron, cross_entropy, nesterov, SlowBlobs(), epochs=2, batch_size=64, timeout_s=50)
    trainer.fit(threads_client, lambda done, total: seen.append((done, total)))
    deadline = time.monotonic() + 5
    while (not seen or seen[-1][0] < 2 * N_SAMPLES) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert seen[-1] == (2 * N_SAMPLES, 2 * N_SAMPLES)
    assert sorted(seen) == seen


def test_nothing_global_is_left(threads_client: Client) -> None:
    before = torch.get_num_threads(), torch.random.get_rng_state()
    fit(threads_client, 2)
    assert not torch.distributed.is_initialized()
    assert torch.get_num_threads() == before[0]
    assert torch.equal(torch.random.get_rng_state(), before[1])


@pytest.mark.parametrize("world_size", [1, 4])
def test_a_rank_that_raises_ends_the_fit_within_seconds_with_its_own_error(
    threads_client: Client, world_size: int
) -> None:
    start = time.monotonic()
    with pytest.raises(ValueError, match="sample 17 is broken"):
        fit(threads_client, world_size, data=FailingBlobs())
    assert time.monotonic() - start < 10


def test_an_error_between_the_steps_ends_the_fit(threads_client: Client) -> None:
    with pytest.raises(RuntimeError, match="schedule exploded"):
        fit(threads_client, 4, schedule_fn=explode_in_third_epoch)


def test_a_model_that_cannot_be_made_ends_the_fit(threads_client: Client) -> None:
    def broken() -> nn.Module:
        raise KeyError("no such layer")

    with pytest.raises(KeyError, match="no such layer"):
        fit(threads_client, 4, model_fn=broken)


def test_an_interrupted_fit_stops_its_ranks(threads_client: Client) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    trainer = Trainer(
        perceptron, cross_entropy, nesterov, SlowBlobs(), epochs=1000, batch_size=64, world_size=2, timeout_s=50
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(threads_client, interrupt)
    deadline = time.monotonic() + 20
    while keeper._keepers:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_more_ranks_than_workers_is_a_spec_error(threads_client: Client) -> None:
    with pytest.raises(SpecError, match=r"params\.world_size: 5 ranks need 5 workers, the cluster has 4"):
        fit(threads_client, 5)


def test_a_loss_that_is_not_finite_is_a_spec_error(threads_client: Client) -> None:
    with pytest.raises(SpecError, match=r"params\.learning_rate: the loss became (nan|inf) in epoch 1"):
        fit(threads_client, 2, optimiser_fn=huge_steps, model_fn=with_dropout)


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_worker_that_dies_changes_nothing_in_the_result(threads_client: Client, world_size: int) -> None:
    with Client(processes=True, n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as client:
        killed: list[str] = []

        def kill_one_worker(done: int, total: int) -> None:
            if not killed and done > total / 2:
                victim = next(address for address, tasks in client.processing().items() if tasks)
                for worker in client.cluster.workers.values():
                    if worker.worker_address == victim:
                        worker.process.process.kill()
                killed.append(victim)

        trainer = Trainer(
            with_batch_norm,
            cross_entropy,
            nesterov,
            SlowBlobs(),
            linear_decay,
            epochs=3,
            batch_size=64,
            micro_batch_size=10,
            seed=3,
            world_size=world_size,
            timeout_s=50,
        )
        result = trainer.fit(client, kill_one_worker)
    assert [change.member.partition("#")[0] for change in result.timeline if change.kind == "lost"] == killed
    assert_equal_weights(result, fit(threads_client, 1, data=SlowBlobs()), 0)
