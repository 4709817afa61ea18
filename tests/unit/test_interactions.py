"""Interactions are read alike from every format and partition size, and bad ones get one line that says why."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import storage
from jobs.errors import InputError, SpecError
from jobs.readers.interactions import Columns, Partition, format_of, plan, read, union

COLUMNS = Columns("user_id", "item_id", "rating", None)


def read_all(
    path: Path, columns: Columns = COLUMNS, n_bytes: int = 1 << 20, is_implicit: bool = False
) -> list[Partition]:
    parts = plan(storage.list_files(str(path))[0], format_of(str(path), "auto"), columns, n_bytes, False)
    return [read(part, columns, is_implicit=is_implicit) for part in parts]


def triples(partitions: list[Partition]) -> list[tuple[Any, Any, float]]:
    return [
        (p.user_ids[u], p.item_ids[i], r)
        for p in partitions
        for u, i, r in zip(p.users, p.items, p.ratings, strict=True)
    ]


@pytest.fixture
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    n = 500
    return pd.DataFrame(
        {
            "note": rng.choice(["", "a b", "ü"], n),
            "item_id": rng.choice(["x1", "y, z", "ß"], n),
            "user_id": rng.integers(0, 40, n),
            "rating": rng.integers(1, 11, n) / 2,
        }
    )


def written(frame: pd.DataFrame, path: Path) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), path, row_group_size=37)
    else:
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
@pytest.mark.parametrize("n_bytes", [64, 999, 1 << 20])
def test_every_format_and_partition_size_gives_the_same_rows_in_the_same_order(
    suffix: str, n_bytes: int, frame: pd.DataFrame, tmp_path: Path
) -> None:
    partitions = read_all(written(frame, tmp_path / f"a{suffix}"), n_bytes=n_bytes)
    assert len(partitions) > 1 or n_bytes == 1 << 20
    assert triples(partitions) == list(frame[["user_id", "item_id", "rating"]].itertuples(index=False, name=None))


def quoted(seed: int) -> bytes:
    """A csv of a few rows whose quotes stand where writers put them, and where nobody would."""
    random = np.random.default_rng(seed)
    end = random.choice(["\n", "\r\n"])
    fields = ["a", '5" pipe', '"b"', '"c, d"', '"say ""e"""', '"f" g', "", "ü" * 9]
    # A few files have line breaks within quotes or quotes that are never closed.
    bad = ['"h\ni"', '"j\n\nk"', '"l\r\nm,1,n"', '"o', '"p\n1,q,2,r\ns"', 'in"t'][: random.choice([0, 0, 6])]
    rows = [
        f"{random.choice(fields + bad)},u{number},{random.choice(fields[:1] + fields[2:4] + bad)},{number}"
        for number in range(int(random.integers(1, 9)))
    ]
    empty = end * int(random.integers(0, 3))
    text = f"note,user_id,item_id,rating{end}{empty}{end.join(rows)}{random.choice(['', end, end + empty])}"
    return text.encode()


