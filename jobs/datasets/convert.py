"""From source files to what the pipelines read: Parquet, IDX, archives as they are."""

from __future__ import annotations

import gzip
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Readers make a partition of one or more row groups, so there should be several.
ROW_GROUP = 4096


def copy(source: Path, target: Path) -> None:
    """Copy every file as it is."""
    for path in source.iterdir():
        shutil.copyfile(path, target / path.name)


def regrouped(name: str) -> Callable[[Path, Path], None]:
    """Return a converter of ``<name>.parquet.brotli`` to Parquet of several row groups."""

    def convert(source: Path, target: Path) -> None:
        import pyarrow.parquet as pq

        table = pq.read_table(source / f"{name}.parquet.brotli")
        _write(table.replace_schema_metadata(None), target / f"{name.removesuffix('_train')}.parquet")

    return convert


def newsgroups(source: Path, target: Path) -> None:
    """Convert Orange's tab files (three header rows, no quoting) to Parquet with columns text and label."""
    import pyarrow as pa

    for part in ("train", "test"):
        lines = (source / f"20newsgroups-{part}.tab").read_text(encoding="utf-8").split("\n")[3:]
        pairs = [line.split("\t", 1) for line in lines if line]
        table = pa.table({"text": [text for _, text in pairs], "label": [label for label, _ in pairs]})
        _write(table, target / f"{part}.parquet")


def ratings(source: Path, target: Path) -> None:
    """Convert RecBole's tab-separated interactions to Parquet."""
    import pyarrow as pa
    from pyarrow import csv

    types = {"user_id": pa.int64(), "item_id": pa.int64(), "rating": pa.float64(), "timestamp": pa.int64()}
    table = csv.read_csv(
        source / "ml-100k.inter",
        read_options=csv.ReadOptions(column_names=list(types), skip_rows=1),
        parse_options=csv.ParseOptions(delimiter="\t"),
        convert_options=csv.ConvertOptions(column_types=types),
    )
    _write(table, target / "ratings.parquet")


def digits(source: Path, target: Path) -> None:
    """Convert scikit-learn's digits to IDX, every fifth for testing: rows of 64 pixels of 0 to 16, then the label."""
    import numpy as np

    rows = np.loadtxt(source / "digits.csv.gz", delimiter=",", dtype=np.uint8)
    is_test = np.arange(len(rows)) % 5 == 4
    for part, chosen in (("train", rows[~is_test]), ("t10k", rows[is_test])):
        # 15 levels a step: 16 becomes 240, inside a byte.
        images = (chosen[:, :64] * 15).reshape(-1, 8, 8)
        _write_idx(target / f"{part}-images-idx3-ubyte.gz", images)
        _write_idx(target / f"{part}-labels-idx1-ubyte.gz", chosen[:, 64])


def _write_idx(path: Path, array: Any) -> None:
    """Write uint8 values as IDX: magic number (type 8 = byte, number of dimensions), sizes, values."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes(), mtime=0))


def _write(table: Any, path: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(table, path, row_group_size=ROW_GROUP, compression="zstd")
