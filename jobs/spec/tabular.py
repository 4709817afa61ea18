"""What the pipelines on tables have in common."""

from typing import Self

from pydantic import Field, model_validator

from jobs.spec.base import PartitionedParams


class TableParams(PartitionedParams):
    """Which columns of the table are used, and how."""

    features: tuple[str, ...] | None = Field(None, description="Columns to use; by default all others.")
    drop: tuple[str, ...] = Field((), description="Columns to leave out.")
    categorical: tuple[str, ...] = Field(
        (), description="Columns to take as categories even where their values are numbers."
    )
    max_categories: int = Field(
        100, ge=2, description="Most distinct values of a column of categories; each becomes a column of 0 and 1."
    )

    @model_validator(mode="after")
    def _columns_fit(self) -> Self:
        for key in ("features", "drop", "categorical"):
            names = getattr(self, key) or ()
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise ValueError(f"{key}: column {twice!r} stands twice; name it once")
        target = getattr(self, "target", None)
        for name in self.drop:
            if name == target or name in (self.features or ()):
                raise ValueError(f"drop: column {name!r} is also to be used; remove it here or there")
        if target is not None and target in (self.features or ()):
            raise ValueError(f"features: column {target!r} is the target; remove it")
        return self
