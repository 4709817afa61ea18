"""`daskyard demo`: one job that cannot run does not stop the others, and the exit code tells."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs import demo, spec
from jobs.cli.app import app
from jobs.datasets import DATASETS, Dataset, catalogue, convert, sources

DIGITS = """
pipeline: image_classification
input: s3://demo/data/digits
output: s3://demo/elsewhere
params: {epochs: 1, width: 4, batch_size: 64, micro_batch_size: 32, flip: false, translate: 0, tta: false}
"""
ABSENT = "{pipeline: kmeans, input: 's3://demo/data/absent/*.parquet', output: s3://demo/runs}"


@pytest.fixture
def small_demo(tmp_path, monkeypatch):
    """A demo that needs no network: digits, which come with scikit-learn, and a data set that nobody has."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("DASKYARD_DATA_DIR", raising=False)
    nowhere = (sources.Folder(tmp_path / "nowhere"),)
    absent = Dataset("absent", "nowhere to be had", "None.", {"all": 1}, {"a.parquet": "0" * 64}, nowhere, convert.copy)
    monkeypatch.setitem(catalogue.DATASETS, "absent", absent)
    examples = tmp_path / "examples"
    examples.mkdir()
    (examples / "digits.yaml").write_text(DIGITS)
    (examples / "absent.yaml").write_text(ABSENT)
    monkeypatch.setattr(demo, "examples", lambda: examples)
    images = (demo.Case("digits.yaml", "absent"), demo.Case("digits.yaml", "digits"))
    monkeypatch.setattr(demo, "CASES", ((demo.Case("absent.yaml", "absent"),), images))
    return tmp_path


def test_the_demo_goes_on_after_a_failure_falls_back_to_other_images_and_keeps_what_it_made(small_demo):
    keep = small_demo / "kept"
    result = CliRunner().invoke(app, ["demo", "--workers", "1", "--keep", str(keep)], env={"COLUMNS": "80"})
    assert result.exit_code == 75, result.output
    table = result.stdout
    assert "failed" in table
    assert "kmeans failed: data set absent: " in table
    assert "put a.parquet into a folder and name it in DASKYARD_DATA_DIR" in table
    assert "  with digits: not absent, because: " in table
    (line,) = [line for line in table.splitlines() if line.startswith("image_classification")]
    # 1,438 images for training and 359 for testing.
    assert line.split()[1:4] == ["digits", "1,797", "1"]
    assert len(line) <= 80
    (run_url,) = [line for line in table.splitlines() if line.startswith("s3://demo/runs/")]
    assert [path.name for path in (keep / "reports").iterdir()] == [run_url.rsplit("/", 1)[1] + ".html"]
    assert f"python -P -m jobs.local_s3 {keep}/s3 daskyard show {run_url}" in table

    command = [sys.executable, "-P", "-m", "jobs.local_s3", str(keep / "s3"), sys.executable, "-m", "jobs.cli", "show"]
    shown = subprocess.run([*command, run_url], capture_output=True, text=True, timeout=60, check=True)
    assert "image_classification" in shown.stdout


def test_only_an_unknown_pipeline_is_exit_code_2():
    result = CliRunner().invoke(app, ["demo", "--only", "kmean"])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --only: no pipeline 'kmean'; known: ")


@pytest.mark.parametrize("cases", demo.CASES, ids=lambda cases: cases[0].example)
def test_every_job_of_the_demo_is_a_valid_example(cases):
    for case in cases:
        assert case.dataset in DATASETS
        job = spec.load(Path(str(demo.examples() / case.example)), case.sets)
        assert job.output == demo.OUTPUT


def test_a_job_reads_the_one_file_or_both_parts_or_the_folder():
    assert demo._input("s3://d/a", ["s3://d/a/x.parquet"]) == {"url": "s3://d/a/x.parquet"}
    both = {"url": "s3://d/a/train.parquet", "test_url": "s3://d/a/test.parquet"}
    assert demo._input("s3://d/a", ["s3://d/a/test.parquet", "s3://d/a/train.parquet"]) == both
    assert demo._input("s3://d/a", ["s3://d/a/train-images.gz", "s3://d/a/t10k-images.gz"]) == {"url": "s3://d/a"}
