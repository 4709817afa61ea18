"""Runs one job: cluster, the pipeline's stages, report, commit. Called by the command line and the demo."""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
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
from jobs.conditional import refuse_unconditional
from jobs.errors import (
    DaskyardError,
    StorageMissingError,
    WorkersLostError,
    stop_of,
)
from jobs.freed_memory import give_freed_memory_back
from jobs.job import Evaluation, Job, Pipeline, workers_lost
from jobs.listener import Forgiving, Listener
from jobs.local_cluster import room_for_temporary_files
from jobs.memory_watch import MemoryWatch
from jobs.plain import plain
from jobs.preflight import committed_of, refuse_memory, taken_over
from jobs.report import html
from jobs.sharing import defer_release
from jobs.spec import JobSpec
from jobs.stall_watch import watched
from jobs.storage_limits import limit_storage_of_workers
from jobs.telling import Telling
from jobs.temporary import held_folder
from jobs.tuning.report import tuning_sections
from jobs.tuning.trials import remove_records, tuned

STAGES = ("load", "prepare", "fit", "evaluate", "write")
T = TypeVar("T")
_log = logging.getLogger("daskyard.runner")
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
    on_commit: Callable[[RunResult], None] = lambda result: None,
) -> RunResult:
    """Run a job to its commit, unless its run id was committed before.

    Whatever fails once the run is committed, a stop among it, is told as a warning: the run is its result.

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
    on_commit : callable
        Gets the result as soon as it is known, and perhaps again: whoever is told to stop after that has it to tell of.

    Raises
    ------
    DaskyardError
        Its class says whether another try is worth it.
    """
    with storage.stalling_after(spec.storage.stall_seconds):
        return _run(spec, n_workers, memory, Forgiving(listener or Listener()), client, on_commit)


def _run(
    spec: JobSpec,
    n_workers: int | None,
    memory: str | None,
    listener: Listener,
    client: Client | None,
    on_commit: Callable[[RunResult], None],
) -> RunResult:
    if client is None:
        refuse_memory(spec)
    run_url = storage.join(spec.output, spec.name)
    committed = committed_of(spec)
    if committed is not None:
        listener.message(f"{run_url}: committed before, nothing to do")
        return _told(RunResult(run_url, committed, was_committed=True), on_commit)
    refuse_unconditional(spec.output)
    attempt = Attempt(run_url)
    try:
        with ExitStack() as stack:
            stack.enter_context(room_for_temporary_files())
            if client is None:
                client = stack.enter_context(connected(n_workers, memory))
                listener.message(f"dashboard: {client.dashboard_link}")
            stack.enter_context(defer_release())
            try:
                with watched(client):
                    manifest = _attempted(spec, client, attempt, Telling(listener, client))
            except Exception as error:
                lost = workers_lost(error, client)
                if lost is not None:
                    raise lost from error
                raise
            # Before the cluster is closed, which takes its time and may fail.
            standing = attempt.commit(manifest)
            if standing.attempt == attempt.id:
                _told(RunResult(run_url, standing, was_committed=False), on_commit)
                if spec.tune is not None:
                    remove_records(run_url)
    except BaseException as error:
        found = _settled(attempt, spec, error)
        if found is None:
            lost = workers_lost(error)
            if lost is not None:
                raise lost from error
            raise
        standing = found
    was_committed = standing.attempt != attempt.id
    if was_committed:
        standing = taken_over(standing, spec)
    return _told(RunResult(run_url, standing, was_committed), on_commit)


def _told(result: RunResult, on_commit: Callable[[RunResult], None]) -> RunResult:
    on_commit(result)
    return result


def _attempted(spec: JobSpec, client: Client, attempt: Attempt, listener: Listener) -> Manifest:
    """Run the stages and write every file of the attempt; return the manifest, not yet committed."""
    job = Job(spec, client, attempt, listener)
    started_at = datetime.now(UTC)
    tuning: TuningRecord | None = None
    # The job needs somewhere to write: hear that it may not now, rather than after an hour of training.
    job.write_json("spec.json", spec.model_dump(mode="json"))
    give_freed_memory_back(client)
    limit_storage_of_workers(client, spec.storage.stall_seconds)
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
    metrics = {**evaluation.metrics, **({"tuning_best": tuning.value} if tuning else {})}
    no_numbers = [name for name, value in metrics.items() if plain(value) is None]
    if no_numbers:
        job.log.warning("not a number, null in the manifest: %s", ", ".join(no_numbers))
    workers = watch.end()
    ended_at = datetime.now(UTC)
    manifest = Manifest(
        run_id=spec.name,
        pipeline=spec.pipeline,
        spec=spec.model_dump(mode="json"),
        attempt=attempt.id,
        headline=evaluation.headline,
        metrics=metrics,
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


def _settled(attempt: Attempt, spec: JobSpec, error: BaseException) -> Manifest | None:
    """Return the manifest that stands in spite of an error, or clear up after the attempt and return None.

    Where nobody can say whether the attempt was committed, all that it wrote stays.
    """
    try:
        standing = attempt.settle()
    except BaseException as second:
        _log.warning("%s", _unclear(attempt, str(second) or type(second).__name__))
        if stop_of(second) is not None:
            raise
        return None
    if attempt.discard():
        # A racing run that won sweeps our files away under us: then its result is the result.
        if standing is None and isinstance(error, StorageMissingError):
            standing = committed_of(spec)
        # What it left for another attempt stays where another one may get further.
        if standing is None and isinstance(error, DaskyardError) and error.exit_code != WorkersLostError.exit_code:
            attempt.remove_shared()
        return standing
    if standing is None:
        _log.warning("%s", _unclear(attempt, "there is none yet, and it may come to be"))
        return None
    what = "told to stop after it" if stop_of(error) is not None else f"after it: {type(error).__name__}: {error}"
    _log.warning("%s: committed; %s", attempt.run_url, " ".join(what.split()))
    return standing


def _unclear(attempt: Attempt, why: str) -> str:
    return (
        f"{attempt.run_url}: whether the manifest of this attempt was written is not known ({' '.join(why.split())}); "
        f"its files stay in {attempt.url}, and the next commit of this run clears them up"
    )


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
