"""Runs commit exactly once: files of one attempt, then a manifest that only the first attempt can create.

Layout of a run: ``<output>/<run id>/attempts/<attempt>/…`` holds files, ``<output>/<run id>/manifest.json`` says which
attempt won and lists its files. A folder without a manifest is no result, whatever lies in it.
"""

from __future__ import annotations

import hashlib
import io
import logging
import re
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from jobs import storage
from jobs.errors import OutputError, StorageError, StorageMissingError
from jobs.plain import plain, plain_tree

MANIFEST = "manifest.json"
_ATTEMPTS = "attempts"
_ATTEMPT = re.compile(r"\d{8}T\d{6}-[0-9a-f]{12}", re.ASCII)
# Of a manifest: a thousand times that of a run with many files.
_MOST_BYTES = 64 << 20
_MOST_QUOTED = 100
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_log = logging.getLogger("daskyard.artifacts")

# What was measured may be no number; it then stands there as null, and is seen to be none.
Metric = Annotated[float | int | str | None, BeforeValidator(plain)]
Measured = Annotated[float | None, BeforeValidator(plain)]
Document = Annotated[dict[str, Any], BeforeValidator(plain_tree)]


class _Record(BaseModel):
    """What is written reads back: a NaN that found its way to a field which cannot be null is an error at once."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


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
    params: Document
    resource: float
    metric: str
    value: Measured
    metrics: dict[str, Measured]
    seconds: float
    error: str | None


class TuningRecord(_Record):
    """A search over params: the metric it went by, the params that were taken, what they reached on validation rows.

    `n_reused` trials had been made by an earlier try at the run.
    """

    metric: str
    is_more_better: bool
    params: Document
    value: Measured
    n_reused: int
    trials: list[TrialRecord]


class Manifest(_Record):
    """What a committed run is: the only thing a reader has to trust."""

    run_id: str
    pipeline: str
    spec: Document
    attempt: str
    headline: str
    metrics: dict[str, Metric]
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
        When what is there is no manifest, or names what no run of Daskyard has.
    """
    url = storage.join(run_url, MANIFEST)
    oddity = storage.oddity(url)
    if oddity is not None:
        raise _no_manifest(url, f"it is {oddity}")
    try:
        content = storage.read_bytes(url, 0, _MOST_BYTES + 1)
    except StorageMissingError as error:
        raise StorageMissingError(f"{run_url}: no committed run there; correct the URL or run the job") from error
    if len(content) > _MOST_BYTES:
        raise _no_manifest(url, f"it has more than {_MOST_BYTES:,} bytes")
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        raise _no_manifest(url, "it is not of that form") from error
    problem = _problem_of(manifest)
    if problem is not None:
        raise _no_manifest(url, problem)
    return manifest


def _no_manifest(url: str, problem: str) -> OutputError:
    return OutputError(f"{url}: not a manifest of Daskyard ({problem}); put it back, or remove it to run the job again")


def _problem_of(manifest: Manifest) -> str | None:
    """Return what no attempt writes: a manifest from elsewhere must not lead its reader out of the run's folder."""
    if not _ATTEMPT.fullmatch(manifest.attempt):
        return f"attempt is {_quoted(manifest.attempt)}"
    if not manifest.files:
        return "it lists no files"
    names: set[str] = set()
    for name in (file.name for file in manifest.files):
        if any(part in ("", ".", "..") for part in name.split("/")) or _CONTROL.search(name):
            return f"a file's name is {_quoted(name)}"
        if name in names:
            return f"it lists {_quoted(name)} twice"
        names.add(name)
    return None


def _quoted(text: str) -> str:
    return ascii(text[:_MOST_QUOTED])


