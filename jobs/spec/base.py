"""Base models of the job spec: strict, frozen, no unknown keys, no NaN."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from jobs.errors import without_passwords
from jobs.urls import problem_of


class StrictModel(BaseModel):
    """A frozen model that refuses unknown keys, wrong types, NaN and infinity."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=False
    )


def _without_password(url: str) -> str:
    """A job file is kept in manifests and clusters, and printed."""
    if without_passwords(url) != url:
        raise ValueError(
            "holds a password or a signature; take it out and give credentials by the environment (AWS_…, FSSPEC_…)"
        )
    return url


def _complete(url: str) -> str:
    problem = problem_of(url)
    if problem is not None:
        raise ValueError(f"{url} {problem}")
    return url


# The URL of a file or a folder.
Place = Annotated[str, Field(min_length=1), AfterValidator(_without_password), AfterValidator(_complete)]


class Params(StrictModel):
    """What every pipeline takes.

    Attributes
    ----------
    of_fit : frozenset of str
        Params that have no bearing on what is done before the fit: runs that differ in nothing else share that.
    directions : dict of str to "max" or "min"
        Whether more or less of a metric is better, by the metric's name up to an @.
    """

    of_fit: ClassVar[frozenset[str]] = frozenset()
    directions: ClassVar[dict[str, Literal["max", "min"]]] = {}

    seed: int = Field(0, ge=0, lt=2**32, description="Seed of every random choice: split, start, sample order.")


class PartitionedParams(Params):
    """What pipelines take that read tables in partitions."""

    blocksize_mb: float | None = Field(
        None,
        gt=0,
        description="Size of the partitions in which files are read, MB; null: 32, or less where workers are small. "
        "Changes no result.",
    )


class Input(StrictModel):
    """Where the data is."""

    url: Place = Field(description="A file, a folder or a glob: s3://, file://, memory:// or a plain path.")
    test_url: Place | None = Field(
        None, description="A test set of its own; without it, a share of the data is set aside."
    )
    format: Literal["auto", "csv", "tsv", "jsonl", "parquet", "folder", "cifar10", "idx"] = Field(
        "auto", description="How to read it; auto goes by the names of the files."
    )

    @model_validator(mode="before")
    @classmethod
    def _accept_a_plain_url(cls, value: object) -> object:
        return {"url": value} if isinstance(value, str) else value
