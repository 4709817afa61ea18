"""Data-parallel training over Dask workers, one rank on each. Called by the pipelines that train networks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from distributed import Client
from torch import Tensor, nn

from jobs.errors import DaskyardError
from jobs.training.checkpoints import Checkpoints
from jobs.training.driver import Driver, Limits
from jobs.training.hardware import Hardware
from jobs.training.membership import Change
from jobs.training.plan import Data, DataOnWorkers, Plan, Precision
from jobs.training.progress import Epoch, Timings
from jobs.training.rank import run_alone


def constant(share: float) -> float:
    """Keep the learning rate: the schedule where none is given."""
    return 1.0


@dataclass(frozen=True)
class TrainResult:
    """A trained model and how the training went.

    Attributes
    ----------
    state_dict
        Weights and buffers, on the CPU.
    history
        One entry per epoch.
    timings
        One entry per rank.
    world_size
        Number of ranks.
    seconds
        From the first generation of the first rank to its last step.
    timeline
        Who came and went, and which generations followed.
    """

    state_dict: dict[str, Tensor]
    history: list[Epoch]
    timings: list[Timings]
    world_size: int
    seconds: float
    timeline: list[Change]

    @property
    def goodput(self) -> float:
        """Share of the first rank's time that went into steps that were kept, in [0, 1]."""
        first = self.timings[0]
        kept = first.data_wait_s + first.compute_s + first.all_reduce_s
        return min(kept / first.total_s, 1.0) if first.total_s else 1.0

    @property
    def samples_per_s(self) -> float:
        """Samples per second over all epochs and ranks."""
        return sum(e.samples_per_s * e.seconds for e in self.history) / sum(e.seconds for e in self.history)

    def share_of(self, part: str) -> float:
        """Mean over ranks of the share of time spent in `part`, of `Timings`."""
        parts = [asdict(timing) for timing in self.timings]
        return float(sum(p[part] / p["total_s"] for p in parts) / len(parts))


@dataclass(frozen=True)
class Trainer:
    """Trains a PyTorch model; the result does not depend on the number of ranks.

    Parameters
    ----------
    model_fn
        Makes the model; torch's generator is seeded when it is called. All functions are pickled by cloudpickle.
    loss_fn
        (outputs, targets) → mean loss of the micro-batch, a scalar.
    optimiser_fn
        Makes the optimiser of a model.
    data
        See `jobs.training.plan.Data` and `DataOnWorkers`.
    schedule_fn
        Share of all samples seen, in [0, 1) → factor on each parameter group's learning rate.
    batch_size, micro_batch_size
        Samples of a step over all ranks, and of one forward pass. The micro-batches of a step are dealt to the ranks;
        layers that look at a whole batch (BatchNorm) look at a micro-batch.
    seed
        Of the model's start and of the order of samples.
    world_size
        Number of ranks at the start, each on a worker of its own.
    min_world_size
        Fewest ranks that go on when others are lost; those that come later are let in at the next step.
    max_world_size
        Most ranks, where workers join; None is `world_size`.
    start_timeout_s
        Longest wait for the ranks to be ready (they open the data then).
    timeout_s
        Longest wait of a rank for the others in a step, and longest time of its own work in one.
    hang_timeout_s
        A rank's process that is silent for so long is killed, and counts as lost.
    precision
        Of the forward pass: bfloat16 by autocast, float32 as the model has it; auto: bfloat16 on CUDA.
    validation, metric_fn
        Data on which the model is validated after each epoch, and a mean metric (outputs, targets) → scalar.
    checkpoints, checkpoint_every_s
        Where states are stored, every so many seconds and after each epoch; a fit with the same checkpoints goes on
        from the last one.
    hardware
        Which workers train; see `choose_workers`. `cpu` keeps the ranks off CUDA as well.
    n_threads
        torch's, of each rank; None is as many as its worker has. The last digits can depend on it.
    """

    model_fn: Callable[[], nn.Module]
    loss_fn: Callable[[Tensor, Tensor], Tensor]
    optimiser_fn: Callable[[nn.Module], torch.optim.Optimizer]
    data: Data | DataOnWorkers
    schedule_fn: Callable[[float], float] = constant
    epochs: int = 1
    batch_size: int = 512
    micro_batch_size: int = 128
    seed: int = 0
    world_size: int = 1
    min_world_size: int = 1
    max_world_size: int | None = None
    start_timeout_s: float = 600.0
    timeout_s: float = 600.0
    hang_timeout_s: float = 10.0
    precision: Precision = "float32"
    validation: Data | None = None
    metric_fn: Callable[[Tensor, Tensor], Tensor] | None = None
    checkpoints: Checkpoints | None = None
    checkpoint_every_s: float = 60.0
    hardware: Hardware = "auto"
    n_threads: int | None = None

    def fit(
        self,
        client: Client,
        on_progress: Callable[[int, int], None] | None = None,
        on_change: Callable[[Change], None] | None = None,
    ) -> TrainResult:
        """Train on `client`'s workers.

        Parameters
        ----------
        client
            Its workers train.
        on_progress
            Called with samples seen and samples in all.
        on_change
            Called with each entry of the timeline, as it is made.

        Raises
        ------
        SpecError
            When there are fewer workers than ranks, or the loss is not finite any more.
        WorkersLostError
            When the ranks cannot start together, fewer than `min_world_size` are left and no others come, or a step
            loses its ranks again and again.
        Exception
            What a rank's model, data or loss raised.
        """
        # More ranks than micro-batches would have nothing to do.
        n_useful = max(self.world_size, math.ceil(self.batch_size / self.micro_batch_size))
        limits = Limits(
            n_wanted=self.world_size,
            n_min=min(self.min_world_size, self.world_size),
            n_max=max(self.world_size, min(self.max_world_size or self.world_size, n_useful)),
            hardware=self.hardware,
            start_timeout_s=self.start_timeout_s,
            timeout_s=self.timeout_s,
            hang_timeout_s=self.hang_timeout_s,
            n_threads=self.n_threads,
        )
        outcome = Driver(client, self._plan(), limits, on_progress, on_change).run()
        if len(outcome.digests) != 1:
            raise DaskyardError(
                "training: the ranks ended with different weights; the model's step is not deterministic"
            )
        return TrainResult(
            outcome.result.state_dict,
            outcome.result.history,
            outcome.timings,
            self.world_size,
            outcome.result.timings.total_s,
            outcome.timeline,
        )

    def fit_here(self) -> TrainResult:
        """Train in this process, without Dask; `world_size` is 1.

        Raises
        ------
        SpecError
            When the loss is not finite any more.
        Exception
            What model, data or loss raised.
        """
        result = run_alone(self._plan(), self.n_threads, self.hardware == "cpu")
        return TrainResult(result.state_dict, result.history, [result.timings], 1, result.timings.total_s, [])

    def _plan(self) -> Plan:
        return Plan(**{name: getattr(self, name) for name in Plan.__dataclass_fields__})