def attempt_url(run_url: str, attempt: str) -> str:
    """Return the folder of an attempt's files."""
    return storage.join(run_url, _ATTEMPTS, attempt)


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
    """One attempt at a run: it owns a folder of its own until it wins or is discarded.

    From just before its manifest is sent until a manifest has been read, nobody knows whether it won: the store may
    apply later what it has not answered, so that no manifest there now proves nothing. Until then its files stay.
    """

    def __init__(self, run_url: str) -> None:
        self.run_url = run_url
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        self.id = f"{stamp}-{uuid.uuid4().hex[:12]}"
        self.url = attempt_url(run_url, self.id)
        self._files: dict[str, FileRecord] = {}
        self._shared: set[str] = set()
        self._is_sent = False
        self._standing: Manifest | None = None

    @property
    def files(self) -> list[FileRecord]:
        """The files so far, by name."""
        return [self._files[name] for name in sorted(self._files)]

    @property
    def is_open(self) -> bool:
        """Whether this attempt cannot have committed the run: its manifest was never sent, or another stands."""
        return not self._is_sent or (self._standing is not None and self._standing.attempt != self.id)

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

        The winner removes what lost or killed attempts left; the loser removes its own files. What cannot be removed
        stays and is told: that changes nothing about the commit.

        Raises
        ------
        StorageError
            When it is not known which manifest stands, if any does; `settle` may find out.
        """
        data = manifest.model_dump_json(indent=2).encode()
        url = storage.join(self.run_url, MANIFEST)
        # Before the request, not after it: whoever is told to stop in between must not take the files away.
        self._is_sent = True
        if storage.create(url, data):
            # Stores have said so of what they did not keep. Nobody can know then what becomes of it.
            if storage.size_of(url) != len(data):
                raise StorageError(f"{url}: storage says that it was created, yet it is not there; run the job again")
            self._standing = manifest
        standing = self.settle()
        if standing is None:
            raise StorageError(f"{url}: storage refuses to create it, yet has none to read; run the job again")
        self.clear_up()
        return standing

    def settle(self) -> Manifest | None:
        """Return the manifest that stands, once this attempt has sent its own; None where there is none to read.

        Raises
        ------
        DaskyardError
            When it cannot be read.
        """
        if self._is_sent and self._standing is None:
            # When an answer is lost, the repeated PUT finds our own manifest: whose attempt it names decides.
            try:
                self._standing = read_manifest(self.run_url)
            except StorageMissingError:
                return None
        return self._standing

    def discard(self) -> bool:
        """Remove the files of this attempt, unless a manifest that names them stands, or may come to stand.

        Returns
        -------
        bool
            Whether they were to be removed; what could not be is told.
        """
        if self.is_open:
            remove_leftovers(self.run_url, "this attempt", lambda: [self.url])
        return self.is_open

    def clear_up(self) -> None:
        """Remove what the manifest that stands has made useless; what stays is told, and is no error."""
        if not self.discard():
            remove_leftovers(self.run_url, "other attempts", self._leftovers)

    def remove_shared(self) -> None:
        """Remove what attempts at this run left for the next one; what stays is told."""
        remove_leftovers(self.run_url, "attempts", lambda: sorted(self._shared))

    def _leftovers(self) -> list[str]:
        folder = storage.join(self.run_url, _ATTEMPTS)
        others = {name.split("/", 1)[0] for name in storage.list_sizes(folder)} - {self.id}
        return [*(storage.join(folder, other) for other in sorted(others)), *sorted(self._shared)]


def remove_leftovers(run_url: str, whose: str, urls: Callable[[], Sequence[str]]) -> None:
    """Remove files and folders that are of no use any more; that they stay is told in one line, and is no error.

    Credentials may write and not delete, and storage may fail just now: neither makes a result a lesser one.

    Parameters
    ----------
    run_url : str
        The run that the line is about.
    whose : str
        Who left them, for the line.
    urls : callable
        Returns what to remove; it may look into storage.
    """
    try:
        for url in urls():
            storage.remove_tree(url)
    except Exception as error:
        _log.warning("%s: what %s left stays there, and is no part of a run (%s)", run_url, whose, error)
