"""Rows of a table for the Trainer, as estimators have them: in memory, or in blocks that lie on Dask workers.

A rank needs rows from everywhere in each step, so blocks are first brought to its machine, one at a time, and written
to a file there: what a rank holds in memory is one block, however long the table is. Called by mlp_estimators.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from distributed import get_worker
from distributed.utils import sync
from distributed.utils_comm import gather_from_workers
from numpy.typing import NDArray
from torch import Tensor

from jobs.errors import WorkersLostError

Float32s = NDArray[np.float32]
# Targets of a block as they were given → class numbers, or standardised numbers (m,).
Encode = Callable[[Any], Float32s]

# Dask may move a block just when it is asked for.
_TRIES = 3


@dataclass(frozen=True)
class Rows:
    """Rows that can be read here: inputs (n, p) and targets (n,), float32."""

    inputs: Float32s
    targets: Float32s

    @property
    def n_samples(self) -> int:
        """Rows."""
        return len(self.targets)

    def open(self) -> Rows:
        """Return the rows themselves."""
        return self

    def batch(self, indices: NDArray[np.int64], epoch: int) -> tuple[Tensor, Tensor]:
        """Return inputs (k, p) and targets (k,); the same in every epoch."""
        return torch.from_numpy(self.inputs[indices]), torch.from_numpy(self.targets[indices])


@dataclass(frozen=True)
class RowsInFile:
    """Rows in a file of this machine: inputs (n, p), then targets (n,), float32."""

    path: str
    n_samples: int
    n_columns: int

    def open(self) -> Rows:
        """Map the file."""
        n, p = self.n_samples, self.n_columns
        offset = n * p * np.dtype(np.float32).itemsize
        return Rows(
            np.memmap(self.path, np.float32, "r", shape=(n, p)),
            np.memmap(self.path, np.float32, "r", offset=offset, shape=(n,)),
        )


@dataclass(frozen=True)
class RowsOnWorkers:
    """Blocks that lie on workers, by their keys; whoever makes this holds the futures until the fit has ended.

    Attributes
    ----------
    keys
        Of the block of inputs and of its targets.
    starts
        Number of each block's first row.
    n_samples, n_columns
        Size of the table.
    encode
        What makes numbers of a block's targets.
    timeout_s
        Longest wait for a block.
    """

    keys: tuple[tuple[str, str], ...]
    starts: tuple[int, ...]
    n_samples: int
    n_columns: int
    encode: Encode
    timeout_s: float

    @contextmanager
    def fetched(self) -> Iterator[RowsInFile]:
        """Bring all blocks to this worker's machine, for as long as they are used.

        The file is written, not mapped, while it grows: a full disk is then an error, and not the worker's death. One
        whose worker is killed is removed with the worker's folder.

        Raises
        ------
        WorkersLostError
            When a block is on no worker any more.
        """
        n, p, size = self.n_samples, self.n_columns, np.dtype(np.float32).itemsize
        with tempfile.NamedTemporaryFile(dir=get_worker().local_directory, prefix="rows-") as file:
            # Ranks start at different blocks, so that not all ask the same worker.
            first = os.getpid() % len(self.keys)
            for block in [*range(first, len(self.keys)), *range(first)]:
                start = self.starts[block]
                for key, encode, at in zip(
                    self.keys[block], (as_float32, self.encode), (start * p, n * p + start), strict=True
                ):
                    file.seek(at * size)
                    file.write(np.ascontiguousarray(encode(self._fetched(key))).data)
            file.flush()
            yield RowsInFile(file.name, n, p)

    def _fetched(self, key: str) -> Any:
        worker = get_worker()
        return sync(worker.loop, _from_holder, worker, key, callback_timeout=self.timeout_s)


async def _from_holder(worker: Any, key: str) -> Any:
    """Read a block from the worker that holds it, past what Dask keeps here of other workers' results.

    No task has to run for it: a rank that waits here, on a worker with one thread, cannot wait for itself.
    """
    for _ in range(_TRIES):
        if key in worker.data:
            return worker.data[key]
        holders = await worker.scheduler.who_has(keys=[key])
        found, *_ = await gather_from_workers(holders, rpc=worker.rpc)
        if key in found:
            return found[key]
    raise WorkersLostError(f"{key}: no worker holds this block of rows any more, its worker was lost; fit again")


def as_float32(rows: Any) -> Float32s:
    """Return rows as float32; what is too large for it becomes infinite."""
    with np.errstate(over="ignore"):
        return np.asarray(rows, dtype=np.float32)
