"""`daskyard preflight` against a real S3 server: what a job would trip over is told before any worker is asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import preflight, spec, storage
from jobs.artifacts import Attempt, Manifest
from jobs.errors import StorageMissingError
from jobs.local_s3 import LocalS3

CSV = b"x,y\n" + b"".join(b"%d,%d\n" % (i, 3 * i + i % 2) for i in range(40))
NOWHERE = "http://127.0.0.1:9"
PROBE = "runs/_daskyard/conditional"
HEAVY = ("torch", "pandas", "dask", "distributed", "numpy", "sklearn", "numba", "pyarrow")


@pytest.fixture
def bucket(s3: str) -> str:
    storage.write_bytes(f"{s3}/data.csv", CSV)
    return s3


def job_file(folder: Path, source: Any, output: str, **more: Any) -> Path:
    path = folder / "job.yaml"
    content = {"pipeline": "linear_regression", "input": source, "output": output, "run_id": "r"}
    path.write_text(yaml.safe_dump({**content, "params": {"target": "y"}, **more}))
    return path


def call(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jobs.cli", *arguments],
        env={**os.environ, **environment, "AWS_EC2_METADATA_DISABLED": "true"},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def commit(job: spec.JobSpec) -> None:
    now = datetime(2026, 11, 2, tzinfo=UTC)
    attempt = Attempt(f"{job.output}/{job.name}")
    attempt.write_bytes("model.json", b"{}")
    manifest = Manifest(
        run_id=job.name,
        pipeline=job.pipeline,
        spec=job.model_dump(mode="json"),
        attempt=attempt.id,
        headline="r2",
        metrics={"r2": 1.0},
        n_rows=1,
        n_workers=1,
        seed=0,
        seconds=1.0,
        started_at=now,
        committed_at=now,
        stages=[],
        inputs=[],
        files=attempt.files,
        package_version="0",
        git_commit=None,
        versions={},
    )
    attempt.commit(manifest)


def objects(bucket: str) -> set[str]:
    return set(storage.list_sizes(bucket))


def test_a_job_that_is_ready_is_a_line_for_each_thing_and_leaves_the_probe_alone(bucket: str, tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    job = job_file(tmp_path, f"{bucket}/data.csv", f"{bucket}/runs")
    done = call("preflight", str(job), "--result", str(result))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"{job}: valid, linear_regression from {bucket}/data.csv to {bucket}/runs/r",
        f"{bucket}/data.csv: can be read, 1 file of {len(CSV)} bytes",
        f"{bucket}/runs: can be written",
    ]
    assert json.loads(result.read_text()) == {"outcome": "ready"}
    assert objects(bucket) == {"data.csv", PROBE}


def test_as_json_it_says_what_was_found(bucket: str, tmp_path: Path) -> None:
    storage.write_bytes(f"{bucket}/test/a.csv", b"")
    storage.write_bytes(f"{bucket}/test/b.csv", CSV)
    job = job_file(tmp_path, {"url": f"{bucket}/data.csv", "test_url": f"{bucket}/test"}, f"{bucket}/runs")
    done = call("preflight", str(job), "--run-id", "other", "--set", "params.seed=3", "--json")
    assert json.loads(done.stdout) == {
        "outcome": "ready",
        "run_url": f"{bucket}/runs/other",
        "was_committed": False,
        "inputs": [
            {"url": f"{bucket}/data.csv", "n_files": 1, "size": len(CSV)},
            {"url": f"{bucket}/test", "n_files": 2, "size": len(CSV)},
        ],
    }


WRONG_KEYS = {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "wrong-secret"}
UNREACHABLE = {"AWS_ENDPOINT_URL": NOWHERE, "AWS_ENDPOINT_URL_S3": NOWHERE}
CASES = {
    "no bucket for input": ({}, "s3://no-such-bucket-here/a.csv", None, 2, "StorageMissingError", "no such bucket"),
    "no bucket for output": ({}, None, "s3://no-such-bucket-here/runs", 2, "StorageMissingError", "no such bucket"),
    "no input": ({}, "{bucket}/none.csv", None, 2, "StorageMissingError", "not found; correct the URL"),
    "nothing matches": ({}, "{bucket}/*.parquet", None, 2, "StorageMissingError", "no files there"),
    "only empty files": ({}, "{bucket}/empty.csv", None, 2, "InputError", "nothing but empty files"),
    "wrong keys": (WRONG_KEYS, None, None, 2, "StorageDeniedError", "AWS_ACCESS_KEY_ID|access denied"),
    "unreachable": (UNREACHABLE, None, None, 75, "StorageError", "did not answer"),
    "output in the way": ({}, None, "/dev/null/runs", 2, "StorageMissingError", "/dev/null"),
    "memory": ({}, None, "memory://runs", 2, "SpecError", "the memory of one process"),
}


@pytest.mark.parametrize(("changes", "source", "output", "code", "error", "message"), CASES.values(), ids=CASES)
def test_what_a_run_would_trip_over_is_one_line_with_the_exit_code_of_its_class(
    changes: dict[str, str],
    source: str | None,
    output: str | None,
    code: int,
    error: str,
    message: str,
    bucket: str,
    tmp_path: Path,
) -> None:
    storage.write_bytes(f"{bucket}/empty.csv", b"")
    result = tmp_path / "result.json"
    job = job_file(tmp_path, (source or "{bucket}/data.csv").format(bucket=bucket), output or f"{bucket}/runs")
    done = call("preflight", str(job), "--result", str(result), **changes)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert any(part in done.stderr for part in message.split("|")), done.stderr
    assert "wrong-secret" not in done.stderr
    told = json.loads(result.read_text())
    assert (told["outcome"], told["error"], told["exit_code"]) == ("failed", error, code)
    assert objects(bucket) == {"data.csv", "empty.csv"}


def test_a_job_file_that_is_wrong_is_told_before_storage_is_asked(tmp_path: Path) -> None:
    job = job_file(tmp_path, "s3://a/b", "s3://a/runs", params={"targt": "y"})
    done = call("preflight", str(job), **UNREACHABLE)
    assert done.returncode == 2
    assert "unknown key 'targt'" in done.stderr


def test_an_output_that_may_be_read_only_is_told(s3_server: LocalS3, bucket: str, tmp_path: Path) -> None:
    fs, name = storage.options_fs(bucket)
    policy = {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Deny", "Principal": "*", "Action": "s3:PutObject", "Resource": f"arn:aws:s3:::{name}/*"}
        ],
    }
    fs.call_s3("put_bucket_policy", Bucket=name, Policy=json.dumps(policy))
    done = call("preflight", str(job_file(tmp_path, f"{bucket}/data.csv", f"{bucket}/runs")))
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "access denied (AccessDenied); grant these credentials access to it" in done.stderr
    assert objects(bucket) == {"data.csv"}


def test_a_committed_run_is_ready_and_one_of_another_spec_is_not(bucket: str, tmp_path: Path) -> None:
    job = job_file(tmp_path, f"{bucket}/data.csv", f"{bucket}/runs")
    commit(spec.load(job))
    storage.remove_tree(f"{bucket}/data.csv")
    before = objects(bucket)
    done = call("preflight", str(job))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1] == f"{bucket}/runs/r: committed before, nothing to do"
    other = call("preflight", str(job), "--set", "params.seed=5")
    assert other.returncode == 2
    assert "holds a run of another spec; choose another run_id or output" in other.stderr
    assert objects(bucket) == before


def test_preflight_imports_nothing_that_takes_long(bucket: str, tmp_path: Path) -> None:
    job = job_file(tmp_path, f"{bucket}/data.csv", f"{bucket}/runs")
    code = (
        "import sys, jobs.cli\nsys.argv = ['daskyard', 'preflight', sys.argv[1]]\n"
        "try: jobs.cli.main()\nexcept SystemExit as end: assert not end.code, end\n"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(job)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr == "[]\n"


def test_a_missing_bucket_is_an_error_of_the_library_too(s3_server: LocalS3, tmp_path: Path) -> None:
    job = spec.load(job_file(tmp_path, "s3://no-such-bucket-here/a.csv", "s3://no-such-bucket-here/runs"))
    with pytest.raises(StorageMissingError):
        preflight.check(job)
