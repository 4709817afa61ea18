"""A job file is parsed once, strictly; what is wrong is said with place, value and remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.errors import SpecError
from jobs.spec import PIPELINES, json_schema, load, parse
from jobs.spec.kmeans import KMeansParams

GOOD = """
pipeline: kmeans
params: {n_clusters: 3}
input: s3://bucket/data.parquet
output: s3://bucket/runs
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "job.yaml"
    path.write_text(text)
    return path


def test_how_to_deal_with_storage_changes_no_run_id(tmp_path: Path) -> None:
    job = load(write(tmp_path, GOOD + "storage: {stall_seconds: 10}\n"))
    assert job.storage.stall_seconds == 10
    assert job.name == load(write(tmp_path, GOOD)).name
    assert parse(job.model_dump(mode="json")).digest == job.digest


@pytest.mark.parametrize(
    "place",
    ["input: 's3://KEY:s3cr/et@b/a'", "input: {url: a, test_url: 'https://u:s3cr-et@h/a'}", "output: 's3://k:s3cr@b'"],
)
def test_a_password_in_a_url_is_refused_and_not_repeated(tmp_path: Path, place: str) -> None:
    key = place.split(":")[0]
    text = "\n".join(line for line in GOOD.splitlines() if not line.startswith(f"{key}:"))
    with pytest.raises(SpecError, match=rf"{key}.*holds a password or a signature; take it out") as caught:
        load(write(tmp_path, f"{text}\n{place}\n"))
    assert "s3cr" not in str(caught.value)


def test_a_job_file_becomes_a_typed_frozen_object(tmp_path: Path) -> None:
    spec = load(write(tmp_path, GOOD))
    assert isinstance(spec.params, KMeansParams)
    assert spec.params.n_clusters == 3
    assert spec.input.url == "s3://bucket/data.parquet"
    with pytest.raises(ValueError, match="frozen"):
        spec.output = "elsewhere"  # type: ignore[misc]


def test_the_run_id_follows_the_content_and_not_the_formatting(tmp_path: Path) -> None:
    first = load(write(tmp_path, GOOD))
    again = load(
        write(tmp_path, GOOD.replace("input: s3://bucket/data.parquet", "input: {url: 's3://bucket/data.parquet'}"))
    )
    other = load(write(tmp_path, GOOD), sets=["params.seed=1"])
    assert first.name == again.name
    assert first.name != other.name
    assert first.name.startswith("kmeans-")
    assert load(write(tmp_path, GOOD), run_id="monday").name == "monday"


def test_a_spec_survives_its_own_dump() -> None:
    spec = parse({"pipeline": "kmeans", "params": {"n_clusters": 4}, "input": "a.csv", "output": "out"})
    assert parse(spec.model_dump(mode="json")) == spec


