"""`python -m benchmarks.throughput`: what the trainer costs, against plain DistributedDataParallel.

Images/s of two ranks against DDP under torchrun and against two fits of one rank that know nothing of each other (the
ceiling), alternating, torch with one thread in each rank; then the share of the time that ranks wait for data, from a
warm cache and from S3. Ends with 0 where all bars hold.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import dask
from distributed import Client

from benchmarks import training_work as work
from jobs.local_s3 import LocalS3
from jobs.training.convnet import ImageData, triangle
from jobs.training.shards import Shards
from jobs.training.trainer import Trainer, TrainResult

_N_TURNS, _N_EPOCHS = 5, 3
_LEAST_RATIO, _MOST_WARM, _MOST_COLD = 0.95, 0.02, 0.10


def main() -> int:
    """Return 0 where all bars hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description="Compare with torchrun DDP.")
    parser.add_argument("--n", type=int, default=_N_TURNS, help="turns of each side")
    n = parser.parse_args().n
    with tempfile.TemporaryDirectory(prefix="daskyard-benchmark-") as name:
        folder = Path(name)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # as it is before Dask sets things for its workers
        trainer = _trainer(work.folder_of_images(folder / "images", work.N_IMAGES))
        ours: list[float] = []
        theirs: list[float] = []
        apart: list[float] = []
        waits: list[float] = []
        with work.cluster(2) as client, work.cluster(1) as one, work.cluster(1) as other:
            for turn in range(n + 1):  # the first one warms up
                sides = [
                    lambda: ours.append(_of_ours(trainer, client, waits)),
                    lambda: theirs.append(_of_torchrun(folder, environment)),
                    lambda: apart.append(_of_independent(trainer, one, other)),
                ]
                for side in sides if turn % 2 else sides[::-1]:
                    side()
        cold = _from_s3(folder)
    ratios = [a / b for a, b in zip(ours[1:], theirs[1:], strict=True)]
    ratio, warm = statistics.median(ratios), statistics.median(waits[1:])
    for name, speeds in (("ours", ours), ("torchrun DDP", theirs), ("two fits of one rank", apart)):
        print(f"images/s: {statistics.median(speeds[1:]):.0f} {name}")
    efficiency = statistics.median(a / b for a, b in zip(ours[1:], apart[1:], strict=True))
    print(f"efficiency against two fits of one rank {efficiency:.3f}")
    print(f"ratio {ratio:.3f} ({min(ratios):.3f} to {max(ratios):.3f}, n = {n}), bar at least {_LEAST_RATIO}")
    print(f"waiting for data: {warm:.2%} warm, bar {_MOST_WARM:.0%}; {cold:.2%} from S3, bar {_MOST_COLD:.0%}")
    return int(not (ratio >= _LEAST_RATIO and warm <= _MOST_WARM and cold <= _MOST_COLD))


def _trainer(shards: Shards) -> Trainer:
    return Trainer(
        work.network,
        work.loss,
        work.optimiser,
        ImageData(shards, 0, True, 2),
        triangle,
        epochs=_N_EPOCHS,
        batch_size=work.BATCH_SIZE,
        micro_batch_size=work.MICRO_BATCH_SIZE,
        world_size=2,
        n_threads=1,
    )


def _of_ours(trainer: Trainer, client: Client, waits: list[float]) -> float:
    result = trainer.fit(client)
    waits.append(result.share_of("data_wait_s"))
    return _images_per_s(result)


def _of_independent(trainer: Trainer, *clients: Client) -> float:
    with ThreadPoolExecutor(len(clients)) as pool:
        return sum(map(_images_per_s, pool.map(replace(trainer, world_size=1).fit, clients)))


def _images_per_s(result: TrainResult) -> float:
    later = result.history[1:]  # the first epoch warms up
    return work.N_IMAGES * len(later) / sum(epoch.seconds for epoch in later)


def _of_torchrun(folder: Path, environment: dict[str, str]) -> float:
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "benchmarks.torchrun_ddp"]
    told = subprocess.run(
        [sys.executable, *command, str(folder / "images"), str(_N_EPOCHS)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=1800,
    )
    return float(json.loads(told.stdout.splitlines()[-1])["images_per_s"])


def _from_s3(folder: Path) -> float:
    """Return the share of the time that goes into data where nothing is cached: fetching it, and waiting for it."""
    with LocalS3(folder / "objects") as s3, dask.config.set({"temporary-directory": str(folder)}):
        url = f"{s3.create_bucket('demo')}/images"
        work.write_images(url, work.N_IMAGES)
        with work.cluster(2) as client:
            result = _trainer(Shards.load(url)).fit(client)
    seconds = [timings.open_s + timings.data_wait_s for timings in result.timings]
    return statistics.mean(
        wait / (timings.open_s + timings.total_s) for wait, timings in zip(seconds, result.timings, strict=True)
    )


if __name__ == "__main__":
    sys.exit(main())
