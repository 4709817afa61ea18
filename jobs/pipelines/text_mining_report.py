"""What the text_mining pipeline tells about its result: metrics, sections of the report, tables of terms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs.estimators.keyphrases import Keyphrase
from jobs.report.sections import Matrix, Note, Section, Table

# A page shows a confusion matrix up to this size; the metrics are of all classes.
_MOST_SHOWN = 40


@dataclass(frozen=True)
class Group:
    """A class or a topic: its name, top terms with their weights, and keyphrases."""

    name: str
    terms: list[tuple[str, float]]
    phrases: list[Keyphrase]


def class_metrics(confusion: NDArray[np.int64]) -> dict[str, float | int]:
    """Return accuracy and macro F1 of a confusion matrix, (n_classes, n_classes), rows true.

    F1 is averaged over the classes that occur in the test set or were predicted there.
    """
    _, _, f1, occurs = _by_class(confusion)
    return {
        "accuracy": float(np.trace(confusion) / confusion.sum()),
        "macro_f1": float(f1[occurs].mean()),
        "n_test_documents": int(confusion.sum()),
        "n_classes": len(confusion),
    }


def class_sections(classes: Sequence[str], confusion: NDArray[np.int64]) -> list[Section]:
    """Return the table of precision, recall and F1 by class, and the confusion matrix."""
    precision, recall, f1, _ = _by_class(confusion)
    rows: list[list[str | int | float]] = [
        [name, float(precision[at]), float(recall[at]), float(f1[at]), int(confusion[at].sum())]
        for at, name in enumerate(classes)
    ]
    table = Table("Classes", ["class", "precision", "recall", "F1", "test documents"], rows)
    if len(classes) > _MOST_SHOWN:
        return [table, Note("Confusion", f"{len(classes)} classes: too many to show as a matrix.")]
    return [table, Matrix("Confusion", list(classes), confusion.tolist())]


def group_table(title: str, kind: str, groups: Sequence[Group], coherence: Sequence[float] = ()) -> Table:
    """Return the table of top terms and keyphrases of classes or topics."""
    rows: list[list[str | int | float]] = [
        [
            group.name,
            ", ".join(term for term, _ in group.terms),
            ", ".join(phrase.phrase for phrase in group.phrases),
            *coherence[at : at + 1],
        ]
        for at, group in enumerate(groups)
    ]
    return Table(title, [kind, "terms", "keyphrases", *(["coherence"] if coherence else [])], rows)


def title(group: Group) -> str:
    """Return a short name of a topic: its number and first terms."""
    return f"{group.name}: " + " ".join(term for term, _ in group.terms[:3])


def term_rows(kind: str, groups: Sequence[Group]) -> pa.Table:
    """Return the terms of all groups, one a row."""
    rows = [
        {kind: group.name, "rank": rank, "term": term, "weight": weight}
        for group in groups
        for rank, (term, weight) in enumerate(group.terms, start=1)
    ]
    fields = [(kind, pa.string()), ("rank", pa.int64()), ("term", pa.string()), ("weight", pa.float64())]
    return pa.Table.from_pylist(rows, pa.schema(fields))


def phrase_rows(kind: str, groups: Sequence[Group]) -> pa.Table:
    """Return the keyphrases of all groups, one a row."""
    rows = [
        {
            kind: group.name,
            "rank": rank,
            "phrase": phrase.phrase,
            "score": phrase.score,
            "n_documents": phrase.n_documents,
        }
        for group in groups
        for rank, phrase in enumerate(group.phrases, start=1)
    ]
    fields = [(kind, pa.string()), ("rank", pa.int64()), ("phrase", pa.string())]
    return pa.Table.from_pylist(rows, pa.schema([*fields, ("score", pa.float64()), ("n_documents", pa.int64())]))


def _by_class(confusion: NDArray[np.int64]) -> tuple[NDArray[np.float64], ...]:
    """Return precision, recall, F1, and whether the class occurs; where a ratio has no meaning it is 0."""
    right, true, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    precision = right / np.maximum(predicted, 1)
    recall = right / np.maximum(true, 1)
    return precision, recall, 2 * right / np.maximum(true + predicted, 1), true + predicted > 0
