"""Which workers train: those with a GPU, those without, or any."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from distributed import Client, Nanny, Scheduler, SpecCluster, Worker, get_worker
from numpy.typing import NDArray
from torch import Tensor, nn

from jobs import runner
from jobs.errors import SpecError
from jobs.spec import parse
from jobs.training import hardware as hardware_module
from jobs.training.hardware import Hardware, choose_workers
from jobs.training.trainer import Trainer

PLAIN, GPU = "plain", "gpu"


def cluster_of(worker_class: type, **resources: dict[str, float]) -> SpecCluster:
    """A cluster of workers with these names and resources."""
    address = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    return SpecCluster(
        workers={name: {"cls": worker_class, "options": spec_options(offers)} for name, offers in resources.items()},
        scheduler={"cls": Scheduler, "options": {**address, "port": 0}},
        silence_logs=logging.WARNING,
    )


def spec_options(resources: dict[str, float]) -> dict[str, object]:
    return {"nthreads": 1, "resources": resources, "dashboard_address": "127.0.0.1:0"}


@pytest.fixture(scope="module")
def mixed() -> Iterator[Client]:
    """A client of two worker processes, of which one offers a GPU."""
    with cluster_of(Nanny, plain={}, gpu={"GPU": 1}) as cluster, Client(cluster) as client:
        yield client


@pytest.fixture(scope="module")
def without_gpu() -> Iterator[Client]:
    with cluster_of(Worker, a={}, b={}) as cluster, Client(cluster) as client:
        yield client


@pytest.fixture(scope="module")
def with_gpus_only() -> Iterator[Client]:
    with cluster_of(Worker, a={"GPU": 1}, b={"GPU": 2}) as cluster, Client(cluster) as client:
        yield client


@dataclass(frozen=True)
class Noted:
    """Random points; a worker that fetches them leaves a note of its name and of the resources that it has left."""

    folder: str
    n_samples: int = 64

    @contextmanager
    def fetched(self) -> Iterator[Noted]:
        worker = get_worker()
        n_left = worker.state.available_resources.get("GPU", -1)
        Path(self.folder, worker.name).write_text(f"{n_left:.0f}")
        yield self

    def open(self) -> Noted:
        return self

    def batch(self, indices: NDArray[np.int64], epoch: int) -> tuple[Tensor, Tensor]:
        inputs = np.random.default_rng(0).normal(size=(self.n_samples, 3)).astype(np.float32)
        return torch.from_numpy(inputs[indices]), torch.from_numpy((inputs[indices, 0] > 0).astype(np.int64))


def ranks_of(client: Client, folder: Path, hardware: Hardware, world_size: int) -> dict[str, str]:
    """Train; return the names of the workers that did and the GPUs that they had left meanwhile."""
    folder.mkdir()
    Trainer(
        lambda: nn.Linear(3, 2),
        nn.functional.cross_entropy,
        lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
        Noted(str(folder)),
        batch_size=32,
        micro_batch_size=16,
        world_size=world_size,
        hardware=hardware,
        timeout_s=50,
    ).fit(client)
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_ranks_run_where_the_hardware_says(mixed: Client, tmp_path: Path) -> None:
    assert ranks_of(mixed, tmp_path / "gpu", "gpu", 1) == {GPU: "0"}
    assert ranks_of(mixed, tmp_path / "cpu", "cpu", 1) == {PLAIN: "-1"}
    assert ranks_of(mixed, tmp_path / "auto", "auto", 1) == {GPU: "1"}
    assert ranks_of(mixed, tmp_path / "both", "auto", 2).keys() == {GPU, PLAIN}


@pytest.mark.parametrize(("hardware", "n_ranks"), [("gpu", 1), ("cpu", 1), ("auto", 2)])
def test_without_a_world_size_all_workers_of_the_hardware_train(
    mixed: Client, tmp_path: Path, hardware: str, n_ranks: int
) -> None:
    rng = np.random.default_rng(0)
    pd.DataFrame({"a": rng.normal(size=200), "y": rng.normal(size=200)}).to_parquet(tmp_path / "t.parquet")
    params = {"target": "y", "epochs": 2, "hidden": [8], "hardware": hardware}
    document = {"pipeline": "neural_network", "input": str(tmp_path / "t.parquet"), "output": str(tmp_path / "runs")}
    manifest = runner.run(parse({**document, "params": params}), client=mixed).manifest
    assert manifest.metrics["world_size"] == n_ranks


def test_more_ranks_than_workers_of_the_hardware_is_a_spec_error_that_counts_them(
    mixed: Client, without_gpu: Client
) -> None:
    start = time.monotonic()
    with pytest.raises(SpecError, match="2 ranks need 2 workers that offer the resource GPU, the cluster has 1;"):
        choose_workers(mixed, 2, "gpu")
    with pytest.raises(SpecError, match="2 ranks need 2 workers without a GPU, the cluster has 1;"):
        choose_workers(mixed, 2, "cpu")
    with pytest.raises(SpecError, match="needs a worker that offers the resource GPU, the cluster has none;"):
        choose_workers(without_gpu, None, "gpu")
    assert time.monotonic() - start < 5


def test_a_cluster_of_gpu_workers_only_trains_on_its_cpus_too(with_gpus_only: Client, without_gpu: Client) -> None:
    assert len(choose_workers(with_gpus_only, None, "cpu")) == 2
    assert len(choose_workers(with_gpus_only, None, "gpu")) == 2
    assert len(choose_workers(without_gpu, None, "cpu")) == 2


def test_workers_that_a_running_cluster_is_still_starting_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with cluster_of(Worker, plain={}) as cluster, Client(cluster.scheduler_address) as client:
        monkeypatch.setattr(hardware_module, "_WORKERS_TIMEOUT_S", 1.0)
        with pytest.raises(SpecError, match="the cluster has none"):
            choose_workers(client, None, "gpu")
        monkeypatch.setattr(hardware_module, "_WORKERS_TIMEOUT_S", 60.0)
        cluster.new_spec = {"cls": Worker, "options": spec_options({"GPU": 1})}
        late = threading.Timer(1.0, cluster.scale, [2])
        late.start()
        [found] = choose_workers(client, None, "gpu")
        late.join()
        assert cluster.scheduler.workers[found].resources == {"GPU": 1}
