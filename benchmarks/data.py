"""What the cases work on: real data sets from the catalogue, and made ones that are the same wherever they are made.

Each function fills an empty folder with files that every side can read.
"""

from __future__ import annotations

import io
import itertools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv
from scipy import sparse

from jobs import datasets, storage
from jobs.estimators.tfidf import TfidfVectorizer


def clusters(folder: Path, n: int = 500_000, p: int = 32, k: int = 16) -> None:
    """Make normal clusters that overlap so much that ten iterations from the first rows do not end the search."""
    random = np.random.default_rng(0)
    rows = random.normal(size=(k, p))[random.integers(0, k, n)] + random.normal(0, 1.5, (n, p))
    np.save(folder / "rows.npy", rows)
    np.save(folder / "start.npy", rows[:k])


def small_clusters(folder: Path) -> None:
    """Make what dask-ml gets through in seconds."""
    clusters(folder, n=50_000, p=20, k=10)


def line(folder: Path, n: int = 1_000_000, p: int = 50) -> None:
    """Make normal rows and a linear target with noise."""
    random = np.random.default_rng(1)
    rows = random.normal(size=(n, p))
    np.save(folder / "rows.npy", rows)
    np.save(folder / "target.npy", rows @ random.normal(size=p) + random.normal(size=n))


def bio(folder: Path) -> None:
    """Read KDD Cup 2004's proteins, 145,751 × 74, columns scaled to a deviation of 1."""
    frame = _frame("bio", "bio.parquet")
    rows = frame.drop(columns=["EXAMPLE_ID", "BLOCK_ID", "target"]).to_numpy(float)
    np.save(folder / "rows.npy", (rows - rows.mean(axis=0)) / np.maximum(rows.std(axis=0), 1e-9))
    np.save(folder / "target.npy", frame.target.to_numpy())


def newsgroups_weights(folder: Path) -> None:
    """Read 20 Newsgroups' training documents as TF-IDF weights, float64."""
    frame = _frame("20newsgroups", "train.parquet")
    weights = TfidfVectorizer().fit_transform(frame["text"])
    sparse.save_npz(folder / "rows.npz", sparse.csr_matrix(weights, dtype=np.float64))
    np.save(folder / "target.npy", frame["label"].to_numpy().astype(str))


def newsgroups_ten_times(folder: Path) -> None:
    """Read 20 Newsgroups' training documents ten times over."""
    documents = _frame("20newsgroups", "train.parquet")["text"].tolist() * 10
    (folder / "documents.json").write_text(json.dumps(documents))


def clicks(folder: Path, n: int = 700_000, n_users: int = 30_000, n_items: int = 10_000) -> None:
    """Make users and items of which few have much and many have little; no pair twice."""
    random = np.random.default_rng(0)
    users = (n_users * random.random(n) ** 2).astype(int)
    items = (n_items * random.random(n) ** 3).astype(int)
    matrix = sparse.csr_matrix((np.ones(n), (users, items)), shape=(n_users, n_items))
    matrix.data[:] = 1
    sparse.save_npz(folder / "interactions.npz", matrix)


def readings(folder: Path | str, n_bytes: float = 4e9) -> None:
    """Make readings.csv: station, quality (sometimes missing), 20 readings, and a level that follows from some of them.

    `folder` is any storage URL. A million rows are made and written again and again: nothing here grows with the size.
    """
    blocks = [_readings(block) for block in range(20)]
    n_written = 0
    with fsspec.open(storage.join(str(folder), "readings.csv"), "wb") as file:
        file.write(blocks[0][: blocks[0].index(b"\n") + 1])
        bodies = itertools.cycle(block[block.index(b"\n") + 1 :] for block in blocks)
        while n_written < n_bytes:
            n_written += file.write(next(bodies))


def _readings(block: int, n: int = 50_000, p: int = 20) -> bytes:
    random = np.random.default_rng([2, block])
    values = random.normal(size=(n, p)) * 10.0 ** (np.arange(p) % 4)
    kind = random.choice(4, n, p=[0.6, 0.2, 0.15, 0.05])
    level = values @ np.sin(np.arange(p)) + kind + random.normal(size=n)
    columns: dict[str, Any] = {
        "station": [f"s{number:04d}" for number in random.integers(0, 1000, n)],
        "quality": pa.array(["good", "fair", "poor", None]).take(pa.array(kind)),
        **{f"r{place:02d}": column for place, column in enumerate(values.round(4).T)},
        "level": level.round(4),
    }
    buffer = io.BytesIO()
    csv.write_csv(pa.table(columns), buffer, csv.WriteOptions(quoting_style="none"))
    return buffer.getvalue()


def movielens(folder: Path) -> None:
    """Read ML-100K: every rating counts as one interaction; a fifth of each user's is kept back as `relevant.npz`."""
    users, items, _, shape = _movielens()
    order = np.random.default_rng(0).permutation(len(users))
    place = pd.Series(users[order]).groupby(users[order]).cumcount().to_numpy()
    is_test = np.empty(len(users), dtype=bool)
    is_test[order] = place < np.bincount(users)[users[order]] // 5
    for name, chosen in (("interactions", ~is_test), ("relevant", is_test)):
        values = np.ones(int(chosen.sum()))
        sparse.save_npz(
            folder / f"{name}.npz", sparse.csr_matrix((values, (users[chosen], items[chosen])), shape=shape)
        )


def movielens_folds(folder: Path) -> None:
    """Read ML-100K's ratings in five random folds."""
    users, items, ratings, _ = _movielens()
    folds = np.random.default_rng(0).permutation(len(users)) % 5
    pd.DataFrame({"user": users, "item": items, "rating": ratings, "fold": folds}).to_csv(
        folder / "ratings.csv", index=False
    )


def _movielens() -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], tuple[int, int]]:
    frame = _frame("ml-100k", "ratings.parquet")
    users, items = (pd.factorize(frame[name])[0].astype(np.int64) for name in ("user_id", "item_id"))
    return users, items, frame["rating"].to_numpy(float), (users.max() + 1, items.max() + 1)


def _frame(name: str, file: str) -> pd.DataFrame:
    with tempfile.TemporaryDirectory() as folder:
        datasets.fetch(name, folder)
        return pd.read_parquet(Path(folder) / file)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m benchmarks.data URL BYTES   makes URL/readings.csv")
    readings(sys.argv[1], float(sys.argv[2]))
