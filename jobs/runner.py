"""Runs one job: cluster, the pipeline's stages, report, commit. Called by the command line and the demo."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from distributed import Client, performance_report

import jobs
from jobs import storage
from jobs.artifacts import Attempt, Manifest, TuningRecord
from jobs.cluster import connected
from jobs.errors import (
    DaskyardError,
    StorageError,
    StorageMissingError,
    WorkersLostError,
)
from jobs.freed_memory import give_freed_memory_back
from jobs.job import Evaluation, Job, Pipeline, workers_lost
from jobs.listener import Listener
from jobs.memory_watch import MemoryWatch
from jobs.preflight import committed_of, of_this_spec, refuse_memory
from jobs.report import html
from jobs.spec import JobSpec
from jobs.telling import Telling
from jobs.temporary import held_folder
from jobs.tuning.report import tuning_sections
from jobs.tuning.trials import remove_records, tuned

STAGES = ("load", "prepare", "fit", "evaluate", "write")
T = TypeVar("T")
_LIBRARIES = ("dask", "distributed", "fsspec", "numpy", "pandas", "pyarrow", "s3fs", "scipy", "torch")


@dataclass(frozen=True)
class RunResult:
    """A committed run; `was_committed` says that it had been before, and nothing was changed."""

    run_url: str
    manifest: Manifest
    was_committed: bool


def run(
    spec: JobSpec,
    *,
    n_workers: int | None = None,
    memory: str | None = None,
    listener: Listener | None = None,
    client: Client | None = None,
) -> RunResult:
    """Run a job to its commit, unless its run id was committed before.

    Parameters
    ----------
    spec : JobSpec
        The job.
    n_workers, memory : int, str, optional
        Size of the local cluster; see `jobs.cluster.connected`.
    listener : Listener, optional
        Who is told of stages and progress; the scheduler is told as well.
    client : distributed.Client, optional
        A client of a running cluster; it is left open.

    Raises
    ------
    DaskyardError
        Its class says whether another try is worth it.
    """
    listener = listener or Listener()
    if client is None:
        refuse_memory(spec)
    run_url = storage.join(spec.output, spec.name)
    committed = committed_of(spec)
    if committed is not None:
        listener.message(f"{run_url}: committed before, nothing to do")
        return RunResult(run_url, committed, was_committed=True)
    attempt = Attempt(run_url)
    try:
        with ExitStack() as stack:
            if client is None:
                client = stack.enter_context(connected(n_workers, memory))
                listener.message(f"dashboard: {client.dashboard_link}")
            manifest = _attempted(spec, client, attempt, Telling(listener, client))
        standing = attempt.commit(manifest)
        if spec.tune is not None:
            remove_records(run_url)
    except BaseException as error:
        _discard(attempt, error)
        # A racing run that won sweeps our files away under us: then its result is the result.
        committed = committed_of(spec) if isinstance(error, StorageMissingError) else None
        if committed is not None:
            return RunResult(run_url, committed, was_committed=True)
        lost = workers_lost(error)
        if lost is not None:
            raise lost from error
        raise
    if standing.attempt != attempt.id:
        standing = of_this_spec(standing, spec)
    return RunResult(run_url, standing, was_committed=standing.attempt != attempt.id)


def _attempted(spec: JobSpec, client: Client, attempt: Attempt, listener: Listener) -> Manifest:
    """Run the stages and write every file of the attempt; return the manifest, not yet committed."""
    job = Job(spec, client, attempt, listener)
    started_at = datetime.now(UTC)
    tuning: TuningRecord | None = None
    # The job needs somewhere to write: hear that it may not now, rather than after an hour of training.
    job.write_json("spec.json", spec.model_dump(mode="json"))
    give_freed_memory_back(client)
    watch = MemoryWatch(client)
    with held_folder("run") as folder:
        dask_report = folder / "dask-report.html"
        report = performance_report(filename=str(dask_report), mode="inline")
        report.__enter__()
        if spec.tune is not None:
            with job.stage("tune", 0, len(STAGES) + 1):
                best, tuning = tuned(spec, client, attempt.run_url, listener)
            job.spec, job.params = best, best.params
        evaluation = _staged(importlib.import_module(f"jobs.pipelines.{spec.pipeline}"), job)
        # No `with`: a run that failed needs no report, and to ask a scheduler that is gone for one takes half a minute.
        report.__exit__(None, None, None)
        job.write_bytes("dask-report.html", dask_report.read_bytes())
    workers = watch.end()
    ended_at = datetime.now(UTC)
    manifest = Manifest(
        run_id=spec.name,
        pipeline=spec.pipeline,
        spec=spec.model_dump(mode="json"),
        attempt=attempt.id,
        headline=evaluation.headline,
        metrics={**evaluation.metrics, **({"tuning_best": tuning.value} if tuning else {})},
        tuning=tuning,
        n_rows=job.n_rows,
        n_workers=job.n_workers,
        workers=workers,
        n_workers_gone=watch.n_gone,
        seed=spec.params.seed,
        seconds=(ended_at - started_at).total_seconds(),
        started_at=started_at,
        committed_at=ended_at,
        stages=job.stages,
        inputs=[job.inputs[url] for url in sorted(job.inputs)],
        files=[],
        package_version=jobs.__version__,
        git_commit=_git_commit(),
        versions={"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in _LIBRARIES},
    )
    job.write_bytes(
        "report.html",
        html.render(manifest, [*evaluation.sections, *tuning_sections(tuning), *watch.sections()]).encode(),
    )
    return manifest.model_copy(update={"files": attempt.files, "committed_at": datetime.now(UTC)})


def _staged(pipeline: Pipeline, job: Job) -> Evaluation:
    loaded = _stage(job, "load", lambda: pipeline.load(job))
    prepared = _stage(job, "prepare", lambda: pipeline.prepare(job, loaded))
    model = _stage(job, "fit", lambda: pipeline.fit(job, prepared))
    evaluation: Evaluation = _stage(job, "evaluate", lambda: pipeline.evaluate(job, prepared, model))
    job.tell_metrics(evaluation.metrics)
    _stage(job, "write", lambda: pipeline.write(job, prepared, model, evaluation))
    return evaluation


def _stage(job: Job, name: str, function: Callable[[], T]) -> T:
    n_before = len(job.stages) - STAGES.index(name)
    with job.stage(name, len(job.stages), len(STAGES) + n_before):
        return function()


def _discard(attempt: Attempt, error: BaseException) -> None:
    """Remove the attempt's files; what went wrong before matters more than a failure to clean up.

    What it left for another attempt stays where another one may get further.
    """
    try:
        attempt.discard()
        if isinstance(error, DaskyardError) and error.exit_code != WorkersLostError.exit_code:
            attempt.remove_shared()
    except (DaskyardError, OSError) as second:
        if not isinstance(error, StorageError):
            error.add_note(f"{attempt.url}: could not be removed ({second})")


def _git_commit() -> str | None:
    """The commit of this code, as its image says, or the checkout that it runs from; None where it is installed."""
    told = os.environ.get("DASKYARD_GIT_COMMIT")
    if told:
        return told
    folder = Path(__file__).parent
    # Installed code may lie in the folder of a repository of the user's, which does not track it.
    for command in (["ls-files", "--error-unmatch", __file__], ["rev-parse", "HEAD"]):
        try:
            result = subprocess.run(
                ["git", *command], cwd=folder, capture_output=True, text=True, timeout=5, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        if result.returncode != 0:
            return None
    return result.stdout.strip()
