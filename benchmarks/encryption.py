"""`python -m benchmarks.encryption [case …]`: what the local cluster's TLS costs, against the same cluster without it.

Both sides hold the same data and do the same work in turn, and swap who is first: what else the machine does meets
both. Prints a line a case: the medians, the ratio of pairs with its quartiles, and whether the bar holds. Run it on a
quiet machine.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import data
from benchmarks.cases import _ALS
from benchmarks.processes import Side


@dataclass(frozen=True)
class Work:
    """A case: its name in `benchmarks.sides.ours`, its data, the most that its ratio may be, and the turns it takes."""

    name: str
    data: Callable[[Path], None]
    bar: float = 1.05
    # Ratios of turns of half a second spread by a tenth: their median is good to 0.01 with a hundred.
    n_pairs: int = 25
    settings: Mapping[str, Any] = field(default_factory=dict)


CASES = {
    "kmeans": Work("kmeans", data.clusters, n_pairs=100),
    "text": Work("tfidf", data.newsgroups_ten_times, 1.10, settings={"n_workers": 2}),
    "als": Work("implicit_als", data.clicks, settings=_ALS),
    "linear": Work("linear_regression", data.line, n_pairs=100),
    "mlp": Work("mlp", partial(data.line, n=100_000), n_pairs=15),
}


def main() -> int:
    """Return 0 where the bar of every case that was asked for holds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.encryption", description=str(__doc__).splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="case", help=f"of {', '.join(CASES)}; all where none is named")
    parser.add_argument(
        "--pairs", type=int, help="times that each side does the work; by default as many as a case needs"
    )
    asked = parser.parse_args()
    unknown = set(asked.cases) - set(CASES)
    if unknown:
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    held = [_holds(name, asked.pairs or CASES[name].n_pairs) for name in asked.cases or CASES]
    return 0 if all(held) else 1


def _holds(name: str, n_pairs: int) -> bool:
    case = CASES[name]
    with tempfile.TemporaryDirectory(prefix="daskyard-benchmark-") as path:
        folder = Path(path)
        case.data(folder)
        with (
            Side("ours", case.name, folder, case.settings, 1) as encrypted,
            Side("ours_plain", case.name, folder, case.settings, 1) as plain,
        ):
            pairs = []
            # The first turn warms up: code is compiled, connections are made.
            for turn in range(n_pairs + 1):
                if turn % 2:
                    ours, theirs = encrypted.run(), plain.run()
                else:
                    theirs, ours = plain.run(), encrypted.run()
                pairs.append((ours, theirs))
    pairs = pairs[1:]
    ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    low, ratio, high = statistics.quantiles([a / b for a, b in pairs], n=4)
    holds = ratio <= case.bar
    print(
        f"{name}: encrypted {ours:.3f} s, plain {theirs:.3f} s, ratio {ratio:.3f} ({low:.3f} to {high:.3f}, "
        f"n = {len(pairs)}), bar {case.bar:g}: {'holds' if holds else 'DOES NOT HOLD'}",
        flush=True,
    )
    return holds


if __name__ == "__main__":
    sys.exit(main())
