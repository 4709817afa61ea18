"""Params of the group_by pipeline."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from jobs.spec.base import PartitionedParams

Name = Annotated[str, Field(min_length=1)]
Function = Literal["count", "sum", "mean", "std", "min", "max"]


class GroupByParams(PartitionedParams):
    """Groups of a table's rows and what their columns add up to; the table may be larger than the workers' memory."""

    by: tuple[Name, ...] = Field(min_length=1, description="Columns whose values make a group.")
    aggregates: dict[Name, Annotated[tuple[Function, ...], Field(min_length=1)]] = Field(
        {},
        description="Column → what is computed of its values in each group: count, sum, mean, std (of a sample), min, "
        "max. Missing values are left out. The number of rows is always there.",
    )
    missing: Literal["group", "drop"] = Field(
        "group", description="Rows without a value in one of `by`: a group of their own, or left out."
    )

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        twice = next((name for name in self.by if self.by.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"by: column {twice!r} stands twice; name it once")
        for name, functions in self.aggregates.items():
            if len(set(functions)) < len(functions):
                raise ValueError(f"aggregates: {name}: a function stands twice; name it once")
            if name in self.by:
                raise ValueError(f"aggregates: column {name!r} is among `by`; remove it here or there")
        names = [*self.by, "n_rows", *(f"{name}_{each}" for name, of in self.aggregates.items() for each in of)]
        clash = next((name for name in names if names.count(name) > 1), None)
        if clash is not None:
            raise ValueError(
                f"aggregates: two columns of the result would be called {clash!r}; rename one in the input"
            )
        return self
