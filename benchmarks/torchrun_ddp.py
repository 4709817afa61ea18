"""The peer of benchmarks.throughput: plain DistributedDataParallel on gloo, started by torchrun; prints images/s.

It trains the same network on the same images with the same augmentation, optimiser and global batch; each rank reads
its half of a batch ahead in a thread, and takes it in one forward pass. Torch's own way to do what our trainer does.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from benchmarks import training_work as work
from jobs.training.convnet import ImageData, triangle
from jobs.training.shards import Shards


def main(url: str, n_epochs: int) -> None:
    """Train, and print images/s from the second epoch on."""
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = DistributedDataParallel(work.network())
    optimiser = work.optimiser(model.module)
    base_lrs = [group["lr"] for group in optimiser.param_groups]
    shards = Shards.load(url)
    n = shards.n_rows
    start = 0.0
    for number, (epoch, first, inputs, targets) in enumerate(_batches(shards, n_epochs, rank, world_size)):
        if epoch == 1 and first == 0:
            dist.barrier()
            start = time.perf_counter()
        for group, lr in zip(optimiser.param_groups, base_lrs, strict=True):
            group["lr"] = lr * triangle((number * work.BATCH_SIZE) / (n_epochs * n))
        optimiser.zero_grad(set_to_none=True)
        work.loss(model(inputs), targets).backward()
        optimiser.step()
    dist.barrier()
    if rank == 0:
        print(json.dumps({"images_per_s": (n_epochs - 1) * n / (time.perf_counter() - start)}), flush=True)
    dist.destroy_process_group()


def _batches(shards: Shards, n_epochs: int, rank: int, world_size: int) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """Yield epoch, number of the batch's first image, and this rank's part of the batch, read ahead in a thread."""
    rows = ImageData(shards, 0, True, 2).open()
    ahead: queue.Queue[tuple[int, int, Tensor, Tensor] | None] = queue.Queue(4)

    def read() -> None:
        torch.set_num_threads(1)
        for epoch in range(n_epochs):
            order = np.random.default_rng([0, epoch]).permutation(shards.n_rows)
            for first in range(0, len(order), work.BATCH_SIZE):
                mine = np.array_split(order[first : first + work.BATCH_SIZE], world_size)[rank]
                ahead.put((epoch, first, *rows.batch(mine, epoch)))
        ahead.put(None)

    threading.Thread(target=read, daemon=True).start()
    while (batch := ahead.get()) is not None:
        yield batch


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
