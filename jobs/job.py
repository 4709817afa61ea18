"""What a pipeline gets: its spec, the Dask client, and ways to run, report and write. Made by the runner."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from distributed import Client, Future, as_completed
from distributed.client import FutureCancelledError
from distributed.comm import CommClosedError
from distributed.scheduler import KilledWorker, NoValidWorkerError, NoWorkerError

from jobs import sharing, storage
from jobs.artifacts import Attempt, InputRecord, StageRecord, put_table, remove_leftovers
from jobs.deaths import ended_for_memory, explain, no_room
from jobs.errors import DaskyardError, WorkersLostError
from jobs.listener import Listener
from jobs.report.sections import Section
from jobs.spec import JobSpec
from jobs.trial import Trial
from jobs.workers import workers_of

T = TypeVar("T")
# For each key that it cancels, the scheduler releases all that came in the same call: their number squared.
_N_CANCELLED = 100


@dataclass(frozen=True)
class Evaluation:
    """What a pipeline found: `headline` names the metric that stands for the run."""

    headline: str
    metrics: Mapping[str, float | int | str]
    sections: Sequence[Section] = field(default_factory=tuple)


class Pipeline(Protocol):
    """A pipeline's module: five functions, called in this order, each a stage."""

    def load(self, job: Job) -> Any:
        """Find and check the input."""

    def prepare(self, job: Job, loaded: Any) -> Any:
        """Clean, impute, encode, split."""

    def fit(self, job: Job, prepared: Any) -> Any:
        """Fit the model."""

    def evaluate(self, job: Job, prepared: Any, model: Any) -> Evaluation:
        """Measure the model on what it has not seen."""

    def write(self, job: Job, prepared: Any, model: Any, evaluation: Evaluation) -> None:
        """Write model and predictions."""


