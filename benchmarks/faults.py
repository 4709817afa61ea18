"""`python -m benchmarks.faults`: what a lost rank costs.

SIGKILL of one of three ranks at random moments of a fit that also validates and stores its state; as often in the
forward and backward pass as in all-reduce, in validation and while a checkpoint is written. Told are the seconds until
the next step is kept, whether the survivors stay in their processes, whether a sample is lost or seen twice, and
whether the weights are those of a fit that nothing happened to. Ends with 0 where all bars hold.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from distributed import Client

from benchmarks import training_work as work
from jobs.training.checkpoints import Checkpoints
from jobs.training.trainer import Trainer, TrainResult

_N_KILLS, _EVERY_S = 20, 4.0
# What a rank does, as its threads are named, and what it is called here; kills go round.
_PHASES = {"compute": "forward and backward", "wait": "all-reduce", "validate": "validation", "writes": "checkpoint"}
# What it takes to catch a rank in a phase, about, and at most.
_PHASE_S, _PHASE_TIMEOUT_S = 2.5, 60.0
_MEDIAN_S, _WORST_S = 1.0, 3.0
_N_IMAGES, _N_VALIDATION, _BATCH_SIZE = 3_072, 1_024, 192


def main() -> int:
    """Return 0 where all bars hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description="Kill ranks of a fit.")
    parser.add_argument("--n", type=int, default=_N_KILLS, help="kills")
    with tempfile.TemporaryDirectory(prefix="daskyard-benchmark-") as name:
        return _measured(Path(name), parser.parse_args().n)


def ranks(workers: Iterable[int]) -> list[int]:
    """Return the process ids of the ranks that the worker processes `workers` have: children of their servers."""
    parents = {}
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and b"jobs.training.rank_" in (folder / "cmdline").read_bytes():
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    servers = {pid for pid, parent in parents.items() if parent in set(workers)}
    return sorted(pid for pid, parent in parents.items() if parent in servers)


def pids_of(client: Client) -> list[int]:
    """Return the process ids of the workers."""
    return list(client.run(os.getpid).values())


def _measured(folder: Path, n: int) -> int:
    shards, validation = (
        work.folder_of_images(folder / name, size) for name, size in (("a", _N_IMAGES), ("b", _N_VALIDATION))
    )
    trainer = Trainer(
        work.counting_model(_N_IMAGES),
        work.counting_loss,
        work.counting_optimiser,
        work.Numbered(shards),
        epochs=1,
        batch_size=_BATCH_SIZE,
        micro_batch_size=32,
        world_size=3,
        validation=work.Numbered(validation),
        metric_fn=work.counting_accuracy,
        checkpoint_every_s=1.0,
        n_threads=1,
    )
    with work.cluster(3) as client:
        first = trainer.fit(client)
        # Long enough for all kills, and for those who come back.
        epochs = max(2, round(1.3 * n * (_EVERY_S + 1 + _PHASE_S) / first.history[0].seconds))
        trainer = replace(trainer, epochs=epochs)
        undisturbed = trainer.fit(client)
        kills: list[float] = []
        stayed: list[bool] = []
        is_over = threading.Event()
        killer = threading.Thread(target=_kill, args=(pids_of(client), n, kills, stayed, is_over), daemon=True)
        disturbed = replace(trainer, checkpoints=Checkpoints(str(folder / "checkpoints"), "0" * 64)).fit(
            client, lambda done, total: killer.start() if killer.ident is None else None
        )
        is_over.set()
        killer.join()
    pauses = _pauses(disturbed, kills)
    counts = disturbed.state_dict["counts"] * _BATCH_SIZE / epochs
    same = all(torch.equal(disturbed.state_dict[k], v) for k, v in undisturbed.state_dict.items())
    accuracy = [(r.history[-1].validation_metric, r.history[-1].loss) for r in (undisturbed, disturbed)]
    median, worst = statistics.median(pauses), max(pauses)
    print(f"{len(kills)} kills of a rank out of three, {len(pauses)} followed by a kept step, {epochs} epochs")
    print(f"seconds to the next kept step: median {median:.2f} (bar {_MEDIAN_S}), worst {worst:.2f} (bar {_WORST_S})")
    for k, name in enumerate(_PHASES.values()):
        print(f"  killed in {name}: {' '.join(f'{pause:.2f}' for pause in sorted(pauses[k :: len(_PHASES)]))}")
    print(f"a step takes {_step_s(undisturbed):.2f} s")
    print(f"survivors stayed in their processes in {sum(stayed)} of {len(stayed)} cases")
    print(
        f"counts of samples: {counts.min():.4f} to {counts.max():.4f} an epoch; weights equal to the last bit: {same}"
    )
    print(
        f"accuracy and loss at the end: {accuracy[0]} undisturbed, {accuracy[1]} disturbed; "
        f"goodput {disturbed.goodput:.2f}"
    )
    ok = median <= _MEDIAN_S and worst <= _WORST_S and same and all(stayed) and len(pauses) == n
    return int(not (ok and accuracy[0] == accuracy[1]))


def _kill(workers: list[int], n: int, kills: list[float], stayed: list[bool], is_over: threading.Event) -> None:
    """Kill a rank every few seconds; note when, and whether the others' processes were there a second later."""
    chance = random.Random(0)
    while len(kills) < n and not is_over.wait(chance.uniform(0.5, 1.5) * _EVERY_S):
        pids = ranks(workers)
        if len(pids) < 2:
            continue
        victim = _one_that_is_in(list(_PHASES)[len(kills) % len(_PHASES)], pids, chance)
        kills.append(time.time())
        os.kill(victim, signal.SIGKILL)
        time.sleep(1)
        stayed.append(set(pids) - {victim} <= set(ranks(workers)))


def _one_that_is_in(phase: str, pids: list[int], chance: random.Random) -> int:
    """Wait for a rank that does this, and return it a random part of a step later, if it does so still."""
    deadline = time.monotonic() + _PHASE_TIMEOUT_S
    while time.monotonic() < deadline:
        for pid in chance.sample(pids, len(pids)):
            if _is_in(phase, pid):
                time.sleep(chance.uniform(0, 0.03))
                if _is_in(phase, pid):
                    return pid
        time.sleep(0.001)
    raise TimeoutError(f"no rank was seen to {phase} within {_PHASE_TIMEOUT_S:.0f} s")


def _is_in(phase: str, pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread or the process may end meanwhile
        names = [(thread / "comm").read_text().strip() for thread in Path(f"/proc/{pid}/task").iterdir()]
        return f"rank: {phase}" in names
    return False


def _pauses(result: TrainResult, kills: list[float]) -> list[float]:
    """Return, for each kill, the seconds until the generation after it kept its first step."""
    pauses = []
    for kill in kills:
        lost = next((c for c in result.timeline if c.kind == "lost" and c.at >= kill), None)
        if lost is not None:
            later = (c.at for c in result.timeline if c.kind == "committed" and c.generation > lost.generation)
            pauses.append(next(at for at in later if at > kill) - kill)
    return pauses


def _step_s(result: TrainResult) -> float:
    return statistics.mean(epoch.seconds for epoch in result.history) / ((_N_IMAGES + _N_VALIDATION) / _BATCH_SIZE)


if __name__ == "__main__":
    sys.exit(main())
