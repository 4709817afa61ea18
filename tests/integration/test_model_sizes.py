"""Is what workers are given right at every size, and what a fit learns with it?

Dask treats values differently by their size, and so do we. A value that is lost on the way makes a fit wait for ever,
so these tests have a timeout; one that is taken for another makes the fit wrong, so they compare values.
"""

from __future__ import annotations

import os
import pickle
import signal
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from distributed import Client, Future, LocalCluster, wait
from scipy import sparse

import jobs
from jobs import runner, sharing
from jobs.estimators import (
    NMF,
    ExplicitALS,
    ImplicitALS,
    InteractionBlocks,
    KMeans,
    LinearSVM,
    LogisticRegression,
    MLPClassifier,
    TfidfVectorizer,
    als,
)
from jobs.estimators.blocks import OnWorkers
from jobs.estimators.blocks import runner as runner_of
from jobs.spec import parse
from tests.threads import threads

pytestmark = [pytest.mark.timeout(120), pytest.mark.slow]

# Bytes on both sides of every limit: Dask's for keywords, ours for what travels with each task.
SIZES = [0, 1, 10_000, 99_000, 100_001, 150_000, 1 << 18, (1 << 18) + 1, 1_000_000, 10_000_000]


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A client of two worker processes of this module's own: what it hunts for makes a scheduler useless."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        yield client


class Opaque:
    """What Dask takes for 48 bytes, whatever it holds."""

    def __init__(self, content: bytes) -> None:
        self.content = content


