"""`python -m benchmarks [case …]`: run cases, print a line each, and write results.json and docs/benchmarks.md."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.cases import CASES, Case
from benchmarks.processes import NotAvailableError, Side


def main() -> int:
    """Return 0 where every case that was asked for holds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Compare us with peers.")
    parser.add_argument(
        "cases", nargs="*", help=f"of {', '.join(case.name for case in CASES)}; all where none is named"
    )
    asked = parser.parse_args().cases
    unknown = set(asked) - {case.name for case in CASES}
    if unknown:
        parser.error(f"no such case: {', '.join(sorted(unknown))}; python -m benchmarks --help lists them")
    hold = True
    for case in CASES:
        if asked and case.name not in asked:
            continue
        try:
            found = _measured(case)
        except NotAvailableError as error:
            print(f"{case.name}: not run: {error}", flush=True)
            hold = False
            continue
        results.keep(found)
        hold &= found["holds"]
        low, high = found["spread"]
        print(
            f"{case.name}: ours {found['ours']:.4g} {case.unit}, {case.peer} {found['theirs']:.4g} {case.unit}, "
            f"ratio {found['ratio']:.3f} ({low:.3f} to {high:.3f}, n = {found['n']}), bar {case.bar:g}: "
            f"{'holds' if found['holds'] else 'DOES NOT HOLD'}; {found['agreement']}",
            flush=True,
        )
    return 0 if hold else 1


def _measured(case: Case) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="daskyard-benchmark-") as name:
        folder = Path(name)
        case.data(folder)
        with (
            Side(case.ours, case.work, folder, case.settings, 1) as us,
            Side(case.peer, case.work, folder, case.peer_settings, case.peer_threads) as them,
        ):
            times: list[tuple[float, float]] = []
            # The first turn warms up: code is compiled, pages are touched.
            for turn in range(case.n + (case.n > 1)):
                # Whoever is first meets a machine that the other one has left: they swap.
                pair = [side.run() for side in ((us, them) if turn % 2 else (them, us))]
                times.append((pair[0], pair[1]) if turn % 2 else (pair[1], pair[0]))
            times = times[-case.n :]
            ours, theirs = us.found(), them.found()
            agreed = case.agree(ours, theirs, folder)
            versions = {**them.versions, **us.versions}
        if case.unit == "MB/s":
            size = (folder / "documents.json").stat().st_size / 1e6
            values = [(size / a, size / b) for a, b in times]
        elif case.found:
            values = [(float(ours[case.found]), float(theirs[case.found]))]
        else:
            values = times
    more = {
        "command": f"make bench CASES={shlex.quote(case.name)}",
        "machine": _machine(),
        "versions": versions,
        "date": datetime.date.today().isoformat(),
    }
    return results.result(case, [a for a, _ in values], [b for _, b in values], agreed, more)


def _machine() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    model = names[0].partition(":")[2].strip() if names else platform.machine()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} × {model}, {memory:.0f} GiB"


if __name__ == "__main__":
    sys.exit(main())
