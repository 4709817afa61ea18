"""The recommender from its input to its files, on real workers and real S3."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from distributed import Client

from jobs import runner, storage
from jobs.artifacts import Manifest
from jobs.errors import InputError, SpecError, StorageMissingError
from jobs.pipelines import recommender
from jobs.spec import parse
from tests.threads import threads

PARAMS = {"rank": 4, "n_iterations": 5, "regularization": 2.0, "k": 5, "top_n": 4}


def planted(n_users: int = 120, n_items: int = 60, share: float = 0.3) -> pd.DataFrame:
    """Ratings of users who love the items of their own group; ids are text for users, integers for items."""
    rng = np.random.default_rng(0)
    users, items = np.nonzero(rng.random((n_users, n_items)) < share)
    taste = 2.0 * (users % 3 == items % 3) + 2.0 + (items % 5) / 4 + rng.normal(0, 0.3, len(users))
    order = rng.permutation(len(users))
    return pd.DataFrame(
        {"user_id": [f"u{u:03d}" for u in users], "item_id": 1000 + items, "rating": taste.round(2)}
    ).iloc[order]


def put_csv(frame: pd.DataFrame, url: str) -> str:
    storage.write_bytes(url, frame.to_csv(index=False).encode())
    return url


def run(client: Client, input: Any, output: str, **params: Any) -> Manifest:
    spec = parse({"pipeline": "recommender", "input": input, "output": output, "params": PARAMS | params})
    return runner.run(spec, client=client).manifest


def tables(manifest: Manifest, folder: str) -> pd.DataFrame:
    files = [file for file in manifest.files if file.name.startswith(folder)]
    return pd.concat([pq.read_table(io.BytesIO(storage.read_bytes(file.url))).to_pandas() for file in files])


def metrics_of(manifest: Manifest) -> dict[str, Any]:
    return dict(manifest.metrics)


def test_ratings_are_predicted_from_s3_and_every_file_is_what_the_manifest_says(client: Client, s3: str) -> None:
    frame = planted()
    manifest = run(client, put_csv(frame, f"{s3}/ratings.csv"), f"{s3}/runs")
    metrics = metrics_of(manifest)
    assert manifest.headline == "rmse"
    assert metrics["rmse"] < 0.6 < metrics["baseline_rmse"]
    assert metrics["n_train"] + metrics["n_test"] == manifest.n_rows == len(frame)
    for file in manifest.files:
        data = storage.read_bytes(file.url)
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file.size, file.sha256)

    recommended = tables(manifest, "recommendations/")
    assert sorted(recommended["user"].unique()) == sorted(frame["user_id"].unique())
    assert recommended.groupby("user")["rank"].apply(list).map(lambda ranks: ranks == [1, 2, 3, 4]).all()
    known = set(zip(frame["user_id"], frame["item_id"], strict=True))
    assert not known & set(zip(recommended["user"], recommended["item"], strict=True))
    is_own_group = recommended["user"].str[1:].astype(int) % 3 == (recommended["item"] - 1000) % 3
    assert is_own_group.mean() > 0.9


def test_scores_follow_from_the_saved_factors(client: Client, tmp_path: Path) -> None:
    manifest = run(client, put_csv(planted(), str(tmp_path / "a.csv")), str(tmp_path / "runs"))
    users, items = (tables(manifest, name).set_index("id") for name in ("user_factors/", "item_factors"))
    (model_file,) = [file for file in manifest.files if file.name == "model.json"]
    model = json.loads(storage.read_bytes(model_file.url))
    assert (model["model"], len(model["objective"])) == ("ExplicitALS", 5)
    for row in tables(manifest, "recommendations/").head(50).itertuples():
        user, item = users.loc[row.user], items.loc[row.item]
        score = model["mean"] + user["bias"] + item["bias"] + user["factors"] @ item["factors"]
        assert row.score == pytest.approx(score, rel=1e-12)


def test_choices_are_predicted_better_than_by_popularity(client: Client, tmp_path: Path) -> None:
    frame = planted()
    frame = frame[frame["rating"] > 3.5]
    url = put_csv(frame, str(tmp_path / "a.csv"))
    manifest = run(client, url, str(tmp_path / "runs"), mode="implicit", rating_column=None)
    metrics = metrics_of(manifest)
    assert manifest.headline == "ndcg@5"
    assert metrics["ndcg@5"] > 1.5 * metrics["baseline_ndcg@5"] > 0
    assert "rmse" not in metrics


@pytest.fixture(scope="module", params=[1, 4])
def other_client(request: pytest.FixtureRequest) -> Iterator[Client]:
    with threads(request.param) as client:
        yield client


@pytest.fixture(scope="module")
def repeated() -> pd.DataFrame:
    return pd.concat([planted(), planted().head(100)])


@pytest.fixture(scope="module", params=["explicit", "implicit"])
def expected(
    request: pytest.FixtureRequest, client: Client, repeated: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, Any], pd.DataFrame]:
    """Mode, metrics and recommendations of a run on two workers, from one file in one partition."""
    folder = tmp_path_factory.mktemp("expected")
    manifest = run(client, put_csv(repeated, str(folder / "a.csv")), str(folder / "runs"), mode=request.param)
    return request.param, metrics_of(manifest), sorted_recommendations(manifest)


def sorted_recommendations(manifest: Manifest) -> pd.DataFrame:
    return tables(manifest, "recommendations/").sort_values(["user", "rank"], ignore_index=True)


def test_workers_partitions_and_files_do_not_change_the_result(
    expected: Any, repeated: pd.DataFrame, other_client: Client, tmp_path: Path
) -> None:
    mode, metrics, recommendations = expected
    folder = str(tmp_path / "parts")
    for i, at in enumerate(np.array_split(np.arange(len(repeated)), 3)):
        put_csv(repeated.iloc[at], f"{folder}/{i}.csv")
    manifest = run(other_client, folder, str(tmp_path / "runs"), mode=mode, partition_bytes=5000)
    assert metrics_of(manifest) == pytest.approx(metrics, rel=1e-9)
    pd.testing.assert_frame_equal(sorted_recommendations(manifest), recommendations, rtol=1e-9)


def test_a_test_set_of_its_own_is_used_as_it_is(client: Client, tmp_path: Path) -> None:
    frame = planted()
    train = put_csv(frame.iloc[:-300], str(tmp_path / "train.csv"))
    test = put_csv(frame.iloc[-300:], str(tmp_path / "test.csv"))
    metrics = metrics_of(run(client, {"url": train, "test_url": test}, str(tmp_path / "runs")))
    assert (metrics["n_train"], metrics["n_test"]) == (len(frame) - 300, 300)


def test_dropped_rows_repeated_ratings_and_single_users_are_counted(client: Client, tmp_path: Path) -> None:
    frame = planted()
    odd = pd.DataFrame({"user_id": ["lonely", None, "u000"], "item_id": [1000, 1000, 1001], "rating": [3.0, 3.0, None]})
    url = put_csv(pd.concat([frame, odd, frame.head(7)]), str(tmp_path / "a.csv"))
    manifest = run(client, url, str(tmp_path / "runs"))
    metrics = metrics_of(manifest)
    assert [metrics[f"n_{name}"] for name in ("dropped", "duplicates", "single_users")] == [2, 7, 1]
    assert "lonely" in set(tables(manifest, "recommendations/")["user"])


def test_a_user_who_knows_all_items_but_two_gets_two(client: Client, tmp_path: Path) -> None:
    frame = planted(20, 8, 0.4)
    frame = frame[frame["user_id"] != "u000"]
    fan = pd.DataFrame({"user_id": "u000", "item_id": 1000 + np.arange(6), "rating": 0.0})
    manifest = run(client, put_csv(pd.concat([frame, fan]), str(tmp_path / "a.csv")), str(tmp_path / "runs"))
    recommended = tables(manifest, "recommendations/")
    assert sorted(recommended[recommended["user"] == "u000"]["item"]) == [1006, 1007]


TIMES = {"dates": "2020-01-01T00:00:00", "numbers": "1609459200", "none": ""}


@pytest.mark.parametrize("kinds", [("dates", "numbers"), ("none", "numbers", "dates")])
def test_dates_and_numbers_are_not_compared(kinds: tuple[str, ...], client: Client, tmp_path: Path) -> None:
    for number, kind in enumerate(kinds):
        frame = planted(20, 8, 0.4).assign(t=TIMES[kind])
        put_csv(frame, str(tmp_path / "in" / f"{number}.csv"))
    dates, numbers = (rf"/{kinds.index(kind)}\.csv" for kind in ("dates", "numbers"))
    with pytest.raises(InputError, match=f"{dates}: column 't' has dates, but numbers in .*{numbers}; write all"):
        run(client, str(tmp_path / "in"), str(tmp_path / "runs"), timestamp_column="t")


def test_files_with_one_kind_of_times_or_none_are_read_together(client: Client, tmp_path: Path) -> None:
    for number, (kind, rating) in enumerate([("none", 1.0), ("dates", 5.0), ("none", 2.0)]):
        put_csv(planted(20, 8, 0.4).assign(t=TIMES[kind], rating=rating), str(tmp_path / "in" / f"{number}.csv"))
    put_csv(planted(20, 8, 0.4).assign(t=TIMES["numbers"]), str(tmp_path / "test.csv"))
    given = {"url": str(tmp_path / "in"), "test_url": str(tmp_path / "test.csv")}
    metrics = metrics_of(run(client, given, str(tmp_path / "runs"), timestamp_column="t"))
    assert metrics["n_duplicates"] == 2 * metrics["n_train"]


@pytest.mark.parametrize("ids", [("text", "integers"), ("integers", "text")])
@pytest.mark.parametrize("known", ["some users know all items", "all users know all items"])
def test_parts_without_recommendations_are_of_the_same_types(
    known: str, ids: tuple[str, str], client: Client, tmp_path: Path
) -> None:
    pairs = [(u, i) for u in range(10) for i in range(12) if known.startswith("all") or u % 2 or i < 8]
    users, items = zip(*pairs, strict=True)
    frame = pd.DataFrame({"user_id": users, "item_id": items, "rating": [u * i % 5 + 1 for u, i in pairs]})
    for name, kind in zip(("user_id", "item_id"), ids, strict=True):
        frame[name] = [f"{name[0]}{number}" if kind == "text" else number for number in frame[name]]
    url = put_csv(frame, str(tmp_path / "a.csv"))
    manifest = run(client, url, str(tmp_path / "runs"), rank=2, n_iterations=2, k=3)
    schemas = {
        (file.name.split("/")[0], str(pq.read_schema(io.BytesIO(storage.read_bytes(file.url))).types))
        for file in manifest.files
        if file.name.endswith(".parquet")
    }
    user, item = ({"text": "string", "integers": "int64"}[kind] for kind in ids)
    vector = "FixedSizeListType(fixed_size_list<element: double>[2])"
    assert {name: types.replace("DataType", "") for name, types in schemas} == {
        "recommendations": f"[({user}), ({item}), (int32), (double)]",
        "user_factors": f"[({user}), {vector}, (double)]",
        "item_factors.parquet": f"[({item}), {vector}, (double)]",
    }
    assert len(schemas) == 3
    assert len(tables(manifest, "recommendations/")) == (0 if known.startswith("all") else 5 * 4)


BAD_INPUT = {
    "no rows": ("user_id,item_id,rating\n", {}, r"a\.csv: no interactions \(0 rows dropped\)"),
    "an empty file": ("", {}, r"a\.csv: no interactions"),
    "only rows without ratings": (
        "user_id,item_id,rating\n1,2,\n1,3,\n",
        {},
        r"a\.csv: no interactions \(2 rows dropped\)",
    ),
    "k larger than the items": ("user_id,item_id,rating\n1,2,3\n1,3,4\n", {"k": 3}, r"2 items, but params\.k is 3"),
    "top_n larger than the items": (
        "user_id,item_id,rating\n1,2,3\n1,3,4\n",
        {"k": 1, "top_n": 9},
        r"2 items, but params\.top_n is 9; set it to 2 or less",
    ),
    "one rating a user": (
        "user_id,item_id,rating\n1,2,3\n2,3,4\n",
        {"k": 1, "top_n": 1},
        r"params\.test_fraction 0\.2 sets no rating aside",
    ),
    "a line break within quotes where the file is cut": (
        "user_id,item_id,rating\n" + "".join(f'u{n % 9},"item\n{n}",3\n' for n in range(99)),
        {"partition_bytes": 256},
        r"a\.csv: .*quotes.*set params\.partition_bytes to \d+ or more",
    ),
    "a rating too large to square": ("user_id,item_id,rating\n1,2,1e200\n1,3,4\n", {}, r"'rating' has 1e\+200, above"),
    "a rating that is text": ("user_id,item_id,rating\n1,2,many\n", {}, r"a\.csv: column 'rating' has 'many'"),
    "a missing column": ("user,item_id,rating\n1,2,3\n", {}, r"no column 'user_id' among .* set params\.user_column"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_gets_one_line_and_leaves_no_run(case: str, client: Client, tmp_path: Path) -> None:
    text, params, message = BAD_INPUT[case]
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        run(client, str(tmp_path / "a.csv"), str(tmp_path / "runs"), **params)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("runs/**/manifest.json"))


def test_line_breaks_within_quotes_make_no_users(client: Client, tmp_path: Path) -> None:
    rows = "".join(f'"user\n{n % 300:03d}",{n // 300},{n % 5 + 1}\n' for n in range(3_000))
    (tmp_path / "a.csv").write_text(f"user_id,item_id,rating\n{rows}")
    found = run(client, str(tmp_path / "a.csv"), str(tmp_path / "runs"), partition_bytes=1_000_000)
    assert metrics_of(found)["n_users"] == 300
    with pytest.raises(InputError, match=r"a\.csv: .*quotes.*partition_bytes"):
        run(client, str(tmp_path / "a.csv"), str(tmp_path / "runs"), partition_bytes=4096)


def test_missing_input_is_told_from_wrong_input(client: Client, s3: str) -> None:
    with pytest.raises(StorageMissingError, match=r"nothing\.csv: not found"):
        run(client, f"{s3}/nothing.csv", f"{s3}/runs")


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"rating_column": None}, "rating_column is null, but mode explicit predicts ratings"),
        ({"user_column": "item_id"}, "column 'item_id' is named for two purposes"),
        ({"columns": ["user_id", "item_id"]}, "'rating' is not among user_id, item_id"),
        ({"test_fraction": 1.0}, r"params\.test_fraction: 1\.0"),
        ({"rank": 0}, r"params\.rank: 0"),
        ({"mode": "both"}, r"params\.mode: \"both\""),
        ({"n_factors": 5}, "unknown key 'n_factors'"),
    ],
)
def test_params_that_make_no_sense_are_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse({"pipeline": "recommender", "input": "a.csv", "output": "runs", "params": params})


def test_the_report_shows_metrics_objective_and_recommendations(job_factory: Any, tmp_path: Path) -> None:
    job = job_factory("recommender", PARAMS, put_csv(planted(), str(tmp_path / "a.csv")))
    prepared = recommender.prepare(job, recommender.load(job))
    model = recommender.fit(job, prepared)
    compared, _, objective, samples = recommender.evaluate(job, prepared, model).sections
    assert [row[0] for row in compared.rows][:2] == ["rmse", "mae"]
    values = [value for _, value in objective.series["train"]]
    assert values == sorted(values, reverse=True)
    assert [row[0] for row in samples.rows] == [f"u{u:03d}" for u in range(8)]
    assert prepared.train.n_users == 120
