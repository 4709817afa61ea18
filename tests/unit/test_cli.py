"""The command line: what it prints, where, and with which exit code."""

import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from typing import Literal

import pytest
import yaml
from pydantic import Field
from typer.testing import CliRunner

import jobs
from jobs import artifacts, datasets, spec
from jobs.cli.app import app
from jobs.cli.params import params

runner = CliRunner()


def call(*arguments: str, code: int = 0, stdin: str | None = None):
    result = runner.invoke(app, arguments, input=stdin, env={"COLUMNS": "80"})
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def job_file(tmp_path):
    path = tmp_path / "job.yaml"
    content = {"pipeline": "kmeans", "input": "memory://in", "output": "memory://out", "params": {"seed": 3}}
    path.write_text(yaml.safe_dump(content))
    return str(path)


@pytest.fixture
def run_url(tmp_path):
    """A committed run."""
    url = f"{tmp_path}/runs/r1"
    attempt = artifacts.Attempt(url)
    attempt.write_bytes("report.html", b"<html>")
    attempt.write_bytes("model/centers.parquet", b"12345")
    now = datetime(2026, 11, 2, 3, 4, 5, tzinfo=UTC)
    attempt.commit(
        artifacts.Manifest(
            run_id="r1",
            pipeline="kmeans",
            spec={},
            attempt=attempt.id,
            headline="inertia",
            metrics={"inertia": 123.456789, "n_iterations": 12345, "start": "k-means‖"},
            n_rows=1_000_000,
            n_workers=2,
            seed=7,
            seconds=75.0,
            started_at=now,
            committed_at=now,
            stages=[artifacts.StageRecord(name="load", seconds=1.234)],
            inputs=[],
            files=attempt.files,
            package_version="9.9",
            git_commit=None,
            versions={"dask": "1.2"},
        )
    )
    return url


def test_version_is_that_of_the_package():
    assert call("--version").stdout == f"daskyard {jobs.__version__}\n"


def test_pipelines_lists_every_pipeline_with_its_description():
    output = call("pipelines").stdout
    assert all(name in output for name in spec.PIPELINES)
    assert "A convolutional network" in output


@pytest.mark.parametrize("name", spec.PIPELINES)
def test_params_of_a_pipeline_are_shown_whole_within_80_columns(name):
    output = call("pipelines", name).stdout
    assert all(param in output for param in spec.PIPELINES[name].model_fields)
    assert max(map(len, output.splitlines())) <= 80


@pytest.mark.parametrize("name", spec.PIPELINES)
def test_defaults_in_the_json_listing_are_those_of_the_model(name):
    (listed,) = json.loads(call("pipelines", name, "--json").stdout)
    fields = spec.PIPELINES[name].model_fields
    assert [param["name"] for param in listed["params"]][-1] == "seed"
    assert {param["name"] for param in listed["params"]} == set(fields)
    for param in listed["params"]:
        assert param["is_required"] == fields[param["name"]].is_required()
        if not param["is_required"]:
            model_default = fields[param["name"]].default
            assert param["default"] == (list(model_default) if isinstance(model_default, tuple) else model_default)


def test_types_of_params_read_as_text():
    class Some(spec.Params):
        n: int = Field(5, ge=1, le=1000)
        rate: float = Field(gt=0, lt=2.5)
        kind: Literal["a", "b"] = "a"
        size: int | None = Field(None, ge=8)
        sizes: tuple[int, ...] = ()
        pair: tuple[float, str] = (0.5, "x")
        is_on: bool = True

    assert {param.name: param.type for param in params(Some)} == {
        "n": "int, 1 to 1,000",
        "rate": "float, > 0, < 2.5",
        "kind": "a | b",
        "size": "int, ≥ 8 | none",
        "sizes": "list of int",
        "pair": "list",
        "is_on": "bool",
        "seed": "int, ≥ 0, < 4,294,967,296",
    }
    assert [param.name for param in params(Some) if param.is_required] == ["rate"]


def test_an_unknown_pipeline_is_one_line_on_standard_error_and_exit_code_2():
    result = call("pipelines", "kmean", code=2)
    assert result.stdout == ""
    assert result.stderr.startswith("error: no pipeline 'kmean'")
    assert result.stderr.count("\n") == 1


def test_schema_is_that_of_the_spec():
    assert json.loads(call("schema").stdout) == spec.json_schema()


def test_validate_says_what_the_job_is(job_file):
    assert call("validate", job_file).stdout.startswith(f"{job_file}: valid, kmeans from memory://in to memory://out/")


def test_set_overrides_keys_with_yaml_values(job_file):
    options = ["--set", "params.seed=11", "--set", "input={url: memory://other, format: csv}", "--run-id", "mine"]
    job = json.loads(call("validate", job_file, *options, "--json").stdout)
    assert job["params"]["seed"] == 11
    assert job["input"]["url"] == "memory://other"
    assert job["input"]["format"] == "csv"
    assert job["run_id"] == "mine"


def test_a_job_can_come_from_standard_input():
    stdin = "{pipeline: kmeans, input: memory://in, output: memory://out}"
    assert call("validate", "-", stdin=stdin).stdout.startswith("-: valid, kmeans")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "params.n_cluster=5"], "n_cluster"),
        (["--set", "params.seed=high"], "seed"),
        (["--set", "pipeline=kmean"], "kmean"),
        (["--set", "nonsense"], "nonsense"),
        (["--run-id", "Not A Name"], "run_id"),
    ],
)
def test_a_wrong_spec_is_one_line_and_exit_code_2(job_file, options, message):
    for command in ("validate", "run"):
        result = call(command, job_file, *options, code=2)
        assert result.stdout == ""
        assert result.stderr.startswith("error: ")
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
        assert "Traceback" not in result.stderr


