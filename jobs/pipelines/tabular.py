"""What the pipelines on tables share: finding the columns, encoding partitions on the workers, writing predictions."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, NamedTuple

import dask
import numpy as np
from distributed import Future
from numpy.typing import NDArray

from jobs import storage
from jobs.errors import InputError, SpecError
from jobs.job import Job
from jobs.pipelines import tabular_tasks as tasks
from jobs.pipelines.tabular_tasks import RegressionSums, Unread
from jobs.readers.table_encoding import MISSING, Encoder, Split, Spread, Target, merged_spread
from jobs.readers.table_profile import Profile, check_kind, has_too_many, merged
from jobs.readers.tables import Table, open_table, read_part
from jobs.workers import memory_limit, workers_of


@dataclass(frozen=True)
class Loaded:
    """A table: the columns to use, their profile, and its partitions, which workers keep or read again in each pass."""

    table: Table
    features: tuple[str, ...]
    partitions: list[Future] | list[Unread]
    profile: Profile

    @property
    def starts(self) -> list[int]:
        """Global number of each partition's first row."""
        return [0, *np.cumsum(self.profile.lengths).tolist()[:-1]]

    @property
    def is_kept(self) -> bool:
        """Whether the partitions lie on workers."""
        return not isinstance(self.partitions[0], Unread)


class Half(NamedTuple):
    """Training or test rows: of each partition, futures of X (n, p), y (n,) and row numbers (n,), and the number n."""

    X: list[Future]
    y: list[Future]
    rows: list[Future]
    n: list[int]


@dataclass(frozen=True)
class Prepared:
    """Encoded rows on the workers, and what was done to them."""

    encoder: Encoder
    target: Target | None
    train: Half
    test: Half
    target_mean: float
    target_scale: float
    counts: dict[str, int]


def load(job: Job, target: str | None = None) -> Loaded:
    """Find the columns that the params name, and profile them on the workers."""
    params, url = job.params, job.spec.input.url
    refuse_test_set(job)
    table = open_table(url, job.spec.input.format, blocksize(job))
    job.record_input(table.files)
    features = _features(url, table.columns, params, target)
    columns = (*features, *([target] if target else []))
    partitions: Any = [Unread(part, columns) for part in table.parts]
    if _fits(job, table):
        partitions = [job.client.submit(read_part, part, columns, pure=False) for part in table.parts]
    most = max(params.max_categories, _MOST_CLASSES)
    valued = (*params.categorical, *([target] if target else []))
    found = merged(job.map(tasks.profile, partitions, most, valued), most)
    job.n_rows = found.n_rows
    if found.n_rows == 0:
        raise InputError(f"{url}: no rows below the header; put data there or correct the URL")
    for name, column in found.columns.items():
        if name not in params.categorical:
            check_kind(url, name, column)
        if name != target and column.n_missing == found.n_rows:
            raise InputError(f"{url}: column {name!r} has no values; put it into params.drop")
    return Loaded(table, features, partitions, found)


def refuse_test_set(job: Job) -> None:
    """Raise a SpecError where the input has a test set."""
    if job.spec.input.test_url is not None:
        raise SpecError(f"input.test_url: {job.spec.pipeline} reads one table; remove test_url")


