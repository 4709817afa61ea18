"""What a pipeline can put into report.html, each as plain data: pipelines know nothing of HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Rows under column heads."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | int | float]]


@dataclass(frozen=True)
class Curves:
    """Lines of (x, y) points, such as a loss by epoch."""

    title: str
    x_label: str
    y_label: str
    series: Mapping[str, Sequence[tuple[float, float]]]


@dataclass(frozen=True)
class Matrix:
    """A square of counts, such as a confusion matrix: `values[true][predicted]`."""

    title: str
    labels: Sequence[str]
    values: Sequence[Sequence[float]]
    row_label: str = "true"
    column_label: str = "predicted"


@dataclass(frozen=True)
class Bars:
    """One horizontal bar a label."""

    title: str
    labels: Sequence[str]
    values: Sequence[float]
    unit: str = ""


@dataclass(frozen=True)
class Images:
    """PNG images with captions."""

    title: str
    items: Sequence[tuple[bytes, str]]


@dataclass(frozen=True)
class Note:
    """A paragraph."""

    title: str
    text: str


Section = Table | Curves | Matrix | Bars | Images | Note
