"""Runs functions over blocks of rows, in this process or on Dask workers, and adds up what they return.

A block is any value that holds rows: a sparse matrix, an array of documents or labels. An estimator gets either
blocks themselves or futures of blocks that live on workers; `runner` says which, and both kinds do the same work, so
that an estimator is written once. Called by the estimators of text: tfidf, linear_classifier, nmf, keyphrases.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import dask
from dask.base import is_dask_collection
from distributed import Future, default_client, wait

# Partial sums that one task adds up: what a worker receives at a time stays small, and the tree stays shallow.
_FAN_IN = 8


class InProcess:
    """Runs on blocks that are plain values."""

    def share(self, value: Any) -> Any:
        """Make a value known to all calls."""
        return value

    def map(self, function: Callable[..., Any], *columns: Sequence[Any], **shared: Any) -> list[Any]:
        """Call ``function(*row, **shared)`` for each row of the columns."""
        return [function(*row, **shared) for row in zip(*columns, strict=True)]

    def combined(self, combine: Callable[[Any, Any], Any], parts: Sequence[Any]) -> Any:
        """Combine the parts from left to right."""
        return reduce(combine, parts)

    def total(self, combine: Callable[[Any, Any], Any], parts: Sequence[Any]) -> Any:
        """Combine the parts from left to right."""
        return reduce(combine, parts)

    def grouped(self, *columns: Sequence[Any]) -> list[list[list[Any]]]:
        """Put all blocks into one group."""
        return [[list(column)] for column in columns]

    def gather(self, parts: Sequence[Any]) -> list[Any]:
        """Return the parts themselves."""
        return list(parts)


class OnWorkers:
    """Runs on futures, where they are."""

    def __init__(self, client: Any) -> None:
        self.client = client

    def share(self, value: Any) -> Any:
        """Send a value to a worker once; others fetch it from there."""
        return self.client.scatter(value, hash=False)

    def map(self, function: Callable[..., Any], *columns: Sequence[Any], **shared: Any) -> list[Any]:
        """Submit ``function(*row, **shared)`` for each row of the columns."""
        return [self.client.submit(function, *row, **shared, pure=False) for row in zip(*columns, strict=True)]

    def combined(self, combine: Callable[[Any, Any], Any], parts: Sequence[Any]) -> Any:
        """Combine futures in a tree on the workers, neighbours first; the result stays there."""
        parts = list(parts)
        while len(parts) > 1:
            parts = [
                self.client.submit(_combined, combine, parts[at : at + _FAN_IN], pure=False)
                for at in range(0, len(parts), _FAN_IN)
            ]
        return parts[0]

    def total(self, combine: Callable[[Any, Any], Any], parts: Sequence[Any]) -> Any:
        """Combine futures in a tree on the workers, and fetch the result."""
        return self.combined(combine, parts).result()

    def grouped(self, *columns: Sequence[Any]) -> list[list[list[Any]]]:
        """Group rows by the worker thread that holds the block of the first column.

        One task a thread then makes one partial sum, however small the blocks are: what travels in an iteration of an
        optimiser is the number of threads times the size of the model.
        """
        wait(columns)
        holders = self.client.who_has(columns[0])
        threads = self.client.nthreads()
        by_worker: dict[str, list[int]] = {}
        for row, future in enumerate(columns[0]):
            worker = min(holders.get(future.key, ()), default="")
            by_worker.setdefault(worker, []).append(row)
        groups = [
            rows[first :: threads.get(worker, 1)]
            for worker, rows in by_worker.items()
            for first in range(min(len(rows), threads.get(worker, 1)))
        ]
        return [[[column[row] for row in rows] for rows in groups] for column in columns]

    def gather(self, parts: Sequence[Any]) -> list[Any]:
        """Fetch small results."""
        return list(self.client.gather(list(parts)))


Runner = InProcess | OnWorkers


def runner(blocks: Sequence[Any]) -> Runner:
    """Return what runs functions over these blocks."""
    return OnWorkers(blocks[0].client) if isinstance(blocks[0], Future) else InProcess()


def as_blocks(data: Any) -> list[Any]:
    """Return the list of blocks that `data` is, or the list of it alone.

    Delayed blocks become futures of the current client, or are computed here where there is none.
    """
    is_list = isinstance(data, (list, tuple)) and len(data) > 0 and not isinstance(data[0], (str, bytes, int, float))
    blocks = list(data) if is_list else [data]
    if is_dask_collection(blocks[0]):
        try:
            return list(default_client().compute(blocks))
        except ValueError:
            return list(dask.compute(*blocks))
    return blocks


def add(left: Any, right: Any) -> Any:
    """Add numbers, arrays, or tuples of them, part by part."""
    if isinstance(left, tuple):
        return tuple(add(*pair) for pair in zip(left, right, strict=True))
    return left + right


def _combined(combine: Callable[[Any, Any], Any], parts: list[Any]) -> Any:
    return reduce(combine, parts)
