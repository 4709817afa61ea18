"""What the pipelines on tables have in common."""

from pydantic import Field

from jobs.spec.base import Params


class TableParams(Params):
    """Which columns of the table are used, and how."""

    features: tuple[str, ...] | None = Field(None, description="Columns to use; by default all others.")
    drop: tuple[str, ...] = Field((), description="Columns to leave out.")
    categorical: tuple[str, ...] = Field(
        (), description="Columns to take as categories even where their values are numbers."
    )
    max_categories: int = Field(
        100, ge=2, description="Most distinct values of a column of categories; each becomes a column of 0 and 1."
    )
    blocksize_mb: float = Field(32, gt=0, description="Size of the partitions in which files are read, MB.")
