"""group_by: groups of a table's rows, counted and added up; the table may be larger than the workers' memory.

Each partition is read once and shrinks to its groups at once. Partial results are merged a few at a time while the
merged ones stay small; where there are too many groups for that, they are cut by a hash of the group, and each share is
merged for itself. Neither rows nor groups come to the runner.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

from distributed import Future

from jobs.errors import InputError
from jobs.job import Evaluation, Job
from jobs.pipelines import group_by_tasks as tasks
from jobs.pipelines import tabular
from jobs.pipelines.group_by_tasks import Size
from jobs.readers.tables import Table as Input
from jobs.readers.tables import open_table
from jobs.report.sections import Table
from jobs.workers import memory_limit

_FAN_IN = 8
# Bytes that a merged result may have; of a small worker's memory, one in so many.
_MOST_BYTES = 64_000_000
_SHARE = 24
# Every part is cut into as many shares.
_MOST_SHARES = 512
_N_LARGEST = 20


@dataclass(frozen=True)
class Prepared:
    """Each partition's groups, on the workers, their sizes, and from where values are seen."""

    parts: list[Future]
    sizes: list[Size]
    origin: dict[str, float]


@dataclass(frozen=True)
class Model:
    """The groups, on the workers, in tables of their own, and what the runner knows of them."""

    tables: list[Future]
    sizes: list[Size]


def load(job: Job) -> Input:
    """Find the columns that the params name."""
    params, url = job.params, job.spec.input.url
    tabular.refuse_test_set(job)
    table = open_table(url, job.spec.input.format, tabular.blocksize(job))
    job.record_input(table.files)
    named = [("params.by", name) for name in params.by] + [("params.aggregates", name) for name in params.aggregates]
    tabular.check_names(url, table.columns, named)
    return table


def prepare(job: Job, loaded: Input) -> Prepared:
    """Shrink each partition to its groups, on the workers."""
    params = job.params
    [origin] = job.map(tasks.origins, loaded.parts[:1], params.aggregates)
    how = [job.share(each, len(loaded.parts)) for each in (params.by, params.aggregates, params.missing, origin)]
    parts = [job.client.submit(tasks.partial, part, *how, pure=False) for part in loaded.parts]
    sizes: list[Size] = job.map(tasks.size_of, parts)
    job.n_rows = sum(size.n_rows + size.n_dropped for size in sizes)
    if not job.n_rows:
        raise InputError(f"{job.spec.input.url}: no rows below the header; put data there or correct the URL")
    if not sum(size.n_rows for size in sizes):
        raise InputError(
            f"{job.spec.input.url}: all {job.n_rows} rows lack a value of params.by; set params.missing to group"
        )
    return Prepared(parts, sizes, origin)


def fit(job: Job, prepared: Prepared) -> Model:
    """Merge the partial results."""
    params = job.params
    sizes, parts = prepared.sizes, list(prepared.parts)
    prepared.parts.clear()  # merged ones stand for them
    limit = memory_limit(job.client)
    most = min(_MOST_BYTES, limit // _SHARE) if limit else _MOST_BYTES
    while len(parts) > 1 and (runs := _runs(sizes, most)):
        parts = [_merged(job, parts[first:last]) for first, last in runs]
        sizes = job.map(tasks.size_of, parts, unit="merged partitions")
    if len(parts) > 1:
        n = min(_MOST_SHARES, math.ceil(sum(size.n_bytes for size in sizes) / most))
        pieces = [job.client.submit(tasks.cut, part, params.by, n, pure=False) for part in parts]
        parts = [
            _merged(job, [job.client.submit(operator.getitem, piece, place, pure=False) for piece in pieces])
            for place in range(n)
        ]
        del pieces
        sizes = job.map(tasks.size_of, parts, unit="shares")
    is_whole = [all(flags) for flags in zip(*(size.is_whole for size in sizes), strict=True)]
    how = [job.share(each, len(parts)) for each in (params.by, params.aggregates, prepared.origin, is_whole)]
    tables = [job.client.submit(tasks.finished, part, *how, pure=False) for part in parts]
    return Model(tables, sizes)


def evaluate(job: Job, prepared: Prepared, model: Model) -> Evaluation:
    """Count, and show the largest groups."""
    params = job.params
    found: list[list[list[Any]]] = job.map(tasks.largest, model.tables, _N_LARGEST, unit="tables")
    place = len(params.by)
    several = (row for rows in found for row in rows)
    rows = sorted(several, key=lambda row: (-row[place], [str(value) for value in row[:place]]))[:_N_LARGEST]
    metrics: dict[str, float | int | str] = {
        "n_groups": sum(size.n_groups for size in model.sizes),
        "largest_group": rows[0][place],
        "n_dropped": sum(size.n_dropped for size in model.sizes),
        "n_infinite": sum(size.n_infinite for size in model.sizes),
    }
    shown: list[list[str | int | float]] = [["missing" if value is None else value for value in row] for row in rows]
    columns = [*params.by, "n_rows", *(f"{name}_{each}" for name, of in params.aggregates.items() for each in of)]
    return Evaluation("n_groups", metrics, [Table("Largest groups", columns, shown)])


def write(job: Job, prepared: Prepared, model: Model, evaluation: Evaluation) -> None:
    """Write the groups as Parquet, from the workers."""
    names = [f"groups/part-{number:05d}.parquet" for number in range(len(model.tables))]
    futures = [
        job.client.submit(tasks.write, table, job.artifact_url(name), pure=False)
        for table, name in zip(model.tables, names, strict=True)
    ]
    for name, (size, sha256) in zip(names, job.wait(futures, unit="files"), strict=True):
        job.add_file(name, size, sha256)


def _merged(job: Job, parts: list[Future]) -> Future:
    """Merge in a tree, a few at a time."""
    while len(parts) > 1:
        parts = [
            job.client.submit(tasks.merged, parts[at : at + _FAN_IN], job.params.by, pure=False)
            for at in range(0, len(parts), _FAN_IN)
        ]
    return parts[0]


def _runs(sizes: list[Size], most: int) -> list[tuple[int, int]]:
    """Return the ends of runs of neighbours to merge, each small enough together; none where nothing would shrink."""
    runs, first, n_bytes = [], 0, 0
    for place, size in enumerate(sizes):
        if place > first and (n_bytes + size.n_bytes > most or place - first == _FAN_IN):
            runs.append((first, place))
            first, n_bytes = place, 0
        n_bytes += size.n_bytes
    runs.append((first, len(sizes)))
    return runs if 2 * len(runs) <= len(sizes) + 1 else []
