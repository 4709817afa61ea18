"""group_by as a whole job: against pandas, over partitions and workers, with more groups than fit, on bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed import Client

from jobs import runner
from jobs.artifacts import Manifest
from jobs.errors import InputError, SpecError
from jobs.pipelines import group_by
from jobs.spec import parse
from tests.threads import threads

AGGREGATES = {"x": ["count", "sum", "mean", "std", "min", "max"], "far": ["mean", "std"], "name": ["count"]}


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """Groups of many and of one row, values that are missing, infinite or far from zero."""
    rng = np.random.default_rng(0)
    n = 3000
    frame = pd.DataFrame(
        {"zip": rng.choice(["01067", "10115", "80331"], n), "size": (40 * rng.random(n) ** 3).astype(int)}
    )
    frame["x"] = rng.normal(size=n)
    frame["far"] = 1e9 + rng.normal(size=n)
    frame["name"] = rng.choice(["p", "q"], n)
    frame.loc[frame.index % 7 == 0, "zip"] = None
    frame.loc[frame.index % 11 == 0, "x"] = np.nan
    frame.loc[frame.index % 13 == 0, "name"] = None
    frame.loc[5, "x"] = np.inf
    return frame


def run(client: Client, path: Path, **params: Any) -> Manifest:
    params = {"by": ["zip", "size"], "aggregates": AGGREGATES, **params}
    spec = parse({"pipeline": "group_by", "params": params, "input": str(path), "output": str(path.parent / "runs")})
    return runner.run(spec, client=client).manifest


def groups(manifest: Manifest) -> pd.DataFrame:
    files = [each.url for each in manifest.files if each.name.startswith("groups/")]
    found = pd.concat([pq.read_table(url).to_pandas() for url in files], ignore_index=True)
    return found.sort_values(found.columns[:2].tolist(), ignore_index=True)


def oracle(frame: pd.DataFrame, by: list[str], **options: Any) -> pd.DataFrame:
    frame = frame.replace([np.inf, -np.inf], np.nan)
    named = {f"{name}_{each}": (name, each) for name, of in AGGREGATES.items() for each in of}
    found = frame.groupby(by, **options).agg(n_rows=("far", "size"), **named).reset_index()
    # pandas' own deviation of numbers far from zero is right to seven digits.
    near = frame.assign(far=frame["far"] - 1e9).groupby(by, **options)
    found["far_std"] = near["far"].std().to_numpy()
    return found.sort_values(by, ignore_index=True)


def check(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    assert found.columns.tolist() == expected.columns.tolist()
    pd.testing.assert_frame_equal(found, expected, check_dtype=False, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.parquet"])
@pytest.mark.parametrize("missing", ["group", "drop"])
def test_the_groups_are_those_of_pandas(
    name: str, missing: str, table: pd.DataFrame, client: Client, tmp_path: Path
) -> None:
    path = tmp_path / name
    table.to_parquet(path, row_group_size=400) if name.endswith("parquet") else table.to_csv(path, index=False)
    manifest = run(client, path, missing=missing, blocksize_mb=0.02)
    check(groups(manifest), oracle(table, ["zip", "size"], dropna=missing == "drop"))
    assert manifest.n_rows == 3000
    n_lacking = int(table["zip"].isna().sum())
    assert manifest.metrics["n_dropped"] == (n_lacking if missing == "drop" else 0)
    assert manifest.metrics["n_infinite"] == 1
    kept = table if missing == "group" else table.dropna(subset=["zip"])
    largest = kept.groupby(["zip", "size"], dropna=False).size().max()
    assert manifest.metrics["largest_group"] == largest


def test_texts_of_whole_numbers_become_numbers_and_postcodes_do_not(
    table: pd.DataFrame, client: Client, tmp_path: Path
) -> None:
    # The postcode that is no number is in the last of the partitions alone.
    table.sort_values("zip", ascending=False, na_position="first").to_csv(tmp_path / "t.csv", index=False)
    found = groups(run(client, tmp_path / "t.csv", aggregates={}, blocksize_mb=0.02))
    assert found["size"].dtype == np.int64
    assert set(found["zip"].dropna()) == {"01067", "10115", "80331"}


@pytest.mark.parametrize("n_workers", [1, 4])
@pytest.mark.parametrize("most_bytes", [6_000, 64_000_000])
def test_the_groups_do_not_depend_on_partitions_workers_and_the_way_they_are_merged(
    n_workers: int, most_bytes: int, table: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_by, "_MOST_BYTES", most_bytes)
    table.to_csv(tmp_path / "t.csv", index=False)
    with threads(n_workers) as client:
        for blocksize in (0.01, 0.05, 1.0):
            manifest = run(client, tmp_path / "t.csv", blocksize_mb=blocksize)
            check(groups(manifest), oracle(table, ["zip", "size"], dropna=False))
            assert (manifest.n_rows, manifest.metrics["n_infinite"]) == (3000, 1)
            n_files = sum(each.name.startswith("groups/") for each in manifest.files)
            assert (n_files > 1) == (most_bytes < 64_000_000 and blocksize < 1)


def test_numbers_and_truth_values_of_parquet_make_groups_too(client: Client, tmp_path: Path) -> None:
    columns = {"a": [1.5, None, 1.5, float("nan")], "b": [True, False, True, False], "v": [1, 2, 3, None]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    found = groups(run(client, tmp_path / "t.parquet", by=["a", "b"], aggregates={"v": ["sum", "mean"]}))
    assert found["a"].tolist()[0] == 1.5
    assert np.isnan(found["a"][1])
    assert found["n_rows"].tolist() == [2, 2]
    assert found["v_sum"].tolist() == [4, 2]


@pytest.mark.parametrize(
    ("content", "params", "message"),
    [
        ("a,b\n1,2\n", {"by": ["c"]}, r"no column 'c' among 2 such as .*; correct params.by"),
        ("a,b\n1,2\n", {"by": ["a"], "aggregates": {"v": ["sum"]}}, r"no column 'v' .*; correct params.aggregates"),
        ("a,b\n1,x\n", {"by": ["a"], "aggregates": {"b": ["sum"]}}, r"column 'b' holds text such as 'x'; .*only count"),
        ("a,b\n", {"by": ["a"]}, r"no rows below the header"),
        ("a,b\n,1\n", {"by": ["a"], "missing": "drop"}, r"all 1 rows lack a value of params.by"),
        ("a,b\n1,2,3\n", {"by": ["a"]}, r"lines do not fit the header"),
        ("a,b\n1,2\n1,-1e200\n", {"by": ["a"], "aggregates": {"b": ["std"]}}, r"'b' has -1e\+200, too large for std"),
        ("a,b\n1,2\n1,1e305\n", {"by": ["a"], "aggregates": {"b": ["sum"]}}, r"'b' has 1e\+305, too large for sum"),
    ],
)
def test_bad_input_is_named_with_what_to_do(
    content: str, params: dict[str, Any], message: str, client: Client, tmp_path: Path
) -> None:
    (tmp_path / "t.csv").write_text(content)
    params.setdefault("aggregates", {})
    with pytest.raises(InputError, match=message):
        run(client, tmp_path / "t.csv", **params)


@pytest.mark.parametrize("outlier", [1e17, 1e100, -1e290])
def test_a_large_first_value_takes_no_digits_from_other_groups(outlier: float, client: Client, tmp_path: Path) -> None:
    rows = [("a", outlier), *(("b", 0.1 * n) for n in range(100)), ("c", 1e308)]
    (tmp_path / "t.csv").write_text(
        "k,v,w\n" + "".join(f"{key},{value if key != 'c' else ''},{value}\n" for key, value in rows)
    )
    manifest = run(client, tmp_path / "t.csv", by=["k"], aggregates={"v": ["sum", "mean"], "w": ["min", "max"]})
    [file] = [each.url for each in manifest.files if each.name.startswith("groups/")]
    found = pq.read_table(file).to_pandas().set_index("k")
    assert found.loc["b", ["v_sum", "v_mean"]].tolist() == pytest.approx([495.0, 4.95], rel=1e-12)
    assert found.loc["a", "v_sum"] == pytest.approx(outlier, rel=1e-12)
    assert found.loc["c", "w_max"] == 1e308


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"by": []}, "params.by"),
        ({"by": ["a", "a"]}, "column 'a' stands twice"),
        ({"by": ["a"], "aggregates": {"a": ["sum"]}}, "column 'a' is among `by`"),
        ({"by": ["a"], "aggregates": {"b": ["median"]}}, "params.aggregates.b"),
        ({"by": ["a"], "aggregates": {"b": ["sum", "sum"]}}, "b: a function stands twice"),
        ({"by": ["b_sum"], "aggregates": {"b": ["sum"]}}, "two columns of the result would be called 'b_sum'"),
    ],
)
def test_bad_params_are_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse({"pipeline": "group_by", "params": params, "input": "t.csv", "output": "runs"})