def blocksize(job: Job) -> int:
    """Bytes of a partition: what the params say, or what the smallest worker holds many times over."""
    if job.params.blocksize_mb is not None:
        return max(int(min(job.params.blocksize_mb, _MOST_MB) * 1e6), 1)
    limit = memory_limit(job.client)
    return min(_BLOCKSIZE, limit // _BLOCKS_IN_MEMORY) if limit else _BLOCKSIZE


_BLOCKSIZE = 32_000_000
_MOST_MB = 1e12  # more than any storage holds
# A partition is in memory as bytes, as text and as numbers at once; other partitions, libraries and results want room.
_BLOCKS_IN_MEMORY = 64
# Of all workers' memory, what the input may take to be kept there between the passes; else it is read in each of them.
_SHARE_KEPT = 0.25
# What files that are not plain text grow by when they are read, in round figures.
_GROWTH = 4


def _fits(job: Job, table: Table) -> bool:
    limits = [int(worker["memory_limit"] or 0) for worker in workers_of(job.client).values()]
    growth = 1 if all(file.url.lower().endswith((".csv", ".tsv", ".tab")) for file in table.files) else _GROWTH
    return 0 in limits or growth * sum(file.size for file in table.files) <= _SHARE_KEPT * sum(limits)


# Classes of a target are categories as well: the profile keeps this many values at least.
_MOST_CLASSES = 1000


def numeric_target(job: Job, loaded: Loaded, name: str) -> Target:
    """The target as numbers; InputError where it is not, or where none is finite."""
    column, url = loaded.profile.columns[name], job.spec.input.url
    if column.n_texts:
        raise InputError(f"{url}: column {name!r} is of text such as {_example(column)!r}; params.target needs numbers")
    if column.n_numbers == column.n_infinite:
        raise InputError(f"{url}: column {name!r} has no finite value; choose another params.target")
    return Target(name)


def class_target(job: Job, loaded: Loaded, name: str) -> Target:
    """The target as classes; InputError where there are fewer than two, or far too many."""
    column, url = loaded.profile.columns[name], job.spec.input.url
    if has_too_many(column):
        raise InputError(f"{url}: column {name!r} has more than {_MOST_CLASSES} values; set params.task to regression")
    classes = _sorted(column.values)
    if not column.n_texts and name not in job.params.categorical:
        # Rows whose target is infinite are dropped, as those without one.
        classes = [value for value in classes if np.isfinite(float(value))]
    if len(classes) < 2:
        only = ", ".join(map(repr, classes)) or "none"
        raise InputError(f"{url}: column {name!r} has one class only ({only}); params.target needs two or more")
    return Target(name, tuple(classes))


def prepare(
    job: Job,
    loaded: Loaded,
    target: Target | None,
    test_fraction: float,
    is_standardised: bool,
    has_reference: bool = False,
) -> Prepared:
    """Find the encoder's figures on the training rows, then encode and split every partition on its worker."""
    numbers, categories = _kinds(job, loaded)
    # Where nothing is set aside to be measured on, nothing is in a trial either.
    trial = job.trial if job.trial is None or test_fraction else replace(job.trial, validation_fraction=0.0)
    split = Split(job.params.seed, test_fraction, trial)
    values = numbers if target is None or target.classes else (*numbers, target.name)
    partitions: list[Any] = [
        replace(partition, numbers=values) if isinstance(partition, Unread) else partition
        for partition in loaded.partitions
    ]
    placed = list(zip(partitions, loaded.starts, strict=True))
    total = _spread(job, placed, numbers, values, target, split)
    q = len(numbers)
    deviations = np.sqrt(total.squares / np.maximum(total.n, 1))
    scales = np.where(deviations > 0, deviations, 1.0) if is_standardised else np.ones(len(values))
    encoder = Encoder(numbers, total.means[:q], scales[:q], categories, is_standardised, has_reference)
    if not encoder.names:
        raise InputError(f"{job.spec.input.url}: every column has one value only; add others to params.features")
    sizes, train, test = _encoded(job, placed, encoder, target, split)
    infinite = sum(column.n_infinite for name, column in loaded.profile.columns.items() if name in numbers)
    counts = {
        "n_dropped": int(sizes[2].sum()),
        "n_imputed": int(sizes[3].sum()),
        "n_infinite": infinite,
    }
    for name, count in counts.items():
        if count:
            job.log.warning("%s: %d", name, count)
    if not sizes[0].any() or (test_fraction and not sizes[1].any()):
        raise InputError(
            f"{job.spec.input.url}: {sizes[0].sum()} training and {sizes[1].sum()} test rows; "
            "give more rows or change params.test_fraction"
        )
    if not loaded.is_kept:
        _check_unchanged(job, loaded.table)
    loaded.partitions.clear()  # the encoded rows stand for them now; workers need not keep both
    mean, scale = (float(total.means[q]), float(deviations[q]) or 1.0) if len(values) > q else (0.0, 1.0)
    return Prepared(encoder, target, train, test, mean, scale, counts)


def _spread(
    job: Job,
    placed: list[tuple[Any, int]],
    numbers: tuple[str, ...],
    values: tuple[str, ...],
    target: Target | None,
    split: Split,
) -> Spread:
    """Mean and spread of columns of values; InputError where a column of numbers has none."""
    shared = [job.share(each, len(placed)) for each in (values, target, split)]
    parts = [job.client.submit(tasks.spread, *each, *shared, pure=False) for each in placed]
    total: Spread = reduce(merged_spread, job.wait(parts))
    for name, n, square in zip(values, total.n, total.squares, strict=True):
        if n == 0 and name in numbers:
            raise InputError(f"{job.spec.input.url}: column {name!r} has no finite value; put it into params.drop")
        if not np.isfinite(square):
            raise InputError(f"{job.spec.input.url}: column {name!r} has values too large to square; scale it down")
    return total


def _encoded(
    job: Job, placed: list[tuple[Any, int]], encoder: Encoder, target: Target | None, split: Split
) -> tuple[NDArray[np.int64], Half, Half]:
    """Encode and split every partition on its worker; return four counts of each (4, partitions), and both halves."""
    encode, member = dask.delayed(tasks.encode, pure=False), dask.delayed(tasks.member, pure=False)
    # One graph, in which a partition's arrays follow upon its encoding: what is encoded does not wait in memory.
    told = dask.delayed(encoder), dask.delayed(target), dask.delayed(split)
    parts = [encode(*each, *told) for each in placed]
    names = [(half, name) for half in ("train", "test") for name in ("X", "y", "rows")]
    arrays = [member(part, *name) for part in parts for name in names]
    counts = [dask.delayed(tasks.counts, pure=False)(part) for part in parts]
    futures = job.client.compute([*counts, *arrays], sync=False)
    found = job.wait(futures[: len(parts)])
    sizes = np.array([of_part for of_part, _ in found]).T
    _check_extremes(job, encoder, target, [extremes for _, extremes in found])
    halves = []
    for place, n in ((0, sizes[0]), (3, sizes[1])):
        X, y, rows = (futures[len(parts) + place + column :: len(names)] for column in range(3))
        halves.append(Half(X, y, rows, n.tolist()))
    return sizes, halves[0], halves[1]


def _check_extremes(job: Job, encoder: Encoder, target: Target | None, extremes: Sequence[NDArray[np.float64]]) -> None:
    """Refuse a value, of whatever row, with which a prediction or its square would not be a number any more."""
    names = (*encoder.numbers, target.name if target is not None else "")
    limits = [_LARGEST_SCALED if encoder.is_standardised else _LARGEST] * len(encoder.numbers) + [_LARGEST]
    for of_part in extremes:
        for place in np.flatnonzero(np.abs(of_part) > limits).tolist():
            value = encoder.original(place, of_part[place]) if place < len(encoder.numbers) else of_part[place]
            raise InputError(
                f"{job.spec.input.url}: column {names[place]!r} has values too large to square, such as {value:g}; "
                "scale it down or remove such rows"
            )


# Far below the end of float64, for the squares of sums of products; where a network may see the values, of float32.
_LARGEST, _LARGEST_SCALED = 1e100, 1e30


def _check_unchanged(job: Job, table: Table) -> None:
    """Refuse an input that is another than at the first pass: its profile would not be that of its rows."""
    url = job.spec.input.url
    now = {file.url: (file.size, file.etag) for file in storage.list_files(url)}
    for file in table.files:
        if now.get(file.url) != (file.size, file.etag):
            raise InputError(f"{file.url}: changed while it was read; run the job again when it is complete")


def write_rows(job: Job, half: Half, folder: str, columns: Callable[..., Any], *args: Any) -> None:
    """Write ``columns(X, y, *args) -> dict`` of each partition's rows as Parquet, from the workers.

    A first column `row` holds global row numbers. Empty partitions write nothing.
    """
    chosen = [arrays for *arrays, n in zip(*half, strict=True) if n]
    names = [f"{folder}/part-{number:05d}.parquet" for number in range(len(chosen))]
    shared = [job.share(each, len(chosen)) for each in args]
    futures = [
        job.client.submit(tasks.write, *arrays, job.artifact_url(name), columns, shared, pure=False)
        for arrays, name in zip(chosen, names, strict=True)
    ]
    for name, (size, sha256) in zip(names, job.wait(futures, unit="files"), strict=True):
        job.add_file(name, size, sha256)


def regression_metrics(sums: Sequence[RegressionSums]) -> dict[str, float | int | str]:
    """R², root mean squared and mean absolute error, of partitions together."""
    n, squares, absolute, y, y_squares = (float(sum(column)) for column in zip(*sums, strict=True))
    variation = y_squares - y * y / n
    return {
        "r2": 1 - squares / variation if variation > 0 else float(squares == 0),
        "rmse": math.sqrt(squares / n),
        "mae": absolute / n,
    }


def check_names(url: str, columns: Sequence[str], named: Sequence[tuple[str, str]]) -> None:
    """Raise an InputError where a param (key, name) names a column that is not there."""
    for key, name in named:
        if name not in columns:
            close = difflib.get_close_matches(name, columns, n=3) or list(columns[:5])
            raise InputError(
                f"{url}: no column {name!r} among {len(columns)} such as {', '.join(map(repr, close))}; correct {key}"
            )


def _features(url: str, columns: Sequence[str], params: Any, target: str | None) -> tuple[str, ...]:
    named = [("params.target", target)] if target else []
    for key in ("features", "drop", "categorical"):
        named += [(f"params.{key}", name) for name in getattr(params, key) or ()]
    check_names(url, columns, named)
    chosen = params.features if params.features is not None else columns
    features = tuple(name for name in chosen if name != target and name not in params.drop)
    if not features:
        raise InputError(f"{url}: no columns are left to learn from; correct params.features or params.drop")
    return features


def _kinds(job: Job, loaded: Loaded) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    numbers: list[str] = []
    categories: dict[str, tuple[str, ...]] = {}
    for name in loaded.features:
        column = loaded.profile.columns[name]
        if not column.n_texts and name not in job.params.categorical:
            numbers.append(name)
            continue
        if has_too_many(column) or len(column.values) > job.params.max_categories:
            raise InputError(
                f"{job.spec.input.url}: column {name!r} has more than {job.params.max_categories} distinct values; "
                "put it into params.drop or raise params.max_categories"
            )
        categories[name] = tuple(_sorted(column.values))
        if column.n_missing and MISSING not in categories[name]:
            categories[name] += (MISSING,)
    return tuple(numbers), categories


def _sorted(values: Any) -> list[str]:
    """Numbers by size, then text by alphabet."""

    def order(value: str) -> tuple[int, float, str]:
        try:
            return 0, float(value), value
        except ValueError:
            return 1, 0.0, value

    return sorted(values, key=order)


def _example(column: Any) -> str:
    return column.first_text if column.first_text is not None else next(iter(column.values), "")
