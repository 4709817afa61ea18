"""Watches the workers' memory during a run: what each took at most, and what all of them had on disk when.

Called by the runner. The scheduler samples; what comes back is a few numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distributed import Client

from jobs.artifacts import WorkerRecord
from jobs.report.sections import Curves, Note, Section, Table
from jobs.workers import begin_memory, end_memory

_EVERY_S = 0.5
_MOST_POINTS = 200
_MOST_ROWS = 50
_MIB = 2**20
# What the scheduler can tell, and how the report calls it.
_MEASURES = {"process": "in memory", "spilled": "on disk"}


class MemoryWatch:
    """Begins to watch when it is made; a run that fails need not end it, the scheduler forgets it with its client.

    Parameters
    ----------
    client : distributed.Client

    Attributes
    ----------
    n_gone : int
        Workers that were there at the begin and not at the end: told to leave, lost, or restarted for want of memory.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._begun = begin_memory(client)
        # No context manager of Dask's: left open, it would ask a scheduler that is gone when Python clears up.
        start = client.scheduler.memory_sampler_start
        self._keys = {
            name: client.sync(start, client=client.id, measure=measure, interval=_EVERY_S)
            for measure, name in _MEASURES.items()
        }
        self._samples: dict[str, Sequence[Any]] = {}
        self._workers: list[WorkerRecord] = []
        self.n_gone = 0

    def end(self) -> list[WorkerRecord]:
        """Stop watching; return what is known of each worker that is still there, those that took most first."""
        stop = self._client.scheduler.memory_sampler_stop
        self._samples = {name: self._client.sync(stop, key=key) for name, key in self._keys.items()}
        found = end_memory(self._client, self._begun)
        records = [WorkerRecord(address=address, **memory._asdict()) for address, memory in found.items()]
        self.n_gone = len(self._begun.keys() - found.keys())
        self._workers = sorted(records, key=lambda worker: (-worker.peak, worker.address))
        return self._workers

    def sections(self) -> list[Section]:
        """Return what the report shows: a table of the workers, and a curve of all of them together."""
        rows: list[list[str | int | float]] = [
            [w.address, _mib(w.limit) or "none", _mib(w.peak), _mib(w.n_written), _mib(w.n_read)]
            for w in self._workers[:_MOST_ROWS]
        ]
        columns = ["worker", "limit, MiB", "peak, MiB", "written to disk, MiB", "read back, MiB"]
        sections: list[Section] = [Table("Memory of the workers", columns, rows)]
        if self.n_gone:
            text = f"Workers that left before the end: {self.n_gone}. Their figures went with them."
            sections.append(Note("Workers that left", text))
        series = {name: _thinned(samples) for name, samples in self._samples.items()}
        if all(len(points) > 1 for points in series.values()):
            sections.append(Curves("Memory of all workers", "seconds since the start", "MiB", series))
        return sections


def _mib(n_bytes: float) -> int:
    return round(n_bytes / _MIB)


def _thinned(samples: Sequence[Any]) -> list[tuple[float, float]]:
    """Return (seconds, MiB) of samples (moment, bytes); of many, the largest of each few."""
    step = -(-len(samples) // _MOST_POINTS) or 1
    largest = [max(samples[at : at + step], key=lambda sample: sample[1]) for at in range(0, len(samples), step)]
    return [(moment - samples[0][0], n_bytes / _MIB) for moment, n_bytes in largest]
