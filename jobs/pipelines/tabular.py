"""What the pipelines on tables share: finding the columns, encoding partitions on the workers, writing predictions."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import dask
import dask.array as da
import numpy as np
import pyarrow as pa
from distributed import Future

from jobs.artifacts import put_table
from jobs.errors import InputError, SpecError
from jobs.job import Job
from jobs.readers.table_encoding import MISSING, Encoded, Encoder, Split, Spread, Target, encode, merged_spread, spread
from jobs.readers.table_profile import Profile, check_kind, has_too_many, merged, profile
from jobs.readers.tables import Table, open_table


@dataclass(frozen=True)
class Loaded:
    """A table whose partitions are on the workers: the columns to use, their profile, each partition's first row."""

    table: Table
    features: tuple[str, ...]
    partitions: list[Future]
    profile: Profile

    @property
    def starts(self) -> list[int]:
        """Global number of each partition's first row."""
        return [0, *np.cumsum(self.profile.lengths).tolist()[:-1]]


@dataclass(frozen=True)
class Prepared:
    """Encoded partitions on the workers (futures of `Encoded`), their row counts, and what was done to them."""

    encoder: Encoder
    target: Target | None
    parts: list[Future]
    n_train: list[int]
    n_test: list[int]
    counts: dict[str, int]

    def lengths(self, half: str) -> list[int]:
        """Rows of each partition's ``"train"`` or ``"test"`` half."""
        return self.n_train if half == "train" else self.n_test


def load(job: Job, target: str | None = None) -> Loaded:
    """Read the columns that the params name, on the workers, and profile them."""
    params, url = job.params, job.spec.input.url
    if job.spec.input.test_url is not None:
        raise SpecError(f"input.test_url: {job.spec.pipeline} reads one table; remove test_url")
    table = open_table(url, job.spec.input.format, int(params.blocksize_mb * 1e6))
    job.record_input(table.files)
    features = _features(url, table.columns, params, target)
    frame = table.frame([*features, *([target] if target else [])])
    partitions = job.client.compute(list(frame.to_delayed()), sync=False)
    most = max(params.max_categories, _MOST_CLASSES)
    valued = (*params.categorical, *([target] if target else []))
    found = merged(job.map(profile, partitions, most, valued), most)
    job.n_rows = found.n_rows
    if found.n_rows == 0:
        raise InputError(f"{url}: no rows below the header; put data there or correct the URL")
    for name, column in found.columns.items():
        if name not in params.categorical:
            check_kind(url, name, column)
        if name != target and column.n_missing == found.n_rows:
            raise InputError(f"{url}: column {name!r} has no values; put it into params.drop")
    return Loaded(table, features, partitions, found)


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
    split = Split(job.params.seed, test_fraction)
    total = _spread(job, loaded, numbers, target, split)
    deviations = np.sqrt(total.squares / np.maximum(total.n, 1))
    scales = np.where(deviations > 0, deviations, 1.0) if is_standardised else np.ones(len(numbers))
    encoder = Encoder(numbers, total.means, scales, categories, is_standardised, has_reference)
    if not encoder.names:
        raise InputError(f"{job.spec.input.url}: every column has one value only; add others to params.features")
    encoded = [
        job.client.submit(encode, part, start, encoder, target, split, pure=False)
        for part, start in zip(loaded.partitions, loaded.starts, strict=True)
    ]
    sizes = np.array(job.map(_sizes, encoded)).T
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
    return Prepared(encoder, target, encoded, sizes[0].tolist(), sizes[1].tolist(), counts)


def _spread(job: Job, loaded: Loaded, numbers: tuple[str, ...], target: Target | None, split: Split) -> Spread:
    """Mean and spread of columns of numbers; InputError where a column, or a target of numbers, has none."""
    names = numbers if target is None or target.classes else (*numbers, target.name)
    parts = [
        job.client.submit(spread, part, start, names, target, split, pure=False)
        for part, start in zip(loaded.partitions, loaded.starts, strict=True)
    ]
    total: Spread = reduce(merged_spread, job.wait(parts))
    for name, n, square in zip(names, total.n, total.squares, strict=True):
        if n == 0 and name in numbers:
            raise InputError(f"{job.spec.input.url}: column {name!r} has no finite value; put it into params.drop")
        if not np.isfinite(square):
            raise InputError(f"{job.spec.input.url}: column {name!r} has values too large to square; scale it down")
    return Spread(*(figures[: len(numbers)] for figures in total))


def arrays(prepared: Prepared, half: str) -> tuple[da.Array, da.Array]:
    """Return X (n, p) and y (n,) of ``"train"`` or ``"test"``: lazy arrays over the encoded partitions."""
    p = len(prepared.encoder.names)
    take = dask.delayed(_member, pure=False)
    rows, targets = [], []
    for part, n in zip(prepared.parts, prepared.lengths(half), strict=True):
        rows.append(da.from_delayed(take(part, half, "X"), (n, p), dtype=np.float64))
        targets.append(da.from_delayed(take(part, half, "y"), (n,), dtype=np.float64))
    return da.concatenate(rows), da.concatenate(targets)


def write_rows(job: Job, prepared: Prepared, half: str, folder: str, columns: Callable[..., Any], *args: Any) -> None:
    """Write ``columns(X, y, *args) -> dict`` of each partition's rows as Parquet, from the workers.

    A first column `row` holds global row numbers. Empty partitions write nothing.
    """
    chosen = [(part, n) for part, n in zip(prepared.parts, prepared.lengths(half), strict=True) if n]
    names = [f"{folder}/part-{number:05d}.parquet" for number in range(len(chosen))]
    futures = [
        job.client.submit(_write, part, half, job.artifact_url(name), columns, args, pure=False)
        for (part, _), name in zip(chosen, names, strict=True)
    ]
    for name, (size, sha256) in zip(names, job.wait(futures, unit="files"), strict=True):
        job.add_file(name, size, sha256)


def _features(url: str, columns: Sequence[str], params: Any, target: str | None) -> tuple[str, ...]:
    named = [("params.target", target)] if target else []
    for key in ("features", "drop", "categorical"):
        named += [(f"params.{key}", name) for name in getattr(params, key) or ()]
    for key, name in named:
        if name not in columns:
            close = difflib.get_close_matches(name, columns, n=3) or list(columns[:5])
            raise InputError(
                f"{url}: no column {name!r} among {len(columns)} such as {', '.join(map(repr, close))}; correct {key}"
            )
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


def _sizes(part: Encoded) -> tuple[int, int, int, int]:
    return len(part.train.y), len(part.test.y), part.n_dropped, part.n_imputed


def _member(part: Encoded, half: str, name: str) -> Any:
    return getattr(getattr(part, half), name)


def _write(part: Encoded, half: str, url: str, columns: Callable[..., Any], args: Any) -> tuple[int, str]:
    chosen = getattr(part, half)
    return put_table(url, pa.table({"row": chosen.rows, **columns(chosen.X, chosen.y, *args)}))