def test_set_overrides_nested_keys_and_parses_yaml(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    spec = load(path, sets=["params.n_clusters=5", "input.format=parquet", "run_id=x-1"])
    assert (spec.params.n_clusters, spec.input.url, spec.input.format, spec.run_id) == (  # type: ignore[attr-defined]
        5,
        "s3://bucket/data.parquet",
        "parquet",
        "x-1",
    )


WRONG = {
    "not a mapping": ("- a\n- b\n", r"job.yaml: a job spec is a mapping .*, not a list"),
    "empty file": ("", r"not nothing"),
    "broken yaml": ("pipeline: [kmeans\n", r"job.yaml: line \d+ not valid YAML"),
    "key twice": (GOOD + "output: s3://b/other\n", r"key 'output' stands twice"),
    "no pipeline": ("input: a\noutput: b\n", r"pipeline: missing; add it"),
    "unknown pipeline": (GOOD.replace("kmeans", "kmean"), r"no pipeline 'kmean' \(did you mean 'kmeans'\?\); known: "),
    "unknown top key": (GOOD + "outptu: x\n", r"unknown key 'outptu' \(did you mean 'output'\?\)"),
    "mistyped required key": (GOOD.replace("input:", "inputs:"), r"unknown key 'inputs' \(did you mean 'input'\?\)"),
    "unknown param": (GOOD.replace("n_clusters", "n_cluster"), r"params: unknown key 'n_cluster' \(did you mean"),
    "text for a number": (GOOD.replace("3}", "three}"), r'params.n_clusters: "three" should be a valid integer'),
    "number as text": (GOOD.replace("3}", "'3'}"), r"params.n_clusters: .* valid integer"),
    "fraction for a count": (GOOD.replace("3}", "3.5}"), r"params.n_clusters: 3.5 "),
    "below the bound": (GOOD.replace("3}", "0}"), r"params.n_clusters: 0 should be greater"),
    "not a number": (GOOD.replace("3}", "3, tol: .nan}"), r"params.tol: "),
    "params not a mapping": (GOOD.replace("{n_clusters: 3}", "[1]"), r"params: \[1\] should be an object"),
    "unknown input key": (
        GOOD.replace("s3://bucket/data.parquet", "{url: a, fromat: csv}"),
        r"input: unknown key 'fromat'",
    ),
    "unknown format": (
        GOOD.replace("s3://bucket/data.parquet", "{url: a, format: xls}"),
        r"input.format: \"xls\" should be",
    ),
    "empty output": (GOOD.replace("s3://bucket/runs", "''"), r'output: "" should have at least 1 character'),
    "unknown key of storage": (GOOD + "storage: {stall: 1}\n", r"storage: unknown key 'stall'.*known keys: stall_s"),
    "no time to wait": (GOOD + "storage: {stall_seconds: 0}\n", r"storage.stall_seconds: "),
    "bad run id": (GOOD + "run_id: Not_A_Label\n", r"run_id: "),
    "run id too long": (GOOD + f"run_id: {'a' * 54}\n", r"run_id: "),
    "a date": (GOOD.replace("3}", "2026-01-01}"), r"quote dates"),
}


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_spec_says_what_where_and_what_to_do(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        load(write(tmp_path, text))
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("params", "not of the form key=value"),
        ("=1", "not of the form"),
        ("pipeline.x=1", "pipeline is text"),
        ("a=[", "YAML"),
    ],
)
def test_a_wrong_set_is_refused(item: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=message):
        load(write(tmp_path, GOOD), sets=[item])


def test_a_missing_or_binary_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be read"):
        load(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"pipeline: \xff")
    with pytest.raises(SpecError, match="not UTF-8 text at byte 10"):
        load(tmp_path / "binary.yaml")


def test_the_schema_has_a_branch_a_pipeline_with_every_param_described() -> None:
    schema = json_schema()
    assert [branch["properties"]["pipeline"]["const"] for branch in schema["oneOf"]] == list(PIPELINES)
    for model in PIPELINES.values():
        properties = schema["$defs"][model.__name__]["properties"]
        assert set(properties) == set(model.model_fields)
        assert all(value.get("description") for value in properties.values())
    json.dumps(schema)


def test_a_number_with_an_exponent_needs_no_point(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(
        "pipeline: kmeans\nparams: {tol: 1e-3}\ninput: {url: x}\noutput: 1e\nrun_id: e1-4\n"
    )
    job = load(tmp_path / "job.yaml", ["params.n_clusters=9"])
    assert job.params.model_dump()["tol"] == 1e-3
    assert (job.output, job.run_id) == ("1e", "e1-4")
    assert load(tmp_path / "job.yaml", ["params.tol=2E-4"]).params.model_dump()["tol"] == 2e-4


@pytest.mark.parametrize("output", ["s3://demo/runs", "rel/out", "/a"])
def test_a_slash_at_the_end_of_the_output_makes_no_other_run(output: str) -> None:
    plain, *slashed = (parse({"pipeline": "kmeans", "input": "in", "output": output + end}) for end in ("", "/", "//"))
    assert {job.digest for job in slashed} == {plain.digest}
    assert {job.name for job in slashed} == {plain.name}
