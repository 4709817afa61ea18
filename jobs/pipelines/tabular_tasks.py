"""What the pipelines on tables have their workers do: pure functions of one partition.

A partition is a data frame that a worker holds, or one that is read whenever it is needed. The module imports little,
since it is imported on every worker.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from jobs.artifacts import put_table
from jobs.readers import table_encoding, table_profile
from jobs.readers.table_encoding import Encoded, Encoder, Split, Spread, Target
from jobs.readers.table_profile import Profile
from jobs.readers.tables import Part, read_part

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Unread:
    """Some columns of a part, which nobody keeps: each pass reads them again."""

    part: Part
    columns: tuple[str, ...]
    numbers: tuple[str, ...] = ()

    def frame(self) -> pd.DataFrame:
        """Read them."""
        return read_part(self.part, self.columns, self.numbers)


Partition: TypeAlias = Any  # a data frame, or Unread


def profile(partition: Partition, max_values: int, valued: tuple[str, ...]) -> Profile:
    """Profile a partition's columns."""
    return table_profile.profile(_frame(partition), max_values, valued)


def spread(partition: Partition, start: int, names: tuple[str, ...], target: Target | None, split: Split) -> Spread:
    """Mean and spread of columns of numbers over the training rows of the partition that begins at row `start`."""
    return table_encoding.spread(_frame(partition), start, names, target, split)


def encode(partition: Partition, start: int, encoder: Encoder, target: Target | None, split: Split) -> Encoded:
    """Encode and split the partition that begins at row `start`."""
    return table_encoding.encode(_frame(partition), start, encoder, target, split)


def member(part: Encoded, half: str, name: str) -> Any:
    """Return one array of an encoded partition; as a task of its own, so that the rest can go."""
    return getattr(getattr(part, half), name)


def counts(part: Encoded) -> tuple[tuple[int, int, int, int], Floats]:
    """Training rows, test rows, rows dropped, values imputed; and the extremes of columns and target."""
    return (len(part.train.y), len(part.test.y), part.n_dropped, part.n_imputed), part.extremes


def write(
    X: Floats, y: Floats, rows: NDArray[np.int64], url: str, columns: Callable[..., Any], args: Any
) -> tuple[int, str]:
    """Write row numbers and ``columns(X, y, *args) -> dict`` as Parquet; return the file's size and SHA-256."""
    return put_table(url, pa.table({"row": rows, **columns(X, y, *args)}))


class RegressionSums(NamedTuple):
    """Sums from which a regression's metrics follow; targets y are seen from a centre, so that they keep digits."""

    n: int
    squares: float
    absolute: float
    y: float
    y_squares: float


def regression_sums(predicted: Floats, y: Floats, centre: float) -> RegressionSums:
    """Compare predictions (n,) with targets (n,)."""
    gaps, centred = y - predicted, y - centre
    return RegressionSums(
        len(y), float(gaps @ gaps), float(np.abs(gaps).sum()), float(centred.sum()), float(centred @ centred)
    )


def line_sums(X: Floats, y: Floats, coef: Floats, intercept: float, centre: float) -> RegressionSums:
    """Compare what a linear model predicts with the targets."""
    return regression_sums(X @ coef + intercept, y, centre)


def line_predictions(X: Floats, y: Floats, coef: Floats, intercept: float) -> dict[str, Floats]:
    """Columns of a linear model's predictions."""
    return {"target": y, "prediction": X @ coef + intercept}


def _frame(partition: Partition) -> pd.DataFrame:
    return partition.frame() if isinstance(partition, Unread) else partition
