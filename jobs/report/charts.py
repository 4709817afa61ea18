"""Draws sections as SVG that stands in the page itself. Called by html."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib as mpl
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jobs.artifacts import StageRecord
from jobs.report.numbers import number
from jobs.report.sections import Bars, Curves, Matrix
from jobs.visible import visible

_STYLE = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=["#2563eb", "#ea580c", "#16a34a", "#9333ea", "#dc2626", "#0891b2"]),
    "text.parse_math": False,  # a $ in a name is no formula
    "svg.fonttype": "none",  # text stays text: small, searchable, read by screen readers
    "svg.hashsalt": "daskyard",  # the same report gives the same bytes
}
# Above this, the numbers in a matrix's cells would be unreadable.
_MAX_CELLS_WITH_NUMBERS = 12
_LONGEST_LABEL = 60
# More points are a line of their own.
_MOST_MARKERS = 60


def curves(section: Curves) -> str:
    """Lines of (x, y) points."""
    with _drawing():
        figure, axes = _figure(7.0, 3.2)
        for name, points in section.series.items():
            marker = "o" if len(points) <= _MOST_MARKERS else ""
            axes.plot([x for x, _ in points], [y for _, y in points], marker=marker, markersize=3, label=_label(name))
        axes.set_xlabel(_label(section.x_label))
        axes.set_ylabel(_label(section.y_label))
        axes.grid(alpha=0.25)
        if all(float(x).is_integer() for points in section.series.values() for x, _ in points):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(section.series) > 1:
            axes.legend(frameon=False)
        return _svg(figure)


def matrix(section: Matrix) -> str:
    """A heat map, coloured by the share of its row, numbered where there is room."""
    n = len(section.labels)
    with _drawing():
        side = min(9.0, 2.2 + 0.42 * n)
        figure, axes = _figure(side + 0.8, side)
        shares = [[value / (sum(row) or 1) for value in row] for row in section.values]
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        labels = [_label(label) for label in section.labels]
        axes.set_xticks(range(n), labels, rotation=45, ha="right")
        axes.set_yticks(range(n), labels)
        axes.set_xlabel(_label(section.column_label))
        axes.set_ylabel(_label(section.row_label))
        axes.spines[:].set_visible(False)
        if n <= _MAX_CELLS_WITH_NUMBERS:
            for i, row in enumerate(section.values):
                for j, value in enumerate(row):
                    color = "white" if shares[i][j] > 0.5 else "#334155"
                    axes.text(j, i, f"{value:g}", ha="center", va="center", fontsize=7, color=color)
        return _svg(figure)


def bars(section: Bars) -> str:
    """One horizontal bar a label, first on top."""
    with _drawing():
        figure, axes = _figure(7.0, 0.6 + 0.28 * len(section.labels))
        places = range(len(section.labels))
        drawn = axes.barh(places, section.values, height=0.65)
        axes.bar_label(drawn, labels=[number(value) for value in section.values], padding=3, fontsize=8)
        axes.set_yticks(places, [_label(label) for label in section.labels])
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set_xlabel(_label(section.unit))
        return _svg(figure)


def timeline(stages: Sequence[StageRecord]) -> str:
    """The stages, one after the other, on an axis of seconds."""
    with _drawing():
        figure, axes = _figure(7.0, 0.8 + 0.28 * len(stages))
        start = 0.0
        for place, stage in enumerate(stages):
            axes.barh(place, stage.seconds, left=start, height=0.65)
            axes.text(start + stage.seconds, place, f"  {stage.seconds:.1f} s", va="center", fontsize=8)
            start += stage.seconds
        axes.set_yticks(range(len(stages)), [_label(stage.name) for stage in stages])
        axes.invert_yaxis()
        axes.set_xlim(0, max(start * 1.12, 1e-3))
        axes.set_xlabel("seconds since the start")
        return _svg(figure)


@contextmanager
def _drawing() -> Iterator[None]:
    """Draw in our style, and leave it to the browser to find signs that matplotlib's font lacks."""
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def _label(text: str) -> str:
    """Return a name for a chart: what is not seen made visible, a long one cut."""
    text = visible(text)
    text = text if len(text) <= _LONGEST_LABEL else text[: _LONGEST_LABEL - 1] + "…"
    return f" {text}" if text.startswith("_") else text  # to matplotlib, a line with such a name is none for the legend


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure that pyplot does not know: threads may draw at once, nothing is left in memory. Inches."""
    figure = Figure(figsize=(width, height), layout="tight")
    return figure, figure.add_subplot()


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
