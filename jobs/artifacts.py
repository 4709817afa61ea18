"""Runs commit exactly once: files of one attempt, then a manifest that only the first attempt can create.

Layout of a run: ``<output>/<run id>/attempts/<attempt>/…`` holds files, ``<output>/<run id>/manifest.json`` says which
attempt won and lists its files. A folder without a manifest is no result, whatever lies in it.
"""

from __future__ import annotations

import hashlib
import io
import uuid
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from jobs import storage
from jobs.errors import OutputError, StorageMissingError

MANIFEST = "manifest.json"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class FileRecord(_Record):
    """A file of a run: its name, where it is, bytes, SHA-256 in hex."""

    name: str
    url: str
    size: int
    sha256: str


class InputRecord(_Record):
    """An input object as it was when the run read it."""

    url: str
    size: int
    etag: str


class StageRecord(_Record):
    """A stage and how long it took."""

    name: str
    seconds: float


class WorkerRecord(_Record):
    """A worker that was there at the end: bytes it may take, took at most, wrote to its disk and read back."""

    address: str
    limit: int
    peak: int
    n_written: int
    n_read: int


class TrialRecord(_Record):
    """A trial of a search: its rung and its candidate's number, what it got, what it reached, or why it failed."""

    rung: int
    number: int
    params: dict[str, Any]
    resource: float
    metric: str
    value: float | None
    metrics: dict[str, float]
    seconds: float
    error: str | None


class TuningRecord(_Record):
    """A search over params: the metric it went by, the params that were taken, what they reached on validation rows.

    `n_reused` trials had been made by an earlier try at the run.
    """

    metric: str
    is_more_better: bool
    params: dict[str, Any]
    value: float
    n_reused: int
    trials: list[TrialRecord]


class Manifest(_Record):
    """What a committed run is: the only thing a reader has to trust."""

    run_id: str
    pipeline: str
    spec: dict[str, Any]
    attempt: str
    headline: str
    metrics: dict[str, float | int | str]
    n_rows: int
    n_workers: int
    workers: list[WorkerRecord] = []
    n_workers_gone: int = 0
    tuning: TuningRecord | None = None
    seed: int
    seconds: float
    started_at: datetime
    committed_at: datetime
    stages: list[StageRecord]
    inputs: list[InputRecord]
    files: list[FileRecord]
    package_version: str
    git_commit: str | None
    versions: dict[str, str]


def read_manifest(run_url: str) -> Manifest:
    """Read the manifest of a committed run.

    Raises
    ------
    StorageMissingError
        When nothing was committed there.
    OutputError
        When what is there is no manifest.
    """
    url = storage.join(run_url, MANIFEST)
    try:
        content = storage.read_bytes(url)
    except StorageMissingError as error:
        raise StorageMissingError(f"{run_url}: no committed run there; correct the URL or run the job") from error
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        raise OutputError(f"{url}: not a manifest of Daskyard; write to another output") from error


def put(url: str, data: bytes) -> tuple[int, str]:
    """Write a file; return its size and SHA-256, as `Attempt.add_file` wants them. Workers call it too."""
    storage.write_bytes(url, data)
    return len(data), hashlib.sha256(data).hexdigest()


def put_table(url: str, table: Any) -> tuple[int, str]:
    """Write an Arrow table as Parquet; return the file's size and SHA-256."""
    import pyarrow.parquet

    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer)
    return put(url, buffer.getvalue())


class Attempt:
    """One attempt at a run: it owns a folder of its own until it wins or is discarded."""

    def __init__(self, run_url: str) -> None:
        self.run_url = run_url
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        self.id = f"{stamp}-{uuid.uuid4().hex[:12]}"
        self.url = storage.join(run_url, "attempts", self.id)
        self._files: dict[str, FileRecord] = {}
        self._shared: set[str] = set()
        self._is_committed = False

    @property
    def files(self) -> list[FileRecord]:
        """The files so far, by name."""
        return [self._files[name] for name in sorted(self._files)]

    def file_url(self, name: str) -> str:
        """Where the file `name` of this attempt goes."""
        return storage.join(self.url, name)

    def shared_url(self, name: str) -> str:
        """Where attempts at this run leave what the next one can use; the one that wins removes it."""
        url = storage.join(self.run_url, name)
        self._shared.add(url)
        return url

    def add_file(self, name: str, size: int, sha256: str) -> None:
        """Register a file that somebody else, such as a worker, wrote to `file_url(name)`."""
        self._files[name] = FileRecord(name=name, url=self.file_url(name), size=size, sha256=sha256)

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file and register it."""
        self.add_file(name, *put(self.file_url(name), data))

    def commit(self, manifest: Manifest) -> Manifest:
        """Create the manifest; return the one that stands then, ours or that of an attempt that was first.

        The winner removes what lost or killed attempts left; the loser removes its own files.
        """
        data = manifest.model_dump_json(indent=2).encode()
        url = storage.join(self.run_url, MANIFEST)
        # When an answer is lost, the repeated PUT finds our own manifest: whose attempt it names decides.
        standing = manifest if storage.create(url, data) else read_manifest(self.run_url)
        if standing.attempt == self.id:
            self._is_committed = True
            self._remove_others()
            self.remove_shared()
        else:
            self.discard()
        return standing

    def discard(self) -> None:
        """Remove the files of this attempt, unless it is the one that was committed: whatever fails then, they stay."""
        if not self._is_committed:
            storage.remove_tree(self.url)

    def remove_shared(self) -> None:
        """Remove what attempts at this run left for the next one."""
        for url in self._shared:
            storage.remove_tree(url)

    def _remove_others(self) -> None:
        folder = storage.join(self.run_url, "attempts")
        attempts = {file.url.rsplit("/attempts/", 1)[1].split("/", 1)[0] for file in storage.list_files(folder)}
        for other in attempts - {self.id}:
            storage.remove_tree(storage.join(folder, other))
