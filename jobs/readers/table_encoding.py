"""Turns partitions of a table into numbers: impute, encode categories, standardise, split.

Pure functions of one partition. Called by the pipelines on tables, which find the encoder's figures in two passes
first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from jobs.randomness import uniform
from jobs.readers.table_profile import numbers, positions, texts
from jobs.trial import Rows, Trial, roles

Floats = NDArray[np.float64]

# Which draw of a row's random numbers decides whether it is a test row.
_SPLIT_DRAW = 1
MISSING = "missing"


class Spread(NamedTuple):
    """Of each column of numbers: finite values (q,), their mean (q,) and their centred sum of squares (q,)."""

    n: Floats
    means: Floats
    squares: Floats


@dataclass(frozen=True)
class Target:
    """The column to predict: of numbers, or of classes (text → position)."""

    name: str
    classes: tuple[str, ...] | None = None

    def values(self, frame: pd.DataFrame) -> Floats:
        """Return numbers or class positions (n,); NaN where there is none."""
        if self.classes is None:
            found = numbers(frame[self.name])
            return np.where(np.isfinite(found), found, np.nan)
        codes = positions(texts(frame[self.name]), self.classes)
        return np.where(codes < 0, np.nan, codes.astype(np.float64))


@dataclass(frozen=True)
class Split:
    """Which rows are trained and measured on: a function of seed and global row number."""

    seed: int
    fraction: float
    trial: Trial | None = None

    def roles(self, rows: NDArray[np.int64]) -> tuple[Rows, Rows]:
        """Return which of the global rows (n,) are training and which are test rows, or validation rows in a trial."""
        is_test = uniform(self.seed, _SPLIT_DRAW, rows) < self.fraction
        return roles(is_test, self.seed, rows, self.trial)


@dataclass(frozen=True)
class Encoder:
    """Columns of numbers and of categories → one float64 matrix.

    Attributes
    ----------
    numbers : tuple of str
        Columns of numbers; what is missing or infinite becomes the mean, then (x − mean) / scale where standardised.
    means, scales : ndarray of shape (q,)
    categories : dict of str to tuple of str
        Column → its values, each a column of 0 and 1. A value that is not among them gives zeros.
    is_standardised : bool
    has_reference : bool
        Whether the first value of each column gives zeros too: with a constant in the model, a column for each value
        would say the same twice, and no coefficient would be determined.
    """

    numbers: tuple[str, ...]
    means: Floats
    scales: Floats
    categories: dict[str, tuple[str, ...]]
    is_standardised: bool
    has_reference: bool = False

    @property
    def names(self) -> list[str]:
        """Names of the matrix's columns."""
        first = int(self.has_reference)
        categories = self.categories.items()
        return [*self.numbers, *(f"{name}={value}" for name, values in categories for value in values[first:])]

    def transform(self, frame: pd.DataFrame) -> tuple[Floats, int, list[float]]:
        """Return the matrix (n, p), how many numbers were imputed, and the farthest from zero of each column (q,)."""
        matrix = np.zeros((len(frame), len(self.names)))
        n_imputed = 0
        extremes = []
        for place, (name, mean, scale) in enumerate(zip(self.numbers, self.means, self.scales, strict=True)):
            values = numbers(frame[name])
            is_usable = np.isfinite(values)
            n_imputed += int(len(values) - is_usable.sum())
            values = np.where(is_usable, values, mean)
            values = (values - mean) / scale if self.is_standardised else values
            extremes.append(_extreme(values))
            matrix[:, place] = values
        place = len(self.numbers)
        for name, known in self.categories.items():
            shown = list(known[int(self.has_reference) :])
            codes = positions(texts(frame[name]).fillna(MISSING), shown)
            is_known = codes >= 0
            matrix[np.flatnonzero(is_known), place + codes[is_known]] = 1.0
            place += len(shown)
        return matrix, n_imputed, extremes

    def original(self, place: int, value: float) -> float:
        """Return the value of a column of numbers as it stood in the table."""
        return float(value * self.scales[place] + self.means[place]) if self.is_standardised else value

    def document(self) -> dict[str, Any]:
        """Return what somebody else needs to encode rows alike, as JSON."""
        return {
            "numbers": [
                {"name": name, "mean": float(mean), "scale": float(scale)}
                for name, mean, scale in zip(self.numbers, self.means, self.scales, strict=True)
            ],
            "categories": {name: list(values) for name, values in self.categories.items()},
            "is_standardised": self.is_standardised,
            "has_reference": self.has_reference,
            "columns": self.names,
        }


class Half(NamedTuple):
    """Training or test rows of a partition: matrix (n, p), target (n,), global row numbers (n,)."""

    X: Floats
    y: Floats
    rows: NDArray[np.int64]


class Encoded(NamedTuple):
    """A partition as numbers, and what had to be done to it.

    `extremes` are the values farthest from zero of the matrix's columns of numbers, and then of the target.
    """

    train: Half
    test: Half
    n_dropped: int
    n_imputed: int
    extremes: Floats


def spread(frame: pd.DataFrame, start: int, names: tuple[str, ...], target: Target | None, split: Split) -> Spread:
    """Mean and spread of the columns of numbers over the training rows of a partition that begins at row `start`."""
    chosen, _ = split.roles(np.arange(start, start + len(frame)))
    if target is not None:
        chosen &= ~np.isnan(target.values(frame))
    n, means, squares = np.zeros(len(names)), np.zeros(len(names)), np.zeros(len(names))
    for place, name in enumerate(names):
        values = numbers(frame[name])[chosen]
        values = values[np.isfinite(values)]
        if len(values):
            # Seen from a value of its own, a column that never changes has exactly no spread, whatever the partitions;
            # its mean alone would leave rounding errors that look like one.
            with np.errstate(over="ignore", invalid="ignore"):  # the caller reports what is not finite
                gaps = values - values[0]
                offset = gaps.mean()
                n[place], means[place] = len(values), values[0] + offset
                squares[place] = ((gaps - offset) ** 2).sum()
    return Spread(n, means, squares)


def merged_spread(a: Spread, b: Spread) -> Spread:
    """Merge two partitions' spreads: Chan, Golub and LeVeque 1979."""
    n = a.n + b.n
    share = b.n / np.where(n > 0, n, 1.0)
    with np.errstate(over="ignore", invalid="ignore"):
        gap = b.means - a.means
        return Spread(n, a.means + gap * share, a.squares + b.squares + gap * gap * a.n * share)


def encode(frame: pd.DataFrame, start: int, encoder: Encoder, target: Target | None, split: Split) -> Encoded:
    """Encode and split a partition that begins at global row `start`; rows without a target are dropped."""
    rows = np.arange(start, start + len(frame))
    y = np.zeros(len(frame)) if target is None else target.values(frame)
    kept = ~np.isnan(y)
    matrix, n_imputed, extremes = encoder.transform(frame[kept])
    rows, y = rows[kept], y[kept]
    halves = [Half(np.ascontiguousarray(matrix[chosen]), y[chosen], rows[chosen]) for chosen in split.roles(rows)]
    return Encoded(
        halves[0], halves[1], int(len(kept) - kept.sum()), n_imputed, np.array([*extremes, _extreme(y)], np.float64)
    )


def _extreme(values: Floats) -> float:
    """Return the value farthest from zero; 0 where there is none."""
    low, high = float(values.min(initial=0)), float(values.max(initial=0))
    return high if high >= -low else low
