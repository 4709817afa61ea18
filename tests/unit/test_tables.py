"""Tables are read whole from every format and cut, and bad files are named with what to do."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from jobs.errors import InputError, StorageMissingError
from jobs.readers.table_profile import check_kind, merged, numbers, profile, texts
from jobs.readers.tables import open_table, read_part

FRAME = pd.DataFrame(
    {
        "id": range(500),
        "x": np.random.default_rng(0).normal(size=500).round(6),
        "name": [f"n,{i}" if i % 7 else None for i in range(500)],
    }
)


def rows(url: str | Path, columns: list[str], format: str = "auto", blocksize: int = 700) -> pd.DataFrame:
    table = open_table(str(url), format, blocksize)
    frames = [read_part(part, columns) for part in table.parts]
    return pd.concat(frames, ignore_index=True)


def check(found: pd.DataFrame) -> None:
    np.testing.assert_array_equal(numbers(found["id"]), FRAME["id"])
    np.testing.assert_allclose(numbers(found["x"]), FRAME["x"])
    assert texts(found["name"]).isna().tolist() == FRAME["name"].isna().tolist()
    assert texts(found["name"]).dropna().tolist() == FRAME["name"].dropna().tolist()


@pytest.mark.parametrize("blocksize", [64, 700, 1 << 20])
@pytest.mark.parametrize(
    ("name", "options"), [("t.csv", {}), ("t.csv.gz", {}), ("t.tsv", {"sep": "\t"}), ("t.tab", {"sep": "\t"})]
)
def test_every_row_of_a_text_file_is_read_once(
    name: str, options: dict[str, Any], blocksize: int, tmp_path: Path
) -> None:
    FRAME.to_csv(tmp_path / name, index=False, **options)
    check(rows(tmp_path / name, ["id", "x", "name"], blocksize=blocksize))


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.parquet"])
def test_files_of_s3_are_read_as_those_of_a_disk(name: str, s3: str) -> None:
    if name.endswith(".parquet"):
        FRAME.to_parquet(f"{s3}/{name}", index=False)
    else:
        FRAME.to_csv(f"{s3}/{name}", index=False)
    check(rows(f"{s3}/{name}", ["id", "x", "name"]))


def test_a_file_without_a_last_line_end_or_with_windows_line_ends_is_read_whole(tmp_path: Path) -> None:
    text = FRAME.to_csv(index=False)
    (tmp_path / "a.csv").write_text(text.rstrip("\n"))
    (tmp_path / "b.csv").write_bytes(text.replace("\n", "\r\n").encode())
    for name in ("a.csv", "b.csv"):
        check(rows(tmp_path / name, ["id", "x", "name"]))


def test_a_byte_order_mark_is_not_part_of_the_first_name(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfa,b\n1,2\n")
    assert open_table(str(tmp_path / "a.csv"), "auto", 100).columns == ("a", "b")


@pytest.mark.parametrize("blocksize", [64, 1 << 20])
def test_parquet_is_cut_at_row_groups(blocksize: int, tmp_path: Path) -> None:
    FRAME.to_parquet(tmp_path / "t.parquet", row_group_size=100)
    table = open_table(str(tmp_path / "t.parquet"), "auto", blocksize)
    assert len(table.parts) == (5 if blocksize == 64 else 1)
    check(rows(tmp_path / "t.parquet", ["id", "x", "name"], blocksize=blocksize))


def test_a_folder_and_a_glob_are_read_in_the_order_of_names(tmp_path: Path) -> None:
    for number in range(5):
        FRAME[number * 100 : (number + 1) * 100].to_csv(tmp_path / f"part-{number}.csv", index=False)
    (tmp_path / "_SUCCESS").touch()
    check(rows(tmp_path, ["id", "x", "name"]))
    check(rows(tmp_path / "part-*.csv", ["id", "x", "name"]))


def test_columns_come_in_the_order_asked_for(tmp_path: Path) -> None:
    FRAME.to_csv(tmp_path / "t.csv", index=False)
    assert list(rows(tmp_path / "t.csv", ["x", "id"]).columns) == ["x", "id"]


def write(folder: Path, name: str, content: bytes) -> str:
    (folder / name).write_bytes(content)
    return str(folder / name)


GOOD = b"a,b\n1,x\n2,y\n"
BAD_FILES = {
    "empty": ("t.csv", b"", "empty file"),
    "blank header": ("t.csv", b"\n1,2\n", "names no columns"),
    "column twice": ("t.csv", b"a,a\n1,2\n", "column 'a' stands twice"),
    "too many fields": ("t.csv", b"a,b\n1,2\n1,2,3\n", "lines do not fit the header"),
    "open quote": ("t.csv", b'a,b\n1,"2\n', "a quoted field is not closed"),
    "not utf-8": ("t.csv", b"a,b\n1,\xff\xfe\n", "not UTF-8 text"),
    "header not utf-8": ("t.csv", b"\xff\xfe,b\n1,2\n", "not UTF-8 text"),
    "cut gzip": ("t.csv.gz", gzip.compress(GOOD * 1000)[:-30], "damaged or cut gzip file"),
    "no gzip": ("t.csv.gz", GOOD, "damaged or cut gzip file"),
    "no parquet": ("t.parquet", b"PAR1 but no more", "not a readable Parquet file"),
    "unknown kind": ("t.xlsx", b"PK", "no csv, tsv or parquet files"),
}


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_is_named_with_what_to_do(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{name}.*{message}.*;") as caught:
        rows(write(tmp_path, name, content), ["a", "b"])
    assert "\n" not in str(caught.value)


def test_a_truncated_parquet_file_is_named(tmp_path: Path) -> None:
    FRAME.to_parquet(tmp_path / "t.parquet")
    content = (tmp_path / "t.parquet").read_bytes()
    with pytest.raises(InputError, match="not a readable Parquet file"):
        rows(write(tmp_path, "cut.parquet", content[: len(content) // 2]), ["id"])


def test_files_with_other_columns_or_of_other_kinds_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.csv", GOOD)
    write(tmp_path, "b.csv", b"a,c\n1,x\n")
    with pytest.raises(InputError, match=r"b\.csv: its columns differ from those of .*a\.csv \('b', 'c'\)"):
        open_table(str(tmp_path), "auto", 100)
    (tmp_path / "b.csv").rename(tmp_path / "b.tsv")
    with pytest.raises(InputError, match=r"files of several formats \(csv, tsv\)"):
        open_table(str(tmp_path), "auto", 100)
    with pytest.raises(InputError, match="no parquet files among 2"):
        open_table(str(tmp_path), "parquet", 100)
    with pytest.raises(InputError, match="format idx is no table"):
        open_table(str(tmp_path), "idx", 100)
    with pytest.raises(StorageMissingError):
        open_table(str(tmp_path / "none"), "auto", 100)


def test_a_type_is_decided_over_all_partitions() -> None:
    parts = [pd.DataFrame({"a": ["1", "2"], "b": ["1", None]}, dtype="str"), pd.DataFrame({"a": ["x"], "b": ["inf"]})]
    found = merged([profile(part.astype("str"), 10, ()) for part in parts], 10)
    assert found.lengths == (2, 1)
    assert (found.columns["a"].n_numbers, found.columns["a"].n_texts) == (2, 1)
    assert (found.columns["b"].n_missing, found.columns["b"].n_infinite, found.columns["b"].n_texts) == (1, 1, 0)
    with pytest.raises(InputError, match=r"u: column 'a' mixes 2 numbers with text such as 'x'; .*params.categorical"):
        check_kind("u", "a", found.columns["a"])
    check_kind("u", "b", found.columns["b"])


def test_integers_here_and_fractions_there_are_one_column_of_numbers() -> None:
    parts = [pd.DataFrame({"a": [1, 2]}), pd.DataFrame({"a": [0.5, np.nan]})]
    found = merged([profile(part, 10, ("a",)) for part in parts], 10).columns["a"]
    assert (found.n_numbers, found.n_missing) == (3, 1)
    assert found.values == {"1": 1, "2": 1, "0.5": 1}


def test_values_that_cannot_be_used_are_refused() -> None:
    with pytest.raises(InputError, match=r"column 'when': values of type datetime64.*params.drop"):
        profile(pd.DataFrame({"when": pd.to_datetime(["2026-01-01"])}), 10, ())