def array(n_bytes: int, mark: int) -> Any:
    return np.full(n_bytes // 8, float(mark))


def text(n_bytes: int, mark: int) -> Any:
    return str(mark) * n_bytes


def words(n_bytes: int, mark: int) -> Any:
    return [f"{mark}-{number:0998d}" for number in range(n_bytes // 1_000)]


def table(n_bytes: int, mark: int) -> Any:
    return {f"{number:0998d}": mark for number in range(n_bytes // 1_000)}


def arrow(n_bytes: int, mark: int) -> Any:
    return pa.array(words(n_bytes, mark), pa.large_string())


def opaque(n_bytes: int, mark: int) -> Any:
    return Opaque(bytes([mark]) * n_bytes)


def bound(n_bytes: int, mark: int) -> Any:
    return partial(array, array(n_bytes, mark))


KINDS = [array, text, words, table, arrow, opaque, bound]


def checksum(value: Any) -> int:
    """The same for equal values in every process."""
    match value:
        case Opaque():
            return zlib.crc32(value.content)
        case partial():
            return checksum(value.args[0])
        case pa.Array():
            return zlib.crc32(pickle.dumps(value.to_pylist()))
        case np.ndarray():
            return zlib.crc32(value.tobytes())
        case _:
            return zlib.crc32(repr(value).encode())


def told(row: int, key: Any = None, workers: Any = None, **more: Any) -> tuple[int, ...]:
    """Row, and checksums of what came by keywords; `key` and `workers` are also names of Dask's own."""
    return row, *(checksum(value) for value in (key, workers, *more.values()) if value is not None)


@pytest.mark.parametrize("n_bytes", SIZES)
@pytest.mark.parametrize("make", KINDS, ids=lambda kind: kind.__name__)
def test_a_keyword_of_any_size_and_kind_has_its_value_in_every_pass(
    make: Callable[[int, int], Any], n_bytes: int, client: Client
) -> None:
    run = OnWorkers(client)
    rows = client.map(int, range(3), pure=False)
    values = [make(n_bytes, mark) for mark in range(1, 4)]
    sums = [checksum(value) for value in values]
    # All at once, with the keyword of one name: as it is, and shared first.
    plain = [run.map(told, rows, key=value, new=np.ones(2)) for value in values]
    shared = [run.map(told, rows, workers=run.share(value)) for value in values]
    ones = checksum(np.ones(2))
    for expected, passed in zip(sums, plain, strict=True):
        assert run.gather(passed) == [(row, expected, ones) for row in range(3)]
    for expected, passed in zip(sums, shared, strict=True):
        assert run.gather(passed) == [(row, expected) for row in range(3)]
    # One after another, when the one before has been let go.
    del plain, shared, passed
    for value, expected in zip(values, sums, strict=True):
        assert run.gather(run.map(told, rows, key=value)) == [(row, expected) for row in range(3)]
    # In what a function holds, and among futures in a list.
    first, last = values[0], values[-1]
    assert run.gather(run.map(partial(told, key=first), rows, new=last)) == [(n, sums[0], sums[-1]) for n in range(3)]
    pairs = run.map(total, [[one, one] for one in rows], offset=[rows[2], 1])
    assert run.gather(pairs) == [3, 5, 7]


def total(row: list[int], offset: list[int]) -> int:
    return sum(row) + sum(offset)


def test_an_object_that_dask_takes_for_small_does_not_travel_with_each_task(client: Client) -> None:
    run = OnWorkers(client)
    assert isinstance(run.share(opaque(1_000_000, 1)), Future)
    assert not isinstance(run.share(opaque(1_000, 1)), Future)
    # Nor does one that is small, where there are tasks enough.
    assert isinstance(sharing.share(client, array(200_000, 1), 1_000), Future)


def test_nothing_goes_past_the_place_that_shares_values() -> None:
    sources = [path for path in Path(jobs.__file__).parent.rglob("*.py") if "client.map(" in path.read_text()]
    assert [path.name for path in sources] == ["sharing.py"]


def test_what_was_shared_is_let_go(client: Client) -> None:
    run = OnWorkers(client)
    rows = client.map(int, range(3), pure=False)
    run.gather(run.map(told, rows, key=array(1_000_000, 1), new=run.share(array(2_000_000, 2))))
    del rows
    deadline = time.monotonic() + 30
    while client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)):
        assert time.monotonic() < deadline, "tasks are left"
        time.sleep(0.05)


def test_what_was_shared_is_made_again_when_its_worker_is_lost() -> None:
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        run = OnWorkers(client)
        value = run.share(array(1_000_000, 7))
        wait(value)
        [holder] = client.who_has([value])[value.key]
        os.kill(client.run(os.getpid, workers=[holder])[holder], signal.SIGKILL)
        found = run.gather(run.map(told, client.map(int, range(4), pure=False), key=value, new=array(150_000, 8)))
        assert found == [(row, checksum(array(1_000_000, 7)), checksum(array(150_000, 8))) for row in range(4)]


# --- estimators: two workers against none --------------------------------------------------------------------------

N_BLOCKS = 4


def dense(block: int, n_rows: int, n_columns: int) -> Any:
    random = np.random.default_rng(block)
    rows = random.normal(size=(n_rows, n_columns))
    rows[:, :3] += 20 * random.integers(0, 3, (n_rows, 1))
    return rows


def thin(block: int, n_rows: int, n_columns: int) -> Any:
    return sparse.random_array(
        (n_rows, n_columns), density=20 / n_columns, format="csr", rng=np.random.default_rng(block)
    )


def labels(block: int, n_rows: int, n_classes: int, length: int = 1) -> Any:
    """Names of classes, each class in each block; of so many characters."""
    names = np.array([str(number).rjust(length, "c") for number in range(n_classes)])
    return names[(np.arange(n_rows) + block) % n_classes]


def documents(block: int, n_terms: int) -> Any:
    """Documents of 50 words; each of the terms stands in two blocks."""
    terms = np.arange(n_terms)[(np.arange(n_terms) + block) % N_BLOCKS < 2]
    return [" ".join(f"w{term:07d}" for term in terms[at : at + 50]) for at in range(0, len(terms), 50)]


def ratings(block: int, n_rows: int, n_columns: int) -> Any:
    matrix = sparse.csr_matrix(thin(block, n_rows, n_columns))
    matrix.data += 1
    return matrix


def made(make: Callable[..., Any], *args: Any, client: Client | None) -> list[Any]:
    if client is None:
        return [make(block, *args) for block in range(N_BLOCKS)]
    return client.map(make, range(N_BLOCKS), *([arg] * N_BLOCKS for arg in args), pure=False)


def all_of(blocks: list[Any]) -> Any:
    found = runner_of(blocks).gather(blocks)
    return sparse.vstack(found).toarray() if sparse.issparse(found[0]) else np.concatenate(found)


def kmeans(k: int, p: int, n_init: int, client: Client | None) -> list[Any]:
    rows = made(dense, max(2 * k // N_BLOCKS, 6), p, client=client)
    model = KMeans(k, n_init=n_init, max_iter=2).fit(rows)
    return [model.cluster_centers_, model.inertia_, all_of(model.predict(rows))]


def linear(kind: Any, n_classes: int, p: int, length: int, client: Client | None) -> list[Any]:
    X, y = made(thin, 40, p, client=client), made(labels, 40, n_classes, length, client=client)
    model = kind(max_iter=2).fit(X, y)
    return [model.coef_, model.objective_, all_of(model.predict(X)) == all_of(y), all_of(model.decision_function(X))]


def nmf(p: int, client: Client | None) -> list[Any]:
    X = made(thin, 30, p, client=client)
    model = NMF(10, max_iter=2).fit(X)
    return [model.components_, model.reconstruction_err_, all_of(model.transform(X))]


def tfidf(n_terms: int, n_stop_words: int, client: Client | None) -> list[Any]:
    texts = made(documents, n_terms, client=client)
    model = TfidfVectorizer(stop_words=[f"w{term:07d}" for term in range(n_stop_words)])
    found, again = model.fit_transform(texts), model.transform(texts)
    assert len(model.vocabulary_) == n_terms - n_stop_words
    # Columns of the weights differ, as long as their sums by document and by term do.
    sums = [sum(np.asarray(x.sum(axis=0)) for x in runner_of(of).gather(of)) for of in (found, again)]
    return [model.idf_, model.document_frequency_, *sums]


def factors(kind: Any, n_items: int, client: Client | None) -> list[Any]:
    by_user = made(ratings, 20, n_items, client=client)
    blocks = InteractionBlocks.from_user_blocks(by_user, 20 * N_BLOCKS, n_items, client)
    model = kind(8, n_iterations=2).fit(blocks, client=client)
    return [model.user_factors_, model.item_factors_, model.objective_]


def network(p: int, hidden: tuple[int, ...], length: int, client: Client | None) -> list[Any]:
    X, y = made(dense, 16, p, client=client), made(labels, 16, 3, length, client=client)
    model = MLPClassifier(hidden, max_iter=1, batch_size=64, micro_batch_size=16).fit(X, y)
    return [*model.coefs_, model.loss_curve_, all_of(model.predict_proba(X)), all_of(model.predict(X)) == all_of(y)]


# What the comments say is the size of the largest value that is shared.
FITS: dict[str, Callable[[Client | None], list[Any]]] = {
    "KMeans, 10 kB": partial(kmeans, 8, 150, 1),
    "KMeans, 100 × 74": partial(kmeans, 100, 74, 3),
    "KMeans, 300 × 30": partial(kmeans, 300, 30, 1),
    "KMeans, 3 × 1,300": partial(kmeans, 3, 1_300, 3),
    "KMeans, 8 × 400": partial(kmeans, 8, 400, 3),
    "KMeans, 8 × 600": partial(kmeans, 8, 600, 3),
    "KMeans, 8 × 1,300": partial(kmeans, 8, 1_300, 3),
    "KMeans, 10 MB": partial(kmeans, 8, 160_000, 1),
    "LogisticRegression, 10 kB": partial(linear, LogisticRegression, 10, 130, 1),
    "LogisticRegression, 10 × 1,300": partial(linear, LogisticRegression, 10, 1_300, 1),
    "LogisticRegression, 16,000 weights": partial(linear, LogisticRegression, 2, 16_000, 1),
    "LogisticRegression, 10 MB": partial(linear, LogisticRegression, 10, 130_000, 1),
    "LogisticRegression, classes of 200 kB": partial(linear, LogisticRegression, 3, 100, 16_000),
    "LogisticRegression, classes of 1 MB": partial(linear, LogisticRegression, 3, 100, 80_000),
    "LinearSVM, 10 kB": partial(linear, LinearSVM, 10, 130, 1),
    "LinearSVM, 16,000 weights": partial(linear, LinearSVM, 2, 16_000, 1),
    "LinearSVM, 200 kB": partial(linear, LinearSVM, 10, 2_500, 1),
    "LinearSVM, 10 MB": partial(linear, LinearSVM, 10, 130_000, 1),
    "NMF, 70 columns": partial(nmf, 70),
    "NMF, 700 columns": partial(nmf, 700),
    "NMF, 1,000 columns": partial(nmf, 1_000),
    "NMF, 2,000 columns": partial(nmf, 2_000),
    "NMF, 10 MB": partial(nmf, 70_000),
    "TfidfVectorizer, 1,000 terms": partial(tfidf, 1_000, 0),
    "TfidfVectorizer, 7,700 terms": partial(tfidf, 7_700, 0),
    "TfidfVectorizer, 14,000 terms": partial(tfidf, 14_000, 0),
    "TfidfVectorizer, 20,000 terms": partial(tfidf, 20_000, 0),
    "TfidfVectorizer, 10 MB": partial(tfidf, 600_000, 0),
    "TfidfVectorizer, 12,000 stop words": partial(tfidf, 13_000, 12_000),
    "TfidfVectorizer, 40,000 stop words": partial(tfidf, 41_000, 40_000),
    "ExplicitALS, 10 kB": partial(factors, ExplicitALS, 150),
    "ExplicitALS, 200 kB": partial(factors, ExplicitALS, 3_000),
    "ExplicitALS, 10 MB": partial(factors, ExplicitALS, 150_000),
    "ImplicitALS, 200 kB": partial(factors, ImplicitALS, 3_000),
    "ImplicitALS, 10 MB": partial(factors, ImplicitALS, 150_000),
    "MLPClassifier, 10 kB": partial(network, 20, (100,), 1),
    "MLPClassifier, 200 kB": partial(network, 400, (100,), 16_000),
    "MLPClassifier, 10 MB": partial(network, 1_000, (1_600, 500), 1),
}


@pytest.mark.parametrize("name", FITS)
def test_a_model_of_any_size_is_the_same_on_two_workers_as_on_none(
    name: str, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(als, "_SMALL", 0)  # else one worker alone would do it
    fit = FITS[name]
    for found, expected in zip(fit(client=client), fit(client=None), strict=True):
        scale = max(float(np.abs(expected).max()), 1e-300)
        np.testing.assert_allclose(np.asarray(found) / scale, np.asarray(expected) / scale, rtol=0, atol=1e-9)


@pytest.mark.parametrize("n_columns", [200, 2_000, 8_000])
def test_what_is_predicted_later_is_of_its_own_model(n_columns: int, client: Client) -> None:
    rows = np.concatenate([dense(block, 20, n_columns) for block in range(N_BLOCKS)])
    y = np.arange(len(rows)) % 10
    models = [KMeans(10, max_iter=1, init=rows[first : first + 10]).fit(rows) for first in (0, 40)]
    models += [LogisticRegression(max_iter=1, C=c).fit(sparse.csr_array(rows), y) for c in (1e-3, 1.0)]
    models += [NMF(10, max_iter=1, seed=seed).fit(np.abs(rows)) for seed in (0, 1)]
    lazy = da.from_array(np.abs(rows), chunks=(20, -1))
    later = [model.transform(lazy) if isinstance(model, NMF) else model.predict(lazy) for model in models]
    for model, found in zip(models, client.gather(client.compute(later)), strict=True):
        expected = model.transform(np.abs(rows)) if isinstance(model, NMF) else model.predict(np.abs(rows))
        np.testing.assert_allclose(found, expected, rtol=1e-9)


# --- pipelines: two workers against one ------------------------------------------------------------------------------


def put_table(path: Path, n_rows: int, n_columns: int) -> str:
    random = np.random.default_rng(0)
    frame = pd.DataFrame(random.normal(size=(n_rows, n_columns)), columns=[f"c{n}" for n in range(n_columns)])
    frame["y"] = frame.iloc[:, :3].sum(axis=1) + random.normal(size=n_rows)
    frame["k"] = [f"key {number % (n_rows // 2)}" for number in range(n_rows)]
    frame.round(4).to_csv(path / "t.csv", index=False)
    return str(path / "t.csv")


def put_texts(path: Path, n_terms: int) -> str:
    frame = pd.DataFrame({"text": [text for block in range(N_BLOCKS) for text in documents(block, n_terms)]})
    frame["label"] = [f"class {number % 3}" for number in range(len(frame))]
    frame.to_csv(path / "t.csv", index=False)
    return str(path / "t.csv")


def put_ratings(path: Path, n_items: int) -> str:
    pairs = np.random.default_rng(0).choice(300 * n_items, 5 * n_items, replace=False)
    frame = pd.DataFrame({"user_id": pairs % 300, "item_id": pairs // 300, "rating": pairs % 5 + 1})
    frame.to_csv(path / "t.csv", index=False)
    return str(path / "t.csv")


JOBS: dict[str, tuple[str, Callable[[Path], str], dict[str, Any]]] = {
    "kmeans, 100 × 74": (
        "kmeans",
        partial(put_table, n_rows=400, n_columns=74),
        {"n_clusters": 100, "n_init": 1, "max_iter": 2, "drop": ["k", "y"]},
    ),
    "kmeans, 10 × 1,500": (
        "kmeans",
        partial(put_table, n_rows=40, n_columns=1_500),
        {"n_clusters": 10, "n_init": 1, "max_iter": 2, "drop": ["k", "y"]},
    ),
    "text_mining, 14,000 terms": (
        "text_mining",
        partial(put_texts, n_terms=14_000),
        {"label_column": "label", "n_topics": 3, "topic_iterations": 2, "max_iter": 2, "partition_mib": 0.1},
    ),
    "recommender, 3,000 items": (
        "recommender",
        partial(put_ratings, n_items=3_000),
        {"rank": 8, "n_iterations": 2, "partition_bytes": 65_536},
    ),
    "linear_regression, 300 columns": (
        "linear_regression",
        partial(put_table, n_rows=800, n_columns=300),
        {"target": "y", "drop": ["k"]},
    ),
    "neural_network, 300 × 500": (
        "neural_network",
        partial(put_table, n_rows=300, n_columns=300),
        {"target": "y", "drop": ["k"], "hidden": [500], "epochs": 1},
    ),
    "group_by, 10,000 groups": (
        "group_by",
        partial(put_table, n_rows=20_000, n_columns=5),
        {"by": ["k"], "aggregates": {"c0": ["mean", "std"], "c1": ["sum"], "y": ["max"]}},
    ),
}
# What tells how a job ran, not what it found.
HOW = {"rows_per_s", "goodput", "world_size"}


@pytest.mark.parametrize("name", JOBS)
def test_a_wide_job_is_the_same_on_two_workers_as_on_one(name: str, client: Client, tmp_path: Path) -> None:
    pipeline, put, params = JOBS[name]
    if pipeline in ("kmeans", "linear_regression", "neural_network", "group_by"):
        params = {**params, "blocksize_mb": 0.4}
    url = put(tmp_path)

    def metrics(number: int, client: Client) -> dict[str, Any]:
        job = {"pipeline": pipeline, "input": url, "output": str(tmp_path / f"runs{number}"), "params": params}
        return dict(runner.run(parse(job), client=client).manifest.metrics)

    found = metrics(2, client)
    with threads(1) as alone:
        expected = metrics(1, alone)
    assert found.keys() == expected.keys()
    for each in found.keys() - HOW:
        assert found[each] == pytest.approx(expected[each], rel=1e-7, abs=1e-9), each
