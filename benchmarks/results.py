"""benchmarks/results.json, and docs/benchmarks.md, which is made from it and from findings.md."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.agreement import Agreement
from benchmarks.cases import Case

_HERE = Path(__file__).parent
RESULTS = _HERE / "results.json"
PAGE = _HERE.parent / "docs" / "benchmarks.md"
_FINDINGS = _HERE / "findings.md"

_HEAD = """# Benchmarks

Each case is the same work on the same data, done by us and by a peer in one run: each side in a process of its own,
both warmed up once, then in turns. The table has medians; the spread is that of the ratios of neighbouring runs. A case
holds where its bar is cleared and both sides found the same. `make bench` measures anew and writes this page;
`make bench CASES="kmeans text_one_process"` does some of it.

Unless a case says otherwise, we have two workers of one thread each with BLAS on one thread, and the peer has one
process with BLAS, OpenMP or its own threads on two. Data lies in the peer's memory, or in that of our workers, before
the clock starts, and results stay there. Every message between our client, scheduler and workers is in our time.

| case | peer | ours | theirs | ratio | spread | bar | holds | found |
|---|---|---|---|---|---|---|---|---|
"""


def result(
    case: Case,
    ours: Sequence[float],
    theirs: Sequence[float],
    agreed: Agreement,
    more: Mapping[str, Any],
) -> dict[str, Any]:
    """Return a line of results.json from the values of the runs, in turns.

    Parameters
    ----------
    case : Case
        What was measured.
    ours, theirs : sequence of float
        Of n runs each, in the case's unit.
    agreed : Agreement
        Whether both did the same work.
    more : mapping
        Command, machine, versions and date.
    """
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    ratio = median(ours) / median(theirs)
    return {
        "case": case.name,
        "title": case.title,
        "peer": case.peer,
        "ours": median(ours),
        "theirs": median(theirs),
        "unit": case.unit,
        "ratio": ratio,
        "bar": case.bar,
        "holds": case.clears(median(ours), ratio) and agreed.holds,
        "n": len(ours),
        "spread": [min(ratios), max(ratios)],
        "agreement": agreed.seen,
        **more,
    }


def keep(new: Mapping[str, Any]) -> None:
    """Put one result into results.json in place of its case's last one, and write the page."""
    known = {each["case"]: each for each in (json.loads(RESULTS.read_text()) if RESULTS.exists() else [])}
    known[new["case"]] = dict(new)
    RESULTS.write_text(json.dumps(list(known.values()), indent=1, ensure_ascii=False) + "\n")
    PAGE.write_text(page(list(known.values()), _FINDINGS.read_text()))


def page(results: Sequence[Mapping[str, Any]], findings: str) -> str:
    """Return docs/benchmarks.md."""
    lines = [_HEAD.rstrip("\n")]
    for each in results:
        bar = f"{'≥' if each['unit'] == 'MB/s' else '≤'} {each['bar']:g}"
        if each["unit"] in ("RMSE", "MiB"):
            bar += " (ours)"
        low, high = each["spread"]
        cells = [
            each["title"],
            each["peer"].replace("_", "-").replace("ours", "Daskyard"),
            f"{each['ours']:.3g} {each['unit']}",
            f"{each['theirs']:.3g} {each['unit']}",
            f"**{each['ratio']:.2f}**",
            f"{low:.2f}–{high:.2f} (n = {each['n']})",
            bar,
            "yes" if each["holds"] else "**no**",
            each["agreement"],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "## Where and when", "", "| case | date | machine | versions |", "|---|---|---|---|"]
    for each in results:
        versions = ", ".join(f"{name} {version}" for name, version in each["versions"].items())
        lines.append(f"| {each['case']} | {each['date']} | {each['machine']} | {versions} |")
    return "\n".join(lines) + "\n\n" + findings
