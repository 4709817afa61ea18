"""Tables on standard output; 80 columns are enough for each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from pydantic import BaseModel
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs import storage
from jobs.artifacts import Manifest, attempt_url
from jobs.cli.params import params, summary
from jobs.cli.progress import duration
from jobs.datasets import Dataset
from jobs.visible import visible

if TYPE_CHECKING:
    from jobs.demo import Outcome


def table(*columns: str, right: Iterable[str] = (), title: str | None = None) -> Table:
    """Return an empty table; columns named in `right` hold numbers."""
    right = set(right)
    made = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False)
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return made


def pipelines(console: Console, models: Mapping[str, type[BaseModel]]) -> None:
    """List the pipelines."""
    made = table("pipeline", "what it does")
    for name, model in models.items():
        made.add_row(shown(name, "bold"), shown(summary(model)))
    console.print(made)
    line(console, "Params of one of them: daskyard pipelines NAME")


def pipeline(console: Console, name: str, model: type[BaseModel]) -> None:
    """Show the params of a pipeline."""
    console.print(Text.assemble((name, "bold"), "  ", summary(model)))
    made = table("param", "type, default and meaning")
    for param in params(model):
        default = "required" if param.is_required else f"default {value_text(param.default)}"
        made.add_row(
            Text(param.name, style="bold"), Text.assemble((f"{param.type}; {default}", "cyan"), "\n", param.meaning)
        )
    made.columns[0].no_wrap = True
    console.print(made)


def datasets(console: Console, known: Mapping[str, Dataset]) -> None:
    """List the data sets."""
    made = table("data set", "rows", "what it is, and on what terms", right=["rows"])
    for dataset in known.values():
        rows = "\n".join(f"{part} {n:,}" if part != "all" else f"{n:,}" for part, n in dataset.rows.items())
        made.add_row(
            Text(dataset.name, style="bold"), rows, Text.assemble(dataset.title, "\n", (dataset.licence, "dim"))
        )
    console.print(made)


def run_summary(console: Console, run_url: str, manifest: Manifest) -> None:
    """Show what came out of a run."""
    workers = "1 worker" if manifest.n_workers == 1 else f"{manifest.n_workers} workers"
    facts = f"{manifest.n_rows:,} rows, {workers}, {duration(manifest.seconds)}"
    console.print(Text.assemble(shown(manifest.pipeline, "bold"), "  ", facts))
    made = table("metric", "value", right=["value"])
    for name, value in manifest.metrics.items():
        style = "bold" if name == manifest.headline else ""
        made.add_row(shown(name, style), shown(metric_text(value), style))
    console.print(made)
    if manifest.tuning is not None:
        chosen = ", ".join(f"{name} {value_text(value)}" for name, value in manifest.tuning.params.items())
        line(console, f"tuned   {chosen}; the best of {len(manifest.tuning.trials)} trials")
    line(console, f"run     {run_url}")
    for file in manifest.files:
        if file.name == "report.html":
            # Not the URL that stands there: the run may have been copied since.
            line(console, f"report  {storage.join(attempt_url(run_url, manifest.attempt), file.name)}")


def run_details(console: Console, manifest: Manifest) -> None:
    """Show stages and files of a run, and what it was made with."""
    stages = table("stage", "seconds", right=["seconds"])
    for stage in manifest.stages:
        stages.add_row(shown(stage.name), f"{stage.seconds:.2f}")
    console.print(stages)
    files = table("file", "bytes", "SHA-256", right=["bytes"])
    for file in manifest.files:
        files.add_row(shown(file.name), f"{file.size:,}", shown(file.sha256[:16] + "…"))
    console.print(files)
    made_by = f"daskyard {manifest.package_version}"
    commit = f", commit {manifest.git_commit[:12]}" if manifest.git_commit else ""
    versions = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    line(
        console,
        f"{manifest.committed_at:%Y-%m-%d %H:%M:%S %Z}, {made_by}{commit}, seed {manifest.seed}; {versions}",
        "dim",
        soft_wrap=False,
    )


def demo(console: Console, outcome: Outcome) -> None:
    """Show what came of the demo, and what to type next."""
    made = table("pipeline", "data set", "rows", "workers", "metric", "seconds", right=["rows", "workers", "seconds"])
    made.columns[0].no_wrap = made.columns[1].no_wrap = True
    made.padding = 0
    made.show_edge = False
    for row in outcome.rows:
        if row.result:
            manifest = row.result.manifest
            metric = f"{manifest.headline} {_short(manifest.metrics[manifest.headline])}"
            cells = [f"{manifest.n_rows:,}", str(manifest.n_workers), metric, f"{manifest.seconds:.1f}"]
        else:
            cells = ["", "", "[red]failed[/]", ""]
        made.add_row(row.pipeline, row.dataset, *cells)  # names of our own, and markup
    console.print()
    console.print(made)
    console.print()
    for row in outcome.rows:
        line(console, row.result.run_url if row.result else f"{row.pipeline} failed: {row.error}")
        if row.note:
            line(console, f"  with {row.dataset}: {row.note}")
    console.print()
    if outcome.keep:
        line(console, f"Kept in {outcome.keep}; the reports, for a browser, in {outcome.keep / 'reports'}")
        line(console, "Next: a command beside that S3 server, such as")
        line(console, f"  python -P -m jobs.local_s3 {outcome.keep / 's3'} daskyard show {_first_url(outcome)}")
    else:
        line(console, "Next:")
        line(console, "  daskyard demo --keep DIR   the same, and keep data, runs and reports")
    line(console, "  daskyard pipelines         what can be run; then: daskyard run FILE")


def _first_url(outcome: Outcome) -> str:
    return next((row.result.run_url for row in outcome.rows if row.result), "RUN_URL")


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else metric_text(value)


def line(console: Console, text: str, style: str = "", soft_wrap: bool = True) -> None:
    """Write a line as it is, but for what a terminal would obey: URLs stay whole, so that they can be copied."""
    console.print(shown(text, style), highlight=False, soft_wrap=soft_wrap)


def shown(text: object, style: str = "") -> Text:
    """Return text of whatever origin for a console: no markup, no emoji, nothing that a terminal would obey."""
    return Text(visible(text), style)


def metric_text(value: object) -> str:
    """Return a metric for people: what was measured and is no number is kept as null."""
    return "not a number" if value is None else value_text(value)


def value_text(value: object) -> str:
    """Return a value for people: integers with commas, floats to six digits."""
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else json.dumps(value)
