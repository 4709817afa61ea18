"""What can be known of a job before any worker is asked for: whether its input can be read and its output written.

Called by the command line and the runner; imports neither Dask nor what pipelines need.
"""

from __future__ import annotations

from dataclasses import dataclass

from jobs import storage
from jobs.artifacts import Manifest, read_manifest
from jobs.conditional import refuse_unconditional
from jobs.errors import InputError, OutputError, SpecError, StorageMissingError
from jobs.spec import JobSpec, parse
from jobs.verify import refuse_damaged

_N_FIRST_BYTES = 512


@dataclass(frozen=True)
class InputFound:
    """An input that can be read: its URL, how many files it has, and their bytes."""

    url: str
    n_files: int
    size: int


@dataclass(frozen=True)
class Preflight:
    """A job that is ready to run; `was_committed` says that it was run before, and nothing else was looked at."""

    run_url: str
    was_committed: bool
    inputs: tuple[InputFound, ...] = ()


def check(spec: JobSpec) -> Preflight:
    """Check that a job's input can be read and its output written; one small file stays there, for all runs.

    Raises
    ------
    DaskyardError
        Its class says whether another try is worth it, as that of a run's does.
    """
    with storage.stalling_after(spec.storage.stall_seconds):
        return _check(spec)


def _check(spec: JobSpec) -> Preflight:
    refuse_memory(spec)
    run_url = storage.join(spec.output, spec.name)
    if committed_of(spec) is not None:
        return Preflight(run_url, was_committed=True)
    urls = [url for url in (spec.input.url, spec.input.test_url) if url is not None]
    inputs = tuple(_readable(url) for url in urls)
    refuse_unconditional(spec.output)
    return Preflight(run_url, was_committed=False, inputs=inputs)


def refuse_memory(spec: JobSpec) -> None:
    """Workers that are processes of their own would read and write memory of their own."""
    for key, url in (("input.url", spec.input.url), ("output", spec.output)):
        if url.startswith("memory://"):
            raise SpecError(
                f"{key}: {url} is the memory of one process, which workers do not share; use s3:// or a path"
            )


def committed_of(spec: JobSpec) -> Manifest | None:
    """Return the manifest of the job's run where it is committed, and its files are there.

    Raises
    ------
    OutputError
        When its run id was committed from another spec, or is damaged.
    """
    run_url = storage.join(spec.output, spec.name)
    try:
        manifest = read_manifest(run_url)
    except StorageMissingError:
        return None
    return taken_over(manifest, spec)


def taken_over(manifest: Manifest, spec: JobSpec) -> Manifest:
    """Return the manifest that another attempt at the run left, or raise OutputError where it is of no use."""
    run_url = storage.join(spec.output, spec.name)
    try:
        is_same = parse(manifest.spec).digest == spec.digest
    except SpecError:
        is_same = False
    if not is_same or manifest.run_id != spec.name:
        raise OutputError(f"{run_url}: holds a run of another spec; choose another run_id or output")
    refuse_damaged(manifest, run_url)
    return manifest


def _readable(url: str) -> InputFound:
    files = storage.list_files(url)
    # Storage answers a range of an empty object with an error.
    first = next((file for file in files if file.size), None)
    if first is None:
        raise InputError(f"{url}: nothing but empty files; put the data there or correct the URL")
    storage.read_bytes(first.url, 0, _N_FIRST_BYTES)
    return InputFound(url, len(files), sum(file.size for file in files))