class Job:
    """One attempt at a job, as its pipeline sees it; with a `trial`, one of a search, which touches no test rows."""

    def __init__(
        self, spec: JobSpec, client: Client, attempt: Attempt, listener: Listener, trial: Trial | None = None
    ) -> None:
        self.spec = spec
        self.trial = trial
        self.prepared_in = storage.join(spec.output, "_prepared")
        self.params: Any = spec.params
        self.client = client
        self.attempt = attempt
        self.n_rows = 0
        self.inputs: dict[str, InputRecord] = {}
        self.stages: list[StageRecord] = []
        self.log = logging.getLogger(f"daskyard.{spec.pipeline}")
        self._listener = listener
        self._stage = ""

    @property
    def n_workers(self) -> int:
        """Workers that the scheduler knows now."""
        return len(workers_of(self.client))

    @contextmanager
    def stage(self, name: str, index: int, n_stages: int) -> Iterator[None]:
        """Time a stage and tell the listener. For the runner."""
        self._stage = name
        self._listener.stage_started(name, index, n_stages)
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self.stages.append(StageRecord(name=name, seconds=seconds))
        self._listener.stage_ended(name, seconds)

    def progress(self, done: float, total: float, unit: str) -> None:
        """Tell how much of the current stage is done."""
        self._listener.progress(self._stage, done, total, unit)

    def tell_metrics(self, metrics: Mapping[str, float | int | str]) -> None:
        """Tell what was measured. For the runner."""
        self._listener.metrics(metrics)

    def message(self, text: str) -> None:
        """Tell one line to the person who watches."""
        self._listener.message(text)

    def map(
        self,
        function: Callable[..., T],
        items: Iterable[Any],
        *args: Any,
        unit: str = "partitions",
        **options: Any,
    ) -> list[T]:
        """Run ``function(item, *args)`` on the workers for each item; return the (small) results in order.

        `options` go to ``Client.submit``, such as ``resources={"GPU": 1}``.
        """
        submit, items = self.client.submit, list(items)
        shared = [self.share(arg, len(items)) for arg in args]
        return self.wait([submit(function, item, *shared, pure=False, **options) for item in items], unit)

    def share(self, value: Any, n_tasks: int) -> Any:
        """Return what to give to `n_tasks` tasks in place of a value of any size: itself, or a future of it."""
        return sharing.share(self.client, value, n_tasks)

    def wait(self, futures: Sequence[Future], unit: str = "partitions") -> list[Any]:
        """Wait for futures, report progress, and return their (small) results in order.

        Raises
        ------
        WorkersLostError
            When the scheduler or too many workers went away.
        """
        self.progress(0, len(futures), unit)
        try:
            for n_done, future in enumerate(as_completed(futures), start=1):
                if future.status in ("error", "cancelled", "lost"):
                    future.result()
                self.progress(n_done, len(futures), unit)
            return list(self.client.gather(list(futures)))
        except BaseException as error:
            lost = workers_lost(error, self.client)  # which asks about a task as long as there is one
            for begin in range(0, len(futures), _N_CANCELLED):
                self.client.cancel(list(futures[begin : begin + _N_CANCELLED]))
            if lost is not None:
                raise lost from error
            raise

    def record_input(self, files: Iterable[storage.StoredFile]) -> None:
        """Note which input objects were read; the manifest lists them."""
        for file in files:
            self.inputs[file.url] = InputRecord(url=file.url, size=file.size, etag=file.etag)

    def prepared_url(self, key: str) -> str:
        """Folder for prepared data that later runs with the same `key` can use again."""
        return storage.join(self.prepared_in, key)

    def artifact_url(self, name: str) -> str:
        """Where a worker writes the file `name` of this attempt; register it with `add_file`."""
        return self.attempt.file_url(name)

    def shared_url(self, name: str) -> str:
        """Where attempts at this run leave what the next one can use, until one of them is committed."""
        return self.attempt.shared_url(name)

    def add_file(self, name: str, size: int, sha256: str) -> None:
        """Register a file that a worker wrote."""
        self.attempt.add_file(name, size, sha256)

    def remove(self, url: str) -> None:
        """Remove what the run needs no longer; where storage does not let it, that is told, and it stays."""
        remove_leftovers(self.attempt.run_url, "this attempt", lambda: [url])

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a small file of the run."""
        self.attempt.write_bytes(name, data)

    def write_json(self, name: str, content: Any) -> None:
        """Write a small JSON file of the run."""
        self.write_bytes(name, json.dumps(content, indent=2, allow_nan=False).encode())

    def write_parquet(self, name: str, table: Any) -> None:
        """Write a small Parquet file of the run from a pandas DataFrame or an Arrow table."""
        import pyarrow

        if not isinstance(table, pyarrow.Table):
            table = pyarrow.Table.from_pandas(table, preserve_index=False)
        self.attempt.add_file(name, *put_table(self.artifact_url(name), table))


def workers_lost(error: BaseException, client: Client | None = None) -> DaskyardError | None:
    """Return the error of ours that one of Dask amounts to, or None.

    With a `client`, the scheduler is asked why workers died, and which input they read.
    """
    if client is not None and isinstance(error, (KilledWorker, NoWorkerError)):
        known: DaskyardError | None = no_room(client)
        if known is None and isinstance(error, NoWorkerError):
            known = ended_for_memory(client)
        if known is not None:
            return known
    if isinstance(error, KilledWorker):
        if client is not None:
            return explain(client, error)
        return WorkersLostError(
            f"workers: {error.allowed_failures + 1} died while they ran {error.task}; "
            "look into their logs, then run the job again"
        )
    if isinstance(error, (NoWorkerError, NoValidWorkerError)):
        return WorkersLostError("workers: none left that can run the job's tasks; start workers, then run it again")
    if isinstance(error, FutureCancelledError) and error.reason != "scheduler-connection-lost":
        return WorkersLostError(
            f"workers: one was lost with data that no task can make again ({error.reason}); run the job again"
        )
    if isinstance(error, (FutureCancelledError, CommClosedError, asyncio.CancelledError)):
        return WorkersLostError(f"scheduler: connection lost ({type(error).__name__}); run the job again")
    return None
