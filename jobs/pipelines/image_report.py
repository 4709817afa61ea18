"""image_classification's metrics and report, from counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from jobs.job import Evaluation
from jobs.pipelines.image_blocks import Mistake
from jobs.pipelines.trained import training_metrics, training_sections
from jobs.report.sections import Curves, Images, Matrix, Section, Table
from jobs.training.trainer import TrainResult

if TYPE_CHECKING:
    from jobs.pipelines.image_classification import Model, Prepared

_N_ERRORS = 24
_PARTS = ("data_wait_s", "compute_s", "all_reduce_s")


def evaluation(
    prepared: Prepared,
    model: Model,
    confusion: NDArray[np.int64],
    log_loss: float,
    errors: Sequence[Mistake],
) -> Evaluation:
    """Return metrics and sections; `confusion` is [true][predicted], `errors` the surest ones first."""
    classes = prepared.classes
    right = np.diag(confusion)
    precision = right / np.maximum(confusion.sum(axis=0), 1)
    recall = right / np.maximum(confusion.sum(axis=1), 1)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    present = confusion.sum(axis=1) > 0
    result = model.result
    metrics: dict[str, float | int | str] = {
        "accuracy": float(right.sum() / confusion.sum()),
        "macro_f1": float(f1[present].mean()),
        "log_loss": log_loss,
        "n_train": prepared.train.n_rows,
        "n_test": prepared.test.n_rows,
        "n_undecodable": int(prepared.train.meta["n_bad"]),
        "train_loss": result.history[-1].loss,
        "train_s": result.seconds,
        "img_per_s": result.samples_per_s,
        **training_metrics(result),
        "precision": "bfloat16" if model.config.is_bfloat16 else "float32",
    }
    per_class: list[list[str | int | float]] = [
        [name, int(n), float(p), float(r), float(f)]
        for name, n, p, r, f in zip(classes, confusion.sum(axis=1), precision, recall, f1, strict=True)
    ]
    sections: list[Section] = [
        _curve("Training loss", "mean loss", {"loss": [epoch.loss for epoch in result.history]}),
        _curve("Speed", "images/s", {"images/s": [epoch.samples_per_s for epoch in result.history]}),
        Table("Per class", ["class", "images", "precision", "recall", "F1"], per_class),
        Matrix("Confusion matrix", classes, confusion.astype(float).tolist()),
        *training_sections(result),
        Images(
            "Surest errors",
            [
                (e.png, f"{classes[e.label]} taken for {classes[e.predicted]} ({e.probability:.0%})")
                for e in errors[:_N_ERRORS]
            ],
        ),
    ]
    if model.compared:
        metrics |= {"max_weight_difference": weight_difference(list(model.compared.values()))}
        metrics |= comparison_metrics(model.compared)
        sections.insert(0, comparison_table(model.compared))
    return Evaluation("accuracy", metrics, sections)


def comparison_metrics(compared: Mapping[int, TrainResult]) -> dict[str, float]:
    """Return img/s, seconds, efficiency and shares of time at each world size."""
    metrics = {}
    for size, result in compared.items():
        metrics[f"img_per_s_{size}"] = result.samples_per_s
        metrics[f"train_s_{size}"] = result.seconds
        metrics[f"efficiency_{size}"] = efficiency(compared, size)
        metrics |= {f"{part.removesuffix('_s')}_share_{size}": result.share_of(part) for part in _PARTS}
    return metrics


def comparison_table(compared: Mapping[int, TrainResult]) -> Table:
    """Return what distribution does to the time, a row per world size."""
    columns = ["ranks", "seconds", "images/s", "speed-up", "efficiency", "data wait", "compute", "all-reduce"]
    smallest = compared[min(compared)]
    rows: list[list[str | int | float]] = []
    for size in sorted(compared):
        result = compared[size]
        row: list[str | int | float] = [size, round(result.seconds, 1), round(result.samples_per_s)]
        row += [round(result.samples_per_s / smallest.samples_per_s, 2), f"{efficiency(compared, size):.0%}"]
        rows.append(row + [f"{result.share_of(part):.1%}" for part in _PARTS])
    return Table("Training time by number of ranks", columns, rows)


def efficiency(compared: Mapping[int, TrainResult], size: int) -> float:
    """Return the speed at `size` ranks over the ideal: the smallest world size's speed per rank, times `size`."""
    smallest = min(compared)
    ideal = compared[smallest].samples_per_s / smallest * size
    return compared[size].samples_per_s / ideal


def weight_difference(results: Sequence[TrainResult]) -> float:
    """Return the largest absolute difference between the weights of trainings that should be the same."""
    first = results[0].state_dict
    return max(float((r.state_dict[n].double() - w.double()).abs().max()) for r in results for n, w in first.items())


def _curve(title: str, y_label: str, series: Mapping[str, Sequence[float]]) -> Curves:
    points = {name: [(float(i + 1), value) for i, value in enumerate(values)] for name, values in series.items()}
    return Curves(title, "epoch", y_label, points)
