"""The section `tune` of a job file: a search over params before the run."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from jobs.spec.base import StrictModel

Name = Annotated[str, Field(min_length=1)]


class Choices(StrictModel):
    """One of several values."""

    choices: tuple[Any, ...] = Field(min_length=2, description="Values to choose from.")


class Range(StrictModel):
    """A number between two bounds, both included; whole where the param is."""

    low: int | float = Field(description="Least value.")
    high: int | float = Field(description="Greatest value.")
    scale: Literal["linear", "log"] = Field(
        "linear", description="log: as many values between 1 and 10 as between 10 and 100."
    )

    @model_validator(mode="after")
    def _bounds_fit(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}; correct one of them")
        if self.scale == "log" and self.low <= 0:
            raise ValueError(f"low {self.low:g} has no logarithm; raise it above 0 or set scale to linear")
        return self


def _kind(value: Any) -> str:
    is_choices = "choices" in value if isinstance(value, dict) else isinstance(value, Choices)
    return "choices" if is_choices else "range"


# Told apart before they are read, so that a mistake is named as one of the kind that was meant.
Values = Annotated[Annotated[Range, Tag("range")] | Annotated[Choices, Tag("choices")], Discriminator(_kind)]
KINDS: dict[str, type[StrictModel]] = {"range": Range, "choices": Choices}


class Tune(StrictModel):
    """Tries several values of params on rows that are set aside for it; the run then takes the best ones."""

    space: dict[Name, Values] = Field(min_length=1, description="Param → low and high (and scale), or choices.")
    strategy: Literal["random", "successive_halving"] = Field(
        "random",
        description="random: each candidate is tried in full; successive_halving: all are tried with little, the best "
        "again with more.",
    )
    n_trials: int = Field(20, ge=2, le=10_000, description="Candidates; fewer where the space has no more.")
    metric: str | None = Field(None, description="Metric to go by; null: the one that stands for the pipeline's runs.")
    mode: Literal["auto", "min", "max"] = Field(
        "auto", description="Whether less or more of the metric is better; auto knows the pipelines' metrics."
    )
    validation_fraction: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="Share of the training rows on which trials are measured. Test rows are not touched.",
    )
    resource: str | None = Field(
        None,
        description="What successive halving gives more of: a whole-number param such as epochs; null: training rows.",
    )
    reduction_factor: int = Field(
        3, ge=2, le=100, description="Of each rung, one in so many goes on, with so many times the resource."
    )
    min_resource: float | None = Field(
        None,
        gt=0,
        description="Resource of the first rung, a number or a share of the rows; null: so that the last rung has all.",
    )
    patience: int | None = Field(None, ge=1, description="random: stop after so many trials without a better one.")
    stop_at: float | None = Field(None, description="Stop once a trial with the full resource reaches this value.")

    @model_validator(mode="after")
    def _keys_fit(self) -> Self:
        if self.strategy == "random":
            for key in ("resource", "min_resource"):
                if getattr(self, key) is not None:
                    raise ValueError(f"{key}: belongs to strategy successive_halving; remove it or change the strategy")
        elif self.patience is not None:
            raise ValueError("patience: belongs to strategy random; remove it or change the strategy")
        if self.resource is not None and self.resource in self.space:
            raise ValueError(f"resource: {self.resource!r} is in the space as well; remove it from one of them")
        if "seed" in self.space:
            raise ValueError("space: seed is no param to choose by its luck; remove it")
        if "test_fraction" in self.space:
            raise ValueError("space: test_fraction says which rows are set aside, not how to fit; remove it")
        return self
