"""Runs functions over blocks of rows, in this process or on Dask workers, and adds up what they return.

A block is any value that holds rows: a sparse matrix, an array of documents or labels. An estimator gets either
blocks themselves or futures of blocks that live on workers; `runner` says which, and both kinds do the same work, so
that an estimator is written once. Called by the estimators of text: tfidf, linear_classifier, nmf, keyphrases.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import dask
from dask.base import is_dask_collection
from dask.sizeof import sizeof
from distributed import Future, default_client, wait

from jobs import sharing

# Partial sums that one task adds up: what a worker receives at a time stays small, and the tree stays shallow.
_FAN_IN = 8
# Partial sums that are added up here: a pass over the data is one round trip shorter for it.
_FEW = 4
# Of a worker's memory, what the blocks of all its tasks may take: as much again is copies, and the rest is others'.
_SHARE_OF_MEMORY = 0.1
# Passes whose partial sums, if small, stay on the workers for a while. Letting go of them is a message, and what
# follows a message within 10 ms (of the client) or 5 ms (of the scheduler) waits: as a rule that is the next pass.
_HELD = 32


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

    def few(self, combine: Callable[[Any, Any], Any], parts: Sequence[Any]) -> list[Any]:
        """Combine the parts from left to right, into one."""
        return [reduce(combine, parts)]

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
        self._held: list[Any] = []

    def share(self, value: Any) -> Any:
        """Make a value known to all calls: a small one goes with each, a large one is fetched by those that need it.

        Either way the scheduler can have it again when a worker is lost, as it could not of scattered data.
        """
        return sharing.share(self.client, value)

    def map(self, function: Callable[..., Any], *columns: Sequence[Any], **shared: Any) -> list[Any]:
        """Submit ``function(*row, **shared)`` for each row of the columns, all in one message."""
        if len({len(column) for column in columns}) != 1:
            raise ValueError(f"columns of {', '.join(str(len(column)) for column in columns)} blocks; cut them alike")
        return sharing.submit_each(self.client, function, columns, shared)

    def combined(self, combine: Callable[[Any, Any], Any], parts: Sequence[Any]) -> Any:
        """Combine futures in a tree on the workers, neighbours first; the result stays there."""
        return self._reduced(combine, parts, 1)[0]

    def few(self, combine: Callable[[Any, Any], Any], parts: Sequence[Any]) -> list[Any]:
        """Combine futures in a tree on the workers until a few are left, for whoever wants the sum to combine."""
        return self._reduced(combine, parts, _FEW)

    def total(self, combine: Callable[[Any, Any], Any], parts: Sequence[Any]) -> Any:
        """Combine futures in a tree on the workers; fetch the last few, and combine them here."""
        few = self.few(combine, parts)
        found = reduce(combine, self.client.gather(few))
        if sizeof(found) > sharing.SMALL or len(self._held) == _HELD:
            self._held.clear()
        else:
            self._held.append((parts, few))
        return found

    def _reduced(self, combine: Callable[[Any, Any], Any], parts: Sequence[Any], n_left: int) -> list[Any]:
        parts = list(parts)
        while len(parts) > n_left:
            parts = [
                self.client.submit(_combined, combine, parts[at : at + _FAN_IN], pure=False)
                for at in range(0, len(parts), _FAN_IN)
            ]
            sharing.note(parts)
        return parts

    def grouped(self, *columns: Sequence[Any]) -> list[list[list[Any]]]:
        """Group rows by the worker thread that holds the block of the first column.

        One task a thread then makes one partial sum, however small the blocks are: what travels in an iteration of an
        optimiser is the number of threads times the size of the model. Where blocks have gone to a worker's disk, or
        would have to, there are more groups: a task's blocks are all in memory at once.
        """
        if any(future.status != "finished" for future in columns[0]):
            wait(columns[0])
        keys = [future.key for future in columns[0]]
        holders, n_bytes, workers = self.client.sync(self._placed, keys)
        limits = [worker["memory_limit"] for worker in workers.values() if worker["memory_limit"]]
        most = min(limits, default=0) * _SHARE_OF_MEMORY
        by_worker: dict[str, list[int]] = {}
        for row, key in enumerate(keys):
            worker = min(holders.get(key, ()), default="")
            by_worker.setdefault(worker, []).append(row)
        groups: list[list[int]] = []
        for worker, rows in by_worker.items():
            n_threads = workers[worker]["nthreads"] if worker in workers else 1
            n_bytes_here = sum(n_bytes.get(keys[row], 0) for row in rows)
            n_groups = n_threads * max(1, math.ceil(n_bytes_here / most) if most else 1)
            groups += [rows[first::n_groups] for first in range(min(len(rows), n_groups))]
        return [[[column[row] for row in rows] for rows in groups] for column in columns]

    async def _placed(self, keys: list[str]) -> tuple[Any, Any, Any]:
        """Ask the scheduler, all at once, who holds the keys, their bytes, and what workers there are."""
        scheduler = self.client.scheduler
        holders, n_bytes, identity = await asyncio.gather(
            scheduler.who_has(keys=keys), scheduler.nbytes(keys=keys, summary=False), scheduler.identity(n_workers=-1)
        )
        return holders, n_bytes, identity["workers"]

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
            futures = list(default_client().compute(blocks))
        except ValueError:
            return list(dask.compute(*blocks))
        sharing.note(futures)
        return futures
    return blocks


def is_cut(X: Any) -> bool:
    """Return whether X is a list of blocks of rows, here or on workers; a list of rows is a table."""
    if not isinstance(X, (list, tuple)) or not len(X):
        return False
    return isinstance(X[0], Future) or is_dask_collection(X[0]) or getattr(X[0], "ndim", 0) == 2


def add(left: Any, right: Any) -> Any:
    """Add numbers, arrays, or tuples of them, part by part."""
    if isinstance(left, tuple):
        return tuple(add(*pair) for pair in zip(left, right, strict=True))
    return left + right


def _combined(combine: Callable[[Any, Any], Any], parts: list[Any]) -> Any:
    return reduce(combine, parts)
