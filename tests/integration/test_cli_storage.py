"""What storage refuses comes out of the command as one line and the exit code of its class; no run is left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import storage
from jobs.local_s3 import LocalS3

CSV = b"x,y\n" + b"".join(b"%d,%d\n" % (i, 3 * i + i % 2) for i in range(40))
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def bucket(s3: str) -> str:
    storage.write_bytes(f"{s3}/data.csv", CSV)
    return s3


CASES = {
    "missing bucket for input": ({}, "s3://no-such-bucket-here/data.csv", None, 2, "no such bucket|not found"),
    "missing bucket for output": ({}, None, "s3://no-such-bucket-here/runs", 2, "no such bucket"),
    "missing object": ({}, "{bucket}/none.csv", None, 2, "not found; correct the URL"),
    "wrong secret": ({"AWS_SECRET_ACCESS_KEY": "wrong-secret"}, None, None, 2, "AWS_SECRET_ACCESS_KEY|access denied"),
    "unknown key": ({"AWS_ACCESS_KEY_ID": "nobody"}, None, None, 2, "AWS_ACCESS_KEY_ID|access denied"),
    "unreachable endpoint": (
        {"AWS_ENDPOINT_URL": NOWHERE, "AWS_ENDPOINT_URL_S3": NOWHERE},
        None,
        None,
        75,
        "did not answer",
    ),
    "unknown protocol": ({}, "nosuch://a/b.csv", None, 2, "Protocol not known|cannot be used here"),
    "local output in the way": ({}, None, "/dev/null/runs", 2, "/dev/null"),
}


@pytest.mark.parametrize(("changes", "source", "output", "code", "message"), CASES.values(), ids=CASES)
def test_storage_trouble_is_one_line_with_its_exit_code(
    changes: dict[str, str],
    source: str | None,
    output: str | None,
    code: int,
    message: str,
    bucket: str,
    s3_server: LocalS3,
    tmp_path: Path,
) -> None:
    job = tmp_path / "job.yaml"
    source = (source or "{bucket}/data.csv").format(bucket=bucket)
    output = output or f"{bucket}/runs"
    job.write_text(
        f"pipeline: linear_regression\nparams: {{target: y}}\ninput: '{source}'\noutput: '{output}'\nrun_id: r\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", "run", str(job), "--workers", "1"],
        env={**os.environ, **changes, "AWS_EC2_METADATA_DISABLED": "true"},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == code, done.stderr
    *_, last = done.stderr.strip().splitlines()
    assert last.startswith("error: ")
    assert any(part in last for part in message.split("|")), last
    assert "Traceback" not in done.stderr
    assert "wrong-secret" not in done.stderr
    assert done.stdout == ""
    assert not storage.exists(f"{bucket}/runs/r/manifest.json")
