"""How far a fit is, which all its ranks know alike, and where the time of each of them went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from jobs.training.plan import Plan, Step


@dataclass
class Timings:
    """Seconds of one rank.

    Attributes
    ----------
    data_wait_s, compute_s, all_reduce_s, checkpoint_s
        Waiting for data, computing, summing over the ranks (waiting for them included), copying states to be stored;
        of steps that were kept.
    open_s
        Opening the data, before the first generation; fetching what was not on this machine is in it.
    lost_s
        Steps that were begun and not kept, and forming new generations.
    total_s
        From the first generation's start.
    """

    data_wait_s: float = 0.0
    compute_s: float = 0.0
    all_reduce_s: float = 0.0
    checkpoint_s: float = 0.0
    open_s: float = 0.0
    lost_s: float = 0.0
    total_s: float = 0.0

    def add(self, others: Timings) -> None:
        """Add what was spent elsewhere."""
        for name, seconds in asdict(others).items():
            setattr(self, name, getattr(self, name) + seconds)


@dataclass(frozen=True)
class Epoch:
    """One pass: mean loss over its samples, learning rate of the first group at its end, seconds, samples/s.

    `validation_loss` and `validation_metric` are means over the validation samples, None where there are none.
    """

    loss: float
    lr: float
    seconds: float
    samples_per_s: float
    validation_loss: float | None = None
    validation_metric: float | None = None


@dataclass(frozen=True)
class Progress:
    """Steps that were kept, and the epochs that they were; sums and seconds are of the present epoch."""

    position: int = 0
    loss_sum: float = 0.0
    validation_loss_sum: float = 0.0
    validation_metric_sum: float = 0.0
    epoch_seconds: float = 0.0
    history: list[Epoch] = field(default_factory=list)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Progress:
        """Make it of what `asdict` gave."""
        return cls(**{**values, "history": [Epoch(**epoch) for epoch in values["history"]]})

    def after(self, plan: Plan, step: Step, loss: float, metric: float, lr: float, seconds: float) -> Progress:
        """Return how far the fit is once this step, of mean `loss` and `metric`, is kept."""
        progress = replace(self, position=self.position + 1, epoch_seconds=self.epoch_seconds + seconds)
        if step.is_training:
            progress = replace(progress, loss_sum=self.loss_sum + step.n * loss)
        else:
            progress = replace(
                progress,
                validation_loss_sum=self.validation_loss_sum + step.n * loss,
                validation_metric_sum=self.validation_metric_sum + step.n * metric,
            )
        return progress._next_epoch(plan, lr) if step.is_last_of_epoch else progress

    def _next_epoch(self, plan: Plan, lr: float) -> Progress:
        n, m = plan.n_samples, plan.n_validation
        epoch = Epoch(
            self.loss_sum / n,
            lr,
            self.epoch_seconds,
            n / self.epoch_seconds,
            self.validation_loss_sum / m if m else None,
            self.validation_metric_sum / m if m and plan.metric_fn is not None else None,
        )
        return Progress(self.position, history=[*self.history, epoch])
