"""Renders report.html: one file that needs no network. Called by the runner."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from jobs.artifacts import Manifest
from jobs.report import charts
from jobs.report.numbers import number
from jobs.report.sections import Bars, Curves, Images, Matrix, Section
from jobs.visible import visible_lines


def render(manifest: Manifest, sections: Sequence[Section]) -> str:
    """Return the page for a run: its metrics, the pipeline's sections, stages, inputs and versions."""
    environment = Environment(
        loader=PackageLoader("jobs.report", "templates"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        finalize=_plain_to_see,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    drawn = [
        {
            "kind": type(section).__name__.lower(),
            "id": f"s{place}",
            "section": section,
            "drawing": _draw(section),
        }
        for place, section in enumerate(sections)
    ]
    template = environment.get_template("report.html")
    return template.render(manifest=manifest, sections=drawn, timeline=charts.timeline(manifest.stages))


def _plain_to_see(value: Any) -> Any:
    """Return text without what nobody would see, or no encoding takes; what is markup already is our own."""
    return visible_lines(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _draw(section: Section) -> Any:
    if isinstance(section, Curves):
        return charts.curves(section)
    if isinstance(section, Matrix):
        return charts.matrix(section)
    if isinstance(section, Bars):
        return charts.bars(section)
    if isinstance(section, Images):
        return [(base64.b64encode(png).decode(), caption) for png, caption in section.items]
    return None