def test_a_missing_file_is_one_line_and_exit_code_2(tmp_path):
    result = call("run", f"{tmp_path}/absent.yaml", code=2)
    assert (
        result.stderr == f"error: {tmp_path}/absent.yaml: cannot be read (No such file or directory); name a job file\n"
    )


def test_debug_shows_the_traceback_and_then_the_line(tmp_path):
    result = call("run", f"{tmp_path}/absent.yaml", "--debug", code=2)
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.splitlines()[-1].startswith(f"error: {tmp_path}/absent.yaml: cannot be read")


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["frobnicate"],
        ["run", "x.yaml", "--workers", "0"],
        ["run", "x.yaml", "--workers", "9" * 20],
        ["demo", "--workers", "9" * 20],
        ["show"],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments):
    assert call(*arguments, code=2).stdout == ""


def test_a_defect_is_one_line_that_points_to_debug_and_exit_code_1(job_file, monkeypatch):
    def broken(*_: object) -> None:
        raise ZeroDivisionError("so far\nno further")

    monkeypatch.setattr(spec, "load", broken)
    result = call("run", job_file, code=1)
    expected = "error: ZeroDivisionError: so far no further; run again with --debug to see where\n"
    assert result.stderr == expected


def test_an_interrupt_is_exit_code_130(job_file, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(spec, "load", interrupted)
    assert call("run", job_file, code=130).stderr == "error: interrupted\n"


def test_an_interrupt_in_code_made_from_text_does_not_end_python_by_the_signal(tmp_path):
    """Such code runs whenever a dataclass is made. More of it, run by a command as it ends, would hide that it did."""
    script = """
import sys
from jobs.cli import app
def interrupted():
    try:
        exec("raise KeyboardInterrupt")
    except KeyboardInterrupt:
        sys.exit(130)
app.app = interrupted
app.main()
"""
    (tmp_path / "interrupted.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-m", "interrupted"], env=environment, timeout=60)
    assert done.returncode == 130


def test_show_prints_metrics_stages_and_files(run_url):
    output = call("show", run_url).stdout
    for text in (
        "1,000,000 rows, 2 workers, 1:15 min",
        "123.457",
        "12,345",
        "k-means‖",
        "model/centers.parquet",
        "1.23",
    ):
        assert text in output
    assert f"run     {run_url}\n" in output


def test_show_as_json_is_the_manifest(run_url):
    document = json.loads(call("show", run_url, "--json").stdout)
    assert document == artifacts.read_manifest(run_url).model_dump(mode="json")


def test_show_of_nothing_says_so_with_exit_code_2(tmp_path):
    result = call("show", f"{tmp_path}/nothing", code=2)
    assert result.stderr == f"error: {tmp_path}/nothing: no committed run there; correct the URL or run the job\n"


def test_data_list_names_every_data_set_and_its_terms():
    output = call("data", "list").stdout
    assert all(name in output for name in datasets.DATASETS)
    assert "GroupLens terms" in output
    assert max(map(len, output.splitlines())) <= 80
    assert [each["name"] for each in json.loads(call("data", "list", "--json").stdout)] == list(datasets.DATASETS)


def test_data_fetch_prints_the_files_and_where_they_are(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("DASKYARD_DATA_DIR", raising=False)
    result = call("data", "fetch", "digits", f"{tmp_path}/digits")
    assert len(result.stdout.splitlines()) == 4
    assert "train-images-idx3-ubyte.gz" in result.stdout
    assert "Terms: CC BY" in result.stderr
    document = json.loads(call("data", "fetch", "digits", f"{tmp_path}/digits", "--json").stdout)
    assert {"url", "size", "etag"} == set(document["files"][0])
    assert call("data", "fetch", "digit", f"{tmp_path}/digits", code=2).stderr.startswith("error: no data set 'digit'")


def test_listing_pipelines_loads_nothing_heavy():
    heavy = ("torch", "pandas", "dask", "distributed", "numpy", "sklearn", "numba", "pyarrow", "s3fs")
    code = (
        "import sys, jobs.cli\nsys.argv = ['daskyard', *sys.argv[1:]]\ntry: jobs.cli.main()\nexcept SystemExit: pass\n"
        f"print([name for name in {heavy} if name in sys.modules], file=sys.stderr)"
    )
    for arguments in (["pipelines"], ["pipelines", "kmeans"], ["schema"], ["data", "list"], ["--version"]):
        command = [sys.executable, "-c", code, *arguments]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert result.stderr == "[]\n"


@pytest.mark.parametrize("command", ["schema", "pipelines"])
def test_a_reader_that_has_left_causes_no_traceback(command):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as output:
        result = subprocess.run(
            [sys.executable, "-m", "jobs.cli", command], stdout=output, stderr=subprocess.PIPE, timeout=60, check=False
        )
    assert (result.returncode, result.stderr) == (1, b"")


DEAF = """
import os, signal, sys, time
from jobs.cli import app, stops

@app.app.command()
@app._command
def deaf() -> None:
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(20)
    except BaseException:
        time.sleep(20)

stops.TELL_AGAIN_S = 0.5
sys.argv = ["daskyard", "deaf"]
app.main()
"""


def test_who_was_told_to_stop_where_nobody_listens_is_told_again() -> None:
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", DEAF], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 75, done.stderr
    assert done.stderr == "error: told to stop by SIGTERM; run the job again\n"
    assert time.monotonic() - start < 20
