"""Recommends items to users by matrix factorisation: alternating least squares on ratings or on implicit feedback.

Interactions are read in partitions and shuffled once into blocks of users and blocks of items, which stay on the
workers; factors, metrics and samples are all that moves after that. Runs as the pipeline `recommender`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs import storage
from jobs.errors import InputError
from jobs.estimators.als import ExplicitALS, ImplicitALS
from jobs.estimators.als_blocks import InteractionBlocks
from jobs.estimators.ranking import total
from jobs.job import Evaluation, Job
from jobs.pipelines import recommender_tasks as tasks
from jobs.readers import interaction_blocks, interactions
from jobs.readers.interaction_blocks import BlockCounts, Rules
from jobs.report.sections import Curves, Note, Table
from jobs.spec.recommender import RecommenderParams

Floats = NDArray[np.float64]

_REGULARIZATION = {"explicit": 14.0, "implicit": 30.0}
# Blocks above the number of threads leave work for workers that come later; their square is the shuffle's tasks.
_ROWS_PER_BLOCK = 1_000_000
_MOST_BLOCKS = 64
_FAN_IN = 16
_N_SAMPLES = 8


@dataclass(frozen=True)
class Loaded:
    """Partitions of interactions on the workers."""

    partitions: list[Any]
    n_rows: int
    n_dropped: int


@dataclass(frozen=True)
class Prepared:
    """Interactions in blocks on the workers: train in both orientations, test by user; and the sorted ids."""

    train: InteractionBlocks
    test: list[Any]
    user_ids: Any
    item_ids: Any
    rating_bounds: tuple[float, float]
    counts: dict[str, int]


def load(job: Job) -> Loaded:
    """Read the partitions on the workers."""
    params: RecommenderParams = job.params
    columns = interactions.Columns(
        params.user_column, params.item_column, params.rating_column, params.timestamp_column, params.columns
    )
    given = job.spec.input
    parts = _parts(job, given.url, columns, is_test=False)
    if given.test_url is not None:
        parts += _parts(job, given.test_url, columns, is_test=True)
    is_implicit = params.mode == "implicit"
    partitions = [
        job.client.submit(interactions.read, part, columns, is_implicit=is_implicit, pure=False) for part in parts
    ]
    sizes: list[tasks.Size] = job.map(tasks.size, partitions)
    _check_times(params.timestamp_column, parts, sizes)
    n_rows, n_dropped = sum(size.n_rows for size in sizes), sum(size.n_dropped for size in sizes)
    if n_dropped:
        job.log.warning("%d rows without user, item or rating dropped", n_dropped)
    if n_rows == 0:
        raise InputError(f"{given.url}: no interactions ({n_dropped} rows dropped); put data there")
    job.n_rows = n_rows
    return Loaded(partitions, n_rows, n_dropped)


def prepare(job: Job, loaded: Loaded) -> Prepared:
    """Give ids their codes, shuffle into blocks of users, split, and make the blocks of items."""
    params: RecommenderParams = job.params
    user_ids, item_ids = (_union(job, loaded.partitions, name) for name in ("user_ids", "item_ids"))
    n_users, n_items = job.map(len, [user_ids, item_ids], unit="id sets")
    for name in ("k", "top_n"):
        if getattr(params, name) > n_items:
            raise InputError(
                f"{job.spec.input.url}: {n_items} items, but params.{name} is {getattr(params, name)}; "
                f"set it to {n_items} or less"
            )
    n_threads = sum(job.client.nthreads().values())
    n_blocks = min(n_users, _MOST_BLOCKS, max(n_threads, math.ceil(loaded.n_rows / _ROWS_PER_BLOCK)))
    fraction = None if job.spec.input.test_url is not None else params.test_fraction
    rules = Rules(n_users, n_items, n_blocks, params.duplicates, fraction, params.seed, job.trial)
    blocks = _user_blocks(job, loaded.partitions, user_ids, item_ids, rules)
    counted = job.map(operator.getitem, blocks, 2, unit="blocks")
    counts = BlockCounts(*(sum(column) for column in zip(*counted, strict=True)))
    _check_split(job, counts)
    loaded.partitions.clear()  # the blocks hold it all now; workers need not keep both
    train, test = ([job.client.submit(operator.getitem, block, at, pure=False) for block in blocks] for at in range(2))
    matrix = InteractionBlocks.from_user_blocks(train, n_users, n_items, job.client)
    bounds = job.map(tasks.bounds, matrix.by_item, unit="blocks")
    return Prepared(
        matrix,
        test,
        user_ids,
        item_ids,
        (min(low for low, _ in bounds), max(high for _, high in bounds)),
        {"n_users": n_users, "n_items": n_items, "n_dropped": loaded.n_dropped, **counts._asdict()},
    )


def fit(job: Job, prepared: Prepared) -> ExplicitALS | ImplicitALS:
    """Alternate between users and items."""
    params: RecommenderParams = job.params
    regularization = params.regularization or _REGULARIZATION[params.mode]
    model: ExplicitALS | ImplicitALS
    if params.mode == "explicit":
        model = ExplicitALS(
            params.rank,
            regularization=regularization,
            bias_regularization=params.bias_regularization,
            n_iterations=params.n_iterations,
            seed=params.seed,
        )
    else:
        model = ImplicitALS(
            params.rank,
            alpha=params.alpha,
            regularization=regularization,
            n_iterations=params.n_iterations,
            n_cg_steps=params.n_cg_steps,
            seed=params.seed,
        )
    return model.fit(
        prepared.train,
        client=job.client,
        on_iteration=lambda done, of, objective: job.progress(done, of, "iterations"),
    )


def evaluate(job: Job, prepared: Prepared, model: ExplicitALS | ImplicitALS) -> Evaluation:
    """Rank all unseen items for every user; where ratings are predicted, compare with those set aside."""
    params: RecommenderParams = job.params
    ours, popular = _metrics(job, prepared, model)
    metrics: dict[str, float | int | str] = {
        **ours,
        **{f"baseline_{name}": value for name, value in popular.items()},
        **prepared.counts,
    }
    return Evaluation(
        headline="rmse" if params.mode == "explicit" else f"ndcg@{params.k}",
        metrics=metrics,
        sections=[
            Table(
                "Model and baseline",
                ["metric", "model", "baseline"],
                [[name, ours[name], popular[name]] for name in ours],
            ),
            Note(
                "How it was measured",
                f"{prepared.counts['n_test']} interactions set aside, every item a candidate but those the user was "
                "trained on. The baseline ranks items by their number of interactions and predicts the mean rating.",
            ),
            Curves(
                "Objective",
                "iteration",
                "penalised squared error",
                {"train": [(i, value) for i, value in enumerate(model.objective_, start=1)]},
            ),
            _samples(job, prepared, model),
        ],
    )


def write(job: Job, prepared: Prepared, model: ExplicitALS | ImplicitALS, evaluation: Evaluation) -> None:
    """Write recommendations and factors, each block from its worker, and model.json."""
    params: RecommenderParams = job.params
    files: dict[str, tuple[Any, ...]] = {}
    n_blocks = len(prepared.test)
    for b, (users, train, test) in enumerate(
        zip(model.user_vectors_, prepared.train.by_user, prepared.test, strict=True)
    ):
        name = f"recommendations/part-{b:05d}.parquet"
        files[name] = (
            tasks.recommendations, users, model.item_vectors_, train, test, prepared.user_ids, prepared.item_ids,
            (b, n_blocks), params.top_n, model.mean_,
        )  # fmt: skip
        name = f"user_factors/part-{b:05d}.parquet"
        files[name] = (tasks.factors, users, prepared.user_ids, (b, n_blocks), params.rank, params.rank)
    # Items' vectors are (q, 1, b): the bias stands behind the one that meets the user's.
    files["item_factors.parquet"] = (
        tasks.factors, model.item_vectors_, prepared.item_ids, (0, 1), params.rank, params.rank + 1
    )  # fmt: skip
    futures = [
        job.client.submit(tasks.written, job.artifact_url(name), *task, pure=False) for name, task in files.items()
    ]
    for name, (size, sha256) in zip(files, job.wait(futures, "files"), strict=True):
        job.add_file(name, size, sha256)
    low, high = prepared.rating_bounds
    job.write_json(
        "model.json",
        {
            "model": type(model).__name__,
            "params": params.model_dump(mode="json") | {"regularization": model.regularization},
            "mean": model.mean_,
            "lowest_rating": low,
            "highest_rating": high,
            "score": "mean + user bias + item bias + dot product of the factors; without biases, the dot product",
            "objective": model.objective_,
        },
    )


def _parts(job: Job, url: str, columns: interactions.Columns, *, is_test: bool) -> list[interactions.Part]:
    """Cut the files at a URL into parts; of a folder, format auto takes the files whose names tell their format."""
    files = storage.list_files(url)
    if job.spec.input.format == "auto":
        files = [file for file in files if file.url.lower().endswith(tuple(interactions.FORMATS))] or files
    formats = [interactions.format_of(file.url, job.spec.input.format) for file in files]
    job.record_input(files)
    planned = job.wait(
        [
            job.client.submit(interactions.plan, file, format, columns, job.params.partition_bytes, is_test, pure=False)
            for file, format in zip(files, formats, strict=True)
        ],
        "files",
    )
    return [part for of_file in planned for part in of_file]


def _check_times(column: str | None, parts: Sequence[interactions.Part], sizes: Sequence[tasks.Size]) -> None:
    """Refuse times of which nobody knows how they compare; those of a test set of its own are compared among them."""
    firsts: dict[tuple[bool, str], str] = {}
    for part, size in zip(parts, sizes, strict=True):
        if size.time_kind is not None:
            firsts.setdefault((part.is_test, size.time_kind), part.url)
    for is_test in (False, True):
        dates, numbers = (firsts.get((is_test, kind)) for kind in ("dates", "numbers"))
        if dates is not None and numbers is not None:
            raise InputError(
                f"{dates}: column {column!r} has dates, but numbers in {numbers}; "
                "write all times in one way, or set params.timestamp_column to null"
            )


def _user_blocks(job: Job, partitions: Sequence[Any], user_ids: Any, item_ids: Any, rules: Rules) -> list[Any]:
    """Shuffle partitions into blocks of users: each group of partitions is cut, each block put together."""
    submit, n_blocks = job.client.submit, rules.n_blocks
    hashes = [submit(interaction_blocks.id_hashes, ids, pure=False) for ids in (user_ids, item_ids)]
    numbered = list(enumerate(partitions))
    per_group = math.ceil(len(numbered) / n_blocks)
    groups = [numbered[start : start + per_group] for start in range(0, len(numbered), per_group)]
    cuts = [submit(interaction_blocks.cut, group, user_ids, item_ids, n_blocks, pure=False) for group in groups]
    blocks = []
    for b in range(n_blocks):
        pieces = [submit(operator.getitem, cut, b, pure=False) for cut in cuts]
        blocks.append(submit(interaction_blocks.user_block, pieces, b, rules, *hashes, pure=False))
    return blocks


def _metrics(
    job: Job, prepared: Prepared, model: ExplicitALS | ImplicitALS
) -> tuple[dict[str, float], dict[str, float]]:
    """Metrics of the model and of the baseline, by the same names."""
    k, submit = job.params.k, job.client.submit
    popularity = submit(tasks.popularity, prepared.train.by_item, prepared.train.n_items, pure=False)
    common = (model.item_vectors_, popularity)
    measured: list[tasks.Measured] = job.wait(
        [
            submit(tasks.measure, users, *common, train, test, k, model.mean_, prepared.rating_bounds, pure=False)
            for users, train, test in zip(model.user_vectors_, prepared.train.by_user, prepared.test, strict=True)
        ],
        "blocks",
    )
    ours = total([m.ranking for m in measured]).metrics(k)
    popular = total([m.popular for m in measured]).metrics(k)
    if job.params.mode == "explicit":
        ours = tasks.error_metrics([m.errors for m in measured], prepared.counts["n_test"]) | ours
        popular = tasks.error_metrics([m.mean_errors for m in measured], prepared.counts["n_test"]) | popular
    return ours, popular


def _samples(job: Job, prepared: Prepared, model: ExplicitALS | ImplicitALS) -> Table:
    """The first users' recommendations, for the report."""
    n_blocks = len(prepared.test)
    n = min(_N_SAMPLES, prepared.train.n_users)
    tables = job.wait(
        [
            job.client.submit(
                tasks.recommendations, users, model.item_vectors_, train, test, prepared.user_ids, prepared.item_ids,
                (b, n_blocks), min(job.params.top_n, 5), model.mean_, len(range(b, n, n_blocks)), pure=False,
            )
            for b, (users, train, test) in enumerate(
                zip(model.user_vectors_[:n], prepared.train.by_user, prepared.test, strict=False)
            )
        ],
        "blocks",
    )  # fmt: skip
    lists: dict[Any, list[str]] = {}
    for row in pa.concat_tables(tables).to_pylist():
        lists.setdefault(row["user"], []).append(f"{row['item']} ({row['score']:.2f})")
    rows = [[user, ", ".join(lists[user])] for user in sorted(lists)]
    return Table("Sample of recommendations", ["user", "items (score)"], rows)


def _union(job: Job, partitions: Sequence[Any], name: str) -> Any:
    """Future of all ids, sorted: a tree of unions on the workers."""
    level = [job.client.submit(tasks.ids_of, partition, name, pure=False) for partition in partitions]
    while True:
        groups = [level[start : start + _FAN_IN] for start in range(0, len(level), _FAN_IN)]
        level = [job.client.submit(interactions.union, group, pure=False) for group in groups]
        if len(level) == 1:
            return level[0]


def _check_split(job: Job, counts: BlockCounts) -> None:
    url = job.spec.input.url
    if counts.n_duplicates:
        job.log.warning("%d repeated ratings settled by params.duplicates", counts.n_duplicates)
    if counts.n_single_users:
        job.log.warning("%d users have one rating; it is trained on, not tested", counts.n_single_users)
    if counts.n_test == 0:
        raise InputError(
            f"{url}: params.test_fraction {job.params.test_fraction:g} sets no rating aside, since no user has enough; "
            "raise it or give more interactions a user"
        )
    if counts.n_train == 0:
        raise InputError(f"{url}: nothing left to train on; put interactions there")
