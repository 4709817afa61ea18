"""What report.html shows of a search: all trials, the best first, and the best value so far."""

from __future__ import annotations

import json

from jobs.artifacts import TrialRecord, TuningRecord
from jobs.report.sections import Curves, Section, Table

_MOST_ROWS = 100


def tuning_sections(tuning: TuningRecord | None) -> list[Section]:
    """Return a table and a curve; nothing where there was no search."""
    if tuning is None:
        return []
    full = max(trial.resource for trial in tuning.trials)
    names = list(tuning.params)

    def order(trial: TrialRecord) -> tuple[float, float, int]:
        if trial.value is None:
            return 1.0, 0.0, trial.number
        return -trial.rung, -trial.value if tuning.is_more_better else trial.value, trial.number

    ranked = sorted(tuning.trials, key=order)
    rows: list[list[str | int | float]] = [
        [
            "taken" if place == 0 else "failed" if trial.error else "",
            trial.number,
            trial.resource if full > 1 else f"{trial.resource:.0%}",
            *(_shown(trial.params[name]) for name in names),
            "" if trial.value is None else trial.value,
            trial.seconds,
            trial.error or "",
        ]
        for place, trial in enumerate(ranked[:_MOST_ROWS])
    ]
    title = f"Tuning: {len(tuning.trials)} trials, {tuning.metric} on validation rows"
    columns = ["", "candidate", "resource", *names, tuning.metric, "seconds", "error"]
    if not any(trial.error for trial in tuning.trials):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    return [Table(title, columns, rows), Curves("Best so far", "trial", tuning.metric, _best_so_far(tuning))]


def _best_so_far(tuning: TuningRecord) -> dict[str, list[tuple[float, float]]]:
    """Return a line for each rung."""
    lines: dict[str, list[tuple[float, float]]] = {}
    better = max if tuning.is_more_better else min
    for number, trial in enumerate(tuning.trials, start=1):
        if trial.value is not None:
            line = lines.setdefault(f"resource {trial.resource:.3g}", [])
            line.append((float(number), better(trial.value, line[-1][1]) if line else trial.value))
    return lines


def _shown(value: object) -> str | int | float:
    return value if isinstance(value, (str, int, float)) and not isinstance(value, bool) else json.dumps(value)
