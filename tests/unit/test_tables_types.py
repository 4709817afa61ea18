"""What a column holds does not depend on which partition it is read in."""

from __future__ import annotations

import decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.errors import InputError, SpecError
from jobs.readers.table_encoding import Split, merged_spread, spread
from jobs.readers.table_profile import check_kind, merged, numbers, positions, profile
from jobs.readers.tables import open_table, read_part
from jobs.spec import parse


def column(path: Path, content: pa.Array, row_group_size: int = 4) -> pd.Series:
    pq.write_table(pa.table({"a": content}), path, row_group_size=row_group_size)
    table = open_table(str(path), "auto", 1)
    return pd.concat([read_part(part, ["a"]) for part in table.parts])["a"]


def test_text_and_numbers_stored_as_dictionaries_are_read_as_they_are(tmp_path: Path) -> None:
    text = column(tmp_path / "t.parquet", pa.array(["p", "q", None] * 5).dictionary_encode())
    assert text.dropna().tolist() == ["p", "q"] * 5
    number = column(tmp_path / "n.parquet", pa.array([1, 2, 3] * 5).dictionary_encode())
    np.testing.assert_array_equal(numbers(number), [1, 2, 3] * 5)


def test_integers_keep_their_digits_where_some_are_missing(tmp_path: Path) -> None:
    ids = [10**16 + i % 3 if i % 5 else None for i in range(40)]
    found = profile(column(tmp_path / "t.parquet", pa.array(ids)).to_frame(), 10, ("a",)).columns["a"]
    assert sorted(found.values) == ["10000000000000000", "10000000000000001", "10000000000000002"]
    assert found.n_missing == 8


def test_yes_and_no_with_missing_values_are_categories_in_every_partition(tmp_path: Path) -> None:
    flags = column(tmp_path / "t.parquet", pa.array([True, False] * 4 + [None, True]))
    found = profile(flags.to_frame(), 10, ()).columns["a"]
    assert (found.n_texts, found.n_missing, found.values) == (9, 1, {"True": 5, "False": 4})


def test_decimals_are_numbers(tmp_path: Path) -> None:
    found = column(tmp_path / "t.parquet", pa.array([decimal.Decimal("0.25"), None, decimal.Decimal("4.50")]))
    np.testing.assert_array_equal(numbers(found), [0.25, np.nan, 4.5])


@pytest.mark.parametrize(
    "content", [pa.array([[1, 2]]), pa.array([{"x": 1}]), pa.array([b"x"]), pa.array([0], "date32")]
)
def test_a_type_that_cannot_be_used_is_named_with_its_file(content: pa.Array, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"t\.parquet: column 'a' is of type .*; put it into params\.drop"):
        column(tmp_path / "t.parquet", content)


def test_a_column_of_numbers_here_and_of_yes_and_no_there_is_refused() -> None:
    parts = [profile(pd.DataFrame({"a": values}), 10, ()) for values in ([1, 2], [True, False])]
    with pytest.raises(InputError, match="column 'a' mixes 2 numbers with text such as 'True'"):
        check_kind("u", "a", merged(parts, 10).columns["a"])


@pytest.mark.parametrize("n_rows", [1, 7, 299, 300])
def test_a_column_that_never_changes_has_exactly_no_spread(n_rows: int) -> None:
    frame = pd.DataFrame({"a": [0.1] * 300})
    starts = range(0, 300, n_rows)
    parts = [spread(frame[start : start + n_rows], start, ("a",), None, Split(0, 0.2)) for start in starts]
    total = parts[0]
    for part in parts[1:]:
        total = merged_spread(total, part)
    assert (total.means[0], total.squares[0]) == (0.1, 0.0)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"features": ["a", "a"]}, "features: column 'a' stands twice"),
        ({"drop": ["a", "a"]}, "drop: column 'a' stands twice"),
        ({"features": ["a", "b"], "drop": ["a"]}, "drop: column 'a' is also to be used"),
        ({"drop": ["y"]}, "drop: column 'y' is also to be used"),
        ({"features": ["a", "y"]}, "features: column 'y' is the target"),
        ({"hidden": [8, 0]}, r"params\.hidden\.1: 0 should be greater than or equal to 1"),
    ],
)
def test_columns_that_contradict_each_other_are_refused(params: dict[str, object], message: str) -> None:
    document = {"pipeline": "neural_network", "input": "t.csv", "output": "runs", "params": {"target": "y", **params}}
    with pytest.raises(SpecError, match=message):
        parse(document)


def test_numbers_are_those_of_pandas_whatever_the_spelling_and_the_chunks() -> None:
    spelled = [" 1", "+2", "3e5", "inf", "-7.25", "0.1", None, "1_0", "x", "0.30000000000000004", ""]
    for values in (spelled, [v for v in spelled if v and v[-1].isdigit() and "_" not in v], ["x", None], []):
        column = pd.concat([pd.Series(values, dtype="str")] * 2, ignore_index=True)
        oracle = pd.to_numeric(column.astype(object), errors="coerce").to_numpy(float)
        np.testing.assert_array_equal(numbers(column), oracle)


def test_text_has_its_position_among_the_values() -> None:
    column = pd.Series(["b", None, "a", "c"] * 2, dtype="str")
    assert positions(column, ["a", "b"]).tolist() == [1, -1, 0, -1] * 2
