"""What pipelines that train networks share: how many ranks, where states are kept, what is told of the training."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version

from jobs.job import Job
from jobs.report.sections import Bars, Section, Table
from jobs.training.checkpoints import Checkpoints
from jobs.training.hardware import choose_workers
from jobs.training.membership import Change
from jobs.training.trainer import TrainResult

# Ranks may join up to this number where the params name none.
_MAX_WORLD_SIZE = 1024
_PARTS = ("data_wait_s", "compute_s", "all_reduce_s", "checkpoint_s", "lost_s")


def world_sizes(job: Job) -> tuple[int, int]:
    """Return how many ranks begin and how many may join: what the params name, or all workers, now and later."""
    if job.params.world_size is not None:
        return job.params.world_size, job.params.world_size
    return len(choose_workers(job.client, None, job.params.hardware)), _MAX_WORLD_SIZE


def checkpoints_of(job: Job) -> Checkpoints | None:
    """Return where this run's training is stored for its next attempt; a search's trials are too short for that."""
    if job.trial is not None:
        return None
    # A state is of use to the same spec on the same input, in the same versions.
    inputs = sorted((record.url, record.size, record.etag) for record in job.inputs.values())
    what = [job.spec.digest, inputs, version("daskyard"), version("torch")]
    return Checkpoints(job.shared_url("checkpoints"), hashlib.sha256(json.dumps(what).encode()).hexdigest())


def tell_change(job: Job, change: Change) -> None:
    """Tell the person who watches how many ranks train from now on."""
    if change.kind == "committed":
        ranks = "1 rank" if change.world_size == 1 else f"{change.world_size} ranks"
        job.message(f"training: {ranks} from step {change.position} on")


def training_metrics(result: TrainResult) -> dict[str, float | int | str]:
    """Return what the run's metrics tell of its ranks."""
    return {
        "world_size": result.world_size,
        "goodput": result.goodput,
        "n_ranks_lost": sum(change.kind == "lost" for change in result.timeline),
        "n_generations": sum(change.kind == "formed" for change in result.timeline),
    }


def training_sections(result: TrainResult) -> list[Section]:
    """Return where the time went, and who came and went."""
    bars = Bars("Where a rank's time went", _PARTS, [100 * result.share_of(part) for part in _PARTS], "%")
    return [bars, _timeline(result)] if result.timeline else [bars]


def _timeline(result: TrainResult) -> Table:
    """Return who came and went, in seconds from the first event on."""
    # What is formed and committed is told by ranks, of which the driver hears a little later.
    timeline = sorted(result.timeline, key=lambda change: change.at)
    start = timeline[0].at
    rows: list[list[str | int | float]] = [
        [
            round(change.at - start, 2),
            change.kind,
            change.member or "all",
            change.generation,
            change.world_size,
            "" if change.position is None else change.position,
            change.why,
        ]
        for change in timeline
    ]
    columns = ["second", "what", "rank", "generation", "ranks", "steps kept", "why"]
    return Table("Generations of ranks", columns, rows)