@pytest.mark.parametrize("seed", range(80))
def test_a_cut_within_quotes_is_refused_and_no_other(seed: int, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    text = quoted(seed)
    path.write_bytes(text)
    try:
        whole = read_all(path)
    except InputError:
        whole = None  # a quote is never closed, or swallows a comma
    with path.open(newline="") as file:
        has_break = any("\n" in value or "\r" in value for row in csv.reader(file) for value in row)
    for n_bytes in (1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144):
        if whole is None:
            with pytest.raises(InputError):
                read_all(path, n_bytes=n_bytes)
        elif has_break and len(text.split(b"\n", 1)[1]) > n_bytes:
            with pytest.raises(InputError, match="partition_bytes"):
                read_all(path, n_bytes=n_bytes)
        else:
            assert triples(read_all(path, n_bytes=n_bytes)) == triples(whole)


@pytest.mark.parametrize("pad", [0, 1_000_000, 1 << 20, 3_000_000])
def test_a_line_break_within_quotes_is_read_where_the_file_is_one_part(pad: int, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    row = 'u{},i{},"one\ntwo",1\n'
    rows = [row.format(number, number) for number in range(pad // len(row) + 3)]
    path.write_text("user_id,item_id,note,rating\n" + "".join(rows))
    [partition] = read_all(path, n_bytes=1 << 30)
    assert len(partition.ratings) == len(rows)
    assert set(partition.user_ids) == {f"u{n}" for n in range(len(rows))}
    with pytest.raises(InputError, match=rf"a\.csv: .*quotes.*set params.partition_bytes to {path.stat().st_size}"):
        read_all(path, n_bytes=path.stat().st_size // 2)


@pytest.mark.parametrize("names", ['user_id,"item\n_id",rating', 'user_id,item_id,rating,"no,\nx,y,z,te"'])
def test_a_line_break_within_the_quotes_of_the_header_is_refused(names: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"{names}\nu1,i1,1,2\n")
    with pytest.raises(InputError, match=r"a\.csv: a quote in the header"):
        read_all(path)


@pytest.mark.parametrize("n_bytes", [1, 7, 30, 1 << 20])
def test_a_quote_in_tsv_is_a_character(n_bytes: int, tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('user_id\titem_id\trating\n"u1\t5" pipe\t1\nu2\t"whole"\t2\n')
    assert triples(read_all(path, n_bytes=n_bytes)) == [('"u1', '5" pipe', 1.0), ("u2", '"whole"', 2.0)]
    path.write_text('user_id\titem_id\t"rating\nu1\t2\t3\n')
    assert triples(read_all(path, n_bytes=n_bytes)) == [("u1", 2, 3.0)]
    path.write_text('user_id\titem_id\trating\n"u\n1"\ti\t1\n')
    with pytest.raises(InputError, match=r"a\.tsv: .*columns"):
        read_all(path, n_bytes=n_bytes)


@pytest.mark.parametrize("value", ["1e16", "-1e16", "3.5e38", "1e154", "1e200", "-1.7e308", "1e400"])
@pytest.mark.parametrize("is_implicit", [True, False])
def test_a_rating_too_large_to_reckon_with_is_refused(value: str, is_implicit: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"user_id,item_id,rating\nu1,i1,2\nu2,i2,{value}\n")
    with pytest.raises(InputError, match=r"a\.csv: column 'rating' has (-?[0-9.e+]+, above 9.*divide|an infinite)"):
        read_all(path, is_implicit=is_implicit)


def test_the_largest_ratings_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("user_id,item_id,rating\nu1,i1,9007199254740992\nu2,i2,-9e15\n")
    [partition] = read_all(path)
    assert partition.ratings.tolist() == [2.0**53, -9e15]


@pytest.mark.parametrize("n_bytes", range(1, 30))
def test_a_cut_anywhere_loses_and_doubles_no_line(n_bytes: int, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"user_id,item_id,rating\r\n1,a,1\r\n22,bb,2\r\n333,ccc,3\r\n4,d,4")
    assert triples(read_all(path, n_bytes=n_bytes)) == [(1, "a", 1), (22, "bb", 2), (333, "ccc", 3), (4, "d", 4)]


def test_a_file_without_a_header_is_read_by_the_names_of_the_columns(tmp_path: Path) -> None:
    path = tmp_path / "u.tsv"
    path.write_text("196\t242\t3\t881250949\n186\t302\t3\t891717742\n")
    columns = Columns("user", "item", "rating", "time", ("user", "item", "rating", "time"))
    partitions = read_all(path, columns)
    assert triples(partitions) == [(196, 242, 3), (186, 302, 3)]
    assert partitions[0].times.tolist() == [881250949, 891717742]


def test_a_byte_order_mark_is_no_part_of_a_name_or_an_id(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbfuser_id,item_id,rating\n1,2,3\n")
    assert triples(read_all(path)) == [(1, 2, 3)]
    path.write_bytes(b"\xef\xbb\xbf1,2,3\n")
    assert triples(read_all(path, Columns("u", "i", "r", None, ("u", "i", "r")))) == [(1, 2, 3)]


def test_rows_without_user_item_or_rating_are_dropped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("user_id,item_id,rating\n1,a,1\n,a,1\n2,,2\n3,c,\n4,d,NaN\n5,e,5\n")
    (partition,) = read_all(path)
    assert triples([partition]) == [(1, "a", 1), (5, "e", 5)]
    assert partition.n_dropped == 4
    assert sorted(partition.user_ids) == [1, 5]


def test_null_floats_and_dictionaries_in_parquet_are_understood(tmp_path: Path) -> None:
    table = pa.table(
        {
            "user_id": pa.array([1.0, None, 3.0, float("nan")]),
            "item_id": pa.array(["b", "a", "b", "a"]).dictionary_encode(),
            "rating": pa.array([1, 2, 3, 4], pa.int8()),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    (partition,) = read_all(tmp_path / "a.parquet")
    assert triples([partition]) == [(1, "b", 1), (3, "b", 3)]
    assert partition.user_ids.dtype == np.int64


def test_without_a_rating_column_every_interaction_is_a_one(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("user_id,item_id\n1,a\n2,b\n")
    assert triples(read_all(path, Columns("user_id", "item_id", None, None), is_implicit=True)) == [
        (1, "a", 1),
        (2, "b", 1),
    ]


def test_an_implicit_count_of_zero_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("user_id,item_id,rating\n1,a,0\n2,b,3\n")
    (partition,) = read_all(path, is_implicit=True)
    assert (triples([partition]), partition.n_dropped) == ([(2, "b", 3)], 1)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["3", "1", "2"], [3, 1, 2]),
        (["1.5", "0.25", "7"], [1.5, 0.25, 7]),
        (["2020-01-02", "2020-01-01T12:00:00", "2021-03-04"], [1577923200e6, 1577880000e6, 1614816000e6]),
        (["5", "", "4"], [5, -np.inf, 4]),
        (
            ["2020-01-01T00:00:00Z", "2020-01-01T00:00:00+02:00", "2019-12-31 19:00:00.5-0500", "", " 2020-01-01"],
            [1577836800e6, 1577829600e6, 1577836800.5e6, -np.inf, 1577836800e6],
        ),
    ],
)
def test_times_are_numbers_or_dates(values: list[str], expected: list[float], tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("user_id,item_id,rating,t\n" + "".join(f"1,2,3,{value}\n" for value in values))
    (partition,) = read_all(path, Columns("user_id", "item_id", "rating", "t"))
    assert partition.times.tolist() == expected
    assert partition.time_kind == ("dates" if "-" in values[0] else "numbers")


@pytest.mark.parametrize("rows", ["1,2,3,\n", "1,2,3,\n1,3,,2020-01-01\n", ""])
def test_a_part_without_times_has_no_kind_of_them(rows: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user_id,item_id,rating,t\n" + rows)
    (partition,) = read_all(tmp_path / "a.csv", Columns("user_id", "item_id", "rating", "t")) or [None]
    assert partition is None or partition.time_kind is None


@pytest.mark.parametrize("times", [["2020/01/01"], ["2020-01-01", "1609459200"]])
def test_text_that_is_no_time_is_named(times: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user_id,item_id,rating,t\n" + "".join(f"1,2,3,{time}\n" for time in times))
    with pytest.raises(InputError, match=f"column 't' has '{times[0]}', no number, nor are all of them dates"):
        read_all(tmp_path / "a.csv", Columns("user_id", "item_id", "rating", "t"))


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Asia/Kolkata"])
def test_timestamps_of_every_unit_and_zone_are_the_same_times(unit: str, zone: str | None, tmp_path: Path) -> None:
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    extra = 1 if unit == "ns" else 0  # what is finer than a microsecond is left out
    times = pa.array([1577923200 * per_second + extra, None], pa.timestamp(unit, zone))
    pq.write_table(pa.table({"user_id": [1, 1], "item_id": [1, 2], "rating": [1, 2], "t": times}), tmp_path / "a.pq")
    (partition,) = read_all(tmp_path / "a.pq", Columns("user_id", "item_id", "rating", "t"))
    assert (partition.times.tolist(), partition.time_kind) == ([1577923200e6, -np.inf], "dates")


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (pa.array([1], pa.time32("s")), "'t' is of type time32"),
        (pa.array([1], pa.duration("s")), "'t' is of type duration"),
        (pa.array([2**31 - 1], pa.date32()), "'t': .*out of bounds timestamp"),
    ],
)
def test_times_that_are_no_points_in_time_are_refused(times: Any, message: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"user_id": [1], "item_id": [1], "rating": [1], "t": times}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=message):
        read_all(tmp_path / "a.parquet", Columns("user_id", "item_id", "rating", "t"))


def test_parquet_timestamps_are_times(tmp_path: Path) -> None:
    times = pd.to_datetime(["2020-01-02", "2020-01-01"]).tz_localize("UTC")
    pd.DataFrame({"user_id": [1, 1], "item_id": [1, 1], "rating": [1, 2], "t": times}).to_parquet(
        tmp_path / "a.parquet"
    )
    (partition,) = read_all(tmp_path / "a.parquet", Columns("user_id", "item_id", "rating", "t"))
    assert partition.times.tolist() == [1577923200e6, 1577836800e6]


def test_integer_ids_sort_by_value_and_mixed_ones_as_text() -> None:
    numbers, words = np.array([10, 9]), np.array(["b", "7"], dtype=object)
    assert union([numbers, np.array([9, 100])]).tolist() == [9, 10, 100]
    assert union([numbers, words]).tolist() == ["10", "7", "9", "b"]
    assert union([union([numbers, words]), np.array([9])]).tolist() == ["10", "7", "9", "b"]


@pytest.mark.parametrize("n_bytes", [1, 12, 1 << 20])
def test_ids_of_dropped_rows_do_not_decide_whether_ids_are_integers(n_bytes: int, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user_id,item_id,rating\n9,1,1\nx,1,\n10,y,\n10,2,2\n")
    partitions = read_all(tmp_path / "a.csv", n_bytes=n_bytes)
    assert union([p.user_ids for p in partitions]).tolist() == [9, 10]
    assert union([p.item_ids for p in partitions]).tolist() == [1, 2]


def test_numbers_that_text_writes_with_zeros_stay_text(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("user_id,item_id,rating\n007,1,1\n7,1,1\n99999999999999999999,1,1\n")
    assert [user for user, _, _ in triples(read_all(path))] == ["007", "7", "99999999999999999999"]


BAD_TEXT = {
    "a rating that is no number": (
        "user_id,item_id,rating\n1,2,3\n1,3,good\n",
        "column 'rating' has 'good', no number",
    ),
    "an infinite rating": ("user_id,item_id,rating\n1,2,inf\n", "column 'rating' has an infinite value"),
    "a missing column": (
        "user_id,rating\n1,2\n",
        "no column 'item_id' among 'user_id', 'rating'; set params.item_column",
    ),
    "a column twice": ("user_id,item_id,rating,rating\n1,2,3,4\n", "column 'rating' stands twice"),
    "a short line": ("user_id,item_id,rating\n1,2,3\n1,2\n", "Expected 3 columns, got 2"),
    "another separator": ("user_id;item_id;rating\n1;2;3\n", "no column 'user_id' among 'user_id;item_id;rating'"),
}


@pytest.mark.parametrize("case", BAD_TEXT)
@pytest.mark.parametrize("n_bytes", [7, 1 << 20])
def test_bad_text_is_refused_in_one_line(case: str, n_bytes: int, tmp_path: Path) -> None:
    text, message = BAD_TEXT[case]
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_all(path, n_bytes=n_bytes)
    assert "a.csv: " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"user_id,item_id,rating\n1,caf\xe9,3\n", b"user_id,item_id,caf\xe9\n1,2,3\n"])
def test_text_that_is_not_utf_8_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(data)
    with pytest.raises(InputError, match="not UTF-8 text; save the file as UTF-8"):
        read_all(tmp_path / "a.csv")


def test_a_negative_implicit_count_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user_id,item_id,rating\n1,2,-3\n")
    with pytest.raises(InputError, match="'rating' has -3, but implicit counts are not negative"):
        read_all(tmp_path / "a.csv", is_implicit=True)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("user_id", [1.5, 2.0], "column 'user_id' has the id 1.5; ids are integers or text"),
        ("item_id", [[1], [2]], "column 'item_id' is of type list<.*>; ids are integers or text"),
        ("rating", [True, False], "column 'rating' is of type bool, not numbers"),
        ("rating", ["1", "x"], "column 'rating' has 'x', no number"),
        ("user_id", pa.array([2**63, 1], pa.uint64()), "column 'user_id': .*store such ids as text"),
    ],
)
def test_columns_of_other_types_are_refused(column: str, values: Any, message: str, tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"user_id": [1, 2], "item_id": [1, 2], "rating": [1, 2]} | {column: values}), tmp_path / "a.parquet"
    )
    with pytest.raises(InputError, match=message):
        read_all(tmp_path / "a.parquet")


def test_a_file_that_is_not_parquet_or_a_damaged_one_is_refused(frame: pd.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"user_id,item_id,rating\n1,2,3\n")
    with pytest.raises(InputError, match=r"a\.parquet: not a Parquet file"):
        read_all(path)
    data = bytearray(written(frame, path).read_bytes())
    data[4:400] = bytes(396)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"a\.parquet: damaged Parquet"):
        read_all(path)


def test_names_for_the_columns_of_parquet_are_refused(frame: pd.DataFrame, tmp_path: Path) -> None:
    path = written(frame, tmp_path / "a.parquet")
    with pytest.raises(SpecError, match=r"names its columns itself; leave params\.columns out"):
        read_all(path, Columns("user_id", "item_id", "rating", None, ("user_id", "item_id", "rating")))


def test_the_format_is_told_by_the_name_or_by_the_spec() -> None:
    assert [format_of(f"s3://b/A{suffix}", "auto") for suffix in (".CSV", ".tsv", ".parquet")] == [
        "csv",
        "tsv",
        "parquet",
    ]
    assert format_of("u.data", "tsv") == "tsv"
    with pytest.raises(InputError, match=r"u\.data: its name does not tell its format; set input\.format"):
        format_of("u.data", "auto")
    with pytest.raises(SpecError, match="'jsonl' holds no interactions; use csv, tsv or parquet"):
        format_of("u.csv", "jsonl")


def test_an_empty_file_has_no_parts_and_a_header_alone_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"")
    assert read_all(tmp_path / "a.csv") == []
    (tmp_path / "b.csv").write_text("user_id,item_id,rating\n")
    assert triples(read_all(tmp_path / "b.csv")) == []
