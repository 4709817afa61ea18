"""What the text_mining pipeline runs on the workers: pure functions of one block of documents."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jobs.artifacts import put_table
from jobs.errors import InputError
from jobs.randomness import uniform
from jobs.readers.document_formats import DocumentBlock
from jobs.trial import Trial, roles

Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]

# Which draw of a row's random numbers decides whether it is a test row.
_SPLIT_DRAW = 1


def count_rows(block: DocumentBlock) -> Counter[str]:
    """Count rows, documents, and rows dropped by cause."""
    return Counter(
        rows=block.n_rows,
        documents=len(block.texts),
        without_text=block.n_without_text,
        without_label=block.n_without_label,
    )


def numbered(block: DocumentBlock, first_row: int) -> DocumentBlock:
    """Count rows from the start of the input in place of the start of the part."""
    return DocumentBlock(
        block.texts,
        block.labels,
        block.rows + first_row,
        block.n_rows,
        block.n_without_text,
        block.n_without_label,
    )


def half(block: DocumentBlock, seed: int, fraction: float, trial: Trial | None, is_measured: bool) -> DocumentBlock:
    """Return the documents of a block that are measured on, or those that are trained on.

    A document's fate depends on seed and row alone. With a `fraction` of 0 no document is a test document.
    """
    is_test = uniform(seed, _SPLIT_DRAW, block.rows) < fraction
    is_chosen = roles(is_test, seed, block.rows, trial)[is_measured]
    mask = pa.array(is_chosen)
    return DocumentBlock(
        texts=block.texts.filter(mask),
        labels=None if block.labels is None else block.labels.filter(mask),
        rows=block.rows[is_chosen],
        n_rows=int(is_chosen.sum()),
        n_without_text=0,
        n_without_label=0,
    )


def count_classes(block: DocumentBlock, most: int, column: str) -> Counter[str]:
    """Count the documents of each class.

    Raises
    ------
    InputError
        When there are more than `most` classes in the block alone.
    """
    counts = pc.value_counts(block.labels)
    if len(counts) > most:
        raise InputError(
            f"{column!r}: more than {most} classes, such as {counts[0]['values'].as_py()!r}; "
            "set params.label_column to another"
        )
    return Counter({entry["values"]: entry["counts"] for entry in counts.to_pylist()})


def texts(block: DocumentBlock) -> pa.Array:
    """Return the documents alone."""
    return block.texts


def rows(block: DocumentBlock) -> Numbers:
    """Return the row of the input that each document is."""
    return block.rows


def targets(block: DocumentBlock, classes: list[str]) -> Numbers:
    """Return the class of each document, as its place among `classes`."""
    return np.asarray(pc.index_in(block.labels, pa.array(classes, pa.string())), np.int64)


def n_rows(weights: Any) -> int:
    """Return the number of rows of a matrix: to wait for it."""
    return int(weights.shape[0])


def strongest(shares: Floats) -> Numbers:
    """Return the topic of which each document has most."""
    return shares.argmax(axis=1)


def column_sums(shares: Floats) -> Floats:
    """Return how much of each topic the documents of a block have."""
    return np.asarray(shares.sum(axis=0))


def confusion(predicted: Numbers, true: Numbers, n_classes: int) -> Numbers:
    """Return counts of (true, predicted), (n_classes, n_classes)."""
    return np.bincount(true * n_classes + predicted, minlength=n_classes**2).reshape(n_classes, n_classes)


def predictions(
    url: str, row_numbers: Numbers, true: Numbers, scores: Floats, classes: list[str], fitted: Numbers
) -> tuple[int, str]:
    """Write row, label, predicted class and its score; return bytes and SHA-256."""
    if scores.ndim == 1:
        scores = np.column_stack([-scores, scores])
    best = scores.argmax(axis=1)
    names = pa.array(classes, pa.string())
    table = pa.table(
        {
            "row": row_numbers,
            "label": names.take(pa.array(true)),
            "predicted": names.take(pa.array(np.asarray(fitted)[best])),
            "score": scores[np.arange(len(best)), best],
        }
    )
    return put_table(url, table)


def document_topics(url: str, row_numbers: Numbers, shares: Floats) -> tuple[int, str]:
    """Write row, the topic of which the document has most, and its share of all topics in the document."""
    best = shares.argmax(axis=1)
    total = shares.sum(axis=1)
    share = np.divide(shares[np.arange(len(best)), best], total, out=np.zeros(len(best)), where=total > 0)
    return put_table(url, pa.table({"row": row_numbers, "topic": best, "share": share}))
