"""`daskyard demo`: every pipeline on real data, through a real S3 server on this machine and one local cluster."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import dask
from distributed import Client

import jobs
from jobs import datasets, runner, spec, storage
from jobs.artifacts import Manifest
from jobs.cluster import connected
from jobs.errors import DaskyardError
from jobs.listener import Listener
from jobs.local_s3 import BUCKET, LocalS3

OUTPUT = f"s3://{BUCKET}/runs"


@dataclass(frozen=True)
class Case:
    """A job file of the examples, the data set that it reads, and what the demo changes in it."""

    example: str
    dataset: str
    sets: tuple[str, ...] = ()


# Where the first data set cannot be had, the next is taken: the last one comes with scikit-learn.
_IMAGES = "cifar10_one_epoch.yaml"
IMAGES = (
    Case(_IMAGES, "cifar10"),
    Case(_IMAGES, "fashion-mnist"),
    Case(_IMAGES, "digits", ("params.epochs=20", "params.flip=false", "params.batch_size=128")),
)
CASES = (
    IMAGES,
    (Case("newsgroups.yaml", "20newsgroups"),),
    (Case("movielens_explicit.yaml", "ml-100k"),),
    (Case("movielens_implicit.yaml", "ml-100k"),),
    (Case("california.yaml", "california-housing"),),
    (Case("bio_kmeans.yaml", "bio"),),
    (Case("adult_mlp.yaml", "adult"),),
    (Case("adult_groups.yaml", "adult"),),
)


@dataclass(frozen=True)
class Row:
    """What came of one job: a committed run, or the error with its exit code; `note` says why this data set."""

    pipeline: str
    dataset: str
    result: runner.RunResult | None = None
    error: str = ""
    exit_code: int = 0
    note: str = ""
    cause: Exception | None = None


@dataclass(frozen=True)
class Outcome:
    """What came of the demo; `keep` is the folder with data and runs, if they were to be kept."""

    rows: tuple[Row, ...]
    keep: Path | None

    @property
    def exit_code(self) -> int:
        """That of the first job that failed, or 0."""
        return next((row.exit_code for row in self.rows if row.exit_code), 0)


def run(
    listener: Listener, *, n_workers: int | None = None, keep: Path | None = None, only: str | None = None
) -> Outcome:
    """Fetch the data sets and run the pipelines; one that fails does not stop the others.

    Parameters
    ----------
    listener : Listener
        Who is told what happens.
    n_workers : int, optional
        Workers of the local cluster; by default one a core.
    keep : Path, optional
        A folder for the server's data and copies of the reports, which stay there.
    only : str, optional
        Run the jobs of this pipeline only.
    """
    chosen = [cases for cases in CASES if only in (None, _load(cases[0]).pipeline)]
    # Workers elsewhere could not reach a server on this machine's loopback.
    with (
        dask.config.set({"scheduler-address": None}),
        LocalS3(keep / "s3" if keep else None) as s3,
        connected(n_workers) as client,
    ):
        s3.create_bucket(BUCKET)
        rows = []
        for number, cases in enumerate(chosen, start=1):
            listener.message(f"[{number}/{len(chosen)}] {cases[0].example}")
            row = _row(cases, client, listener)
            if row.error:
                listener.message(f"failed: {row.error}")
            elif keep and row.result:
                _copy_report(row.result.manifest, keep)
            rows.append(row)
    return Outcome(tuple(rows), keep)


def examples() -> Traversable:
    """Return the folder of the example job files: inside the package where it is installed, else the checkout's."""
    installed = files("jobs") / "examples"
    return installed if installed.is_dir() else Path(jobs.__file__).parent.parent / "examples"


def _load(case: Case, *more: str) -> spec.JobSpec:
    return spec.load(Path(str(examples() / case.example)), (*case.sets, f"output={OUTPUT}", *more))


def _row(cases: tuple[Case, ...], client: Client, listener: Listener) -> Row:
    notes: list[str] = []
    row = Row(_load(cases[0]).pipeline, cases[0].dataset)
    for case in cases:
        row = replace(row, dataset=case.dataset, note="; ".join(notes))
        folder = f"s3://{BUCKET}/data/{case.dataset}"
        try:
            fetched = datasets.fetch(case.dataset, folder, listener)
        except DaskyardError as error:
            row = replace(row, error=str(error), exit_code=error.exit_code)
            notes.append(f"not {case.dataset}, because: {error}")
            continue
        job = _load(case, f"input={json.dumps(_input(folder, [file.url for file in fetched]))}")
        return _run(job, replace(row, error="", exit_code=0), client, listener)
    return row


def _run(job: spec.JobSpec, row: Row, client: Client, listener: Listener) -> Row:
    try:
        return replace(row, result=runner.run(job, client=client, listener=listener))
    except DaskyardError as error:
        return replace(row, error=str(error), exit_code=error.exit_code, cause=error)
    except Exception as error:
        # A defect of one pipeline is a row of the table too: the others shall run.
        text = f"{type(error).__name__}: {error}; run again with --debug to see where"
        return replace(row, error=text, exit_code=DaskyardError.exit_code, cause=error)


def _input(folder: str, urls: list[str]) -> dict[str, str]:
    """Return the input of a job that reads a fetched data set: the one file, training and test file, or the folder."""
    if len(urls) == 1:
        return {"url": urls[0]}
    parts = {url.rsplit("/", 1)[1].split(".", 1)[0]: url for url in urls}
    if parts.keys() == {"train", "test"}:
        return {"url": parts["train"], "test_url": parts["test"]}
    return {"url": folder}


def _copy_report(manifest: Manifest, keep: Path) -> None:
    folder = keep / "reports"
    folder.mkdir(parents=True, exist_ok=True)
    for file in manifest.files:
        if file.name == "report.html":
            (folder / f"{manifest.run_id}.html").write_bytes(storage.read_bytes(file.url))
