"""`daskyard run` and `show` as a user calls them: processes, an S3 server, exit codes."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from jobs import storage


def daskyard(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, **options)


@pytest.fixture
def job_file(s3, tmp_path):
    """A job on a bucket of its own that takes a few seconds."""
    generator = np.random.default_rng(0)
    pairs = [(user, item) for user in range(60) for item in range(30) if generator.random() < 0.4]
    frame = pd.DataFrame(pairs, columns=["user_id", "item_id"])
    frame["rating"] = 1.0 + (frame.user_id % 3) + (frame.item_id % 2)
    frame["timestamp"] = np.arange(len(frame))
    content = io.BytesIO()
    frame.to_parquet(content)
    storage.write_bytes(f"{s3}/ratings.parquet", content.getvalue())
    path = tmp_path / "job.yaml"
    params = {"rank": 4, "n_iterations": 2}
    job = {"pipeline": "recommender", "input": f"{s3}/ratings.parquet", "output": f"{s3}/runs", "params": params}
    path.write_text(yaml.safe_dump(job))
    return str(path)


def test_a_run_is_committed_once_and_shown(job_file, s3, tmp_path):
    result = tmp_path / "result.json"
    first = daskyard("run", job_file, "--workers", "1", "--run-id", "mine", "--json", "--result", str(result))
    assert first.returncode == 0, first.stderr
    document = json.loads(first.stdout)
    told = json.loads(result.read_text())
    assert told["metrics"] == document["manifest"]["metrics"]
    assert (told["outcome"], told["run_url"], told["was_committed"]) == ("committed", document["run_url"], False)
    assert document["run_url"] == f"{s3}/runs/mine"
    assert document["was_committed"] is False
    assert "5/5 write took" in first.stderr
    assert "Traceback" not in first.stderr

    again = daskyard("run", job_file, "--run-id", "mine", "--json")
    assert again.returncode == 0
    assert json.loads(again.stdout) == {**document, "was_committed": True}

    shown = daskyard("show", f"{s3}/runs/mine", "--json")
    assert json.loads(shown.stdout) == document["manifest"]

    other = daskyard("run", job_file, "--run-id", "mine", "--set", "params.rank=5")
    assert other.returncode == 2
    assert other.stderr.splitlines()[-1].startswith(f"error: {s3}/runs/mine: holds a run of another spec")


def test_missing_input_is_one_line_and_exit_code_2_and_no_run(job_file, s3):
    result = daskyard("run", job_file, "--workers", "1", "--run-id", "mine", "--set", f"input={s3}/absent.parquet")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1].startswith(f"error: {s3}/absent.parquet: ")
    assert "Traceback" not in result.stderr
    assert daskyard("show", f"{s3}/runs/mine").returncode == 2


def test_wrong_credentials_are_one_line_and_exit_code_2(job_file):
    environment = {**os.environ, "AWS_SECRET_ACCESS_KEY": "wrong"}
    result = daskyard("run", job_file, "--workers", "1", env=environment)
    assert (result.returncode, result.stdout) == (2, "")
    assert "correct AWS_SECRET_ACCESS_KEY" in result.stderr.splitlines()[-1]
    assert "wrong" not in result.stderr


def test_ctrl_c_ends_the_run_and_its_workers_with_exit_code_130(job_file, s3):
    command = [sys.executable, "-m", "jobs.cli", "run", job_file, "--workers", "1", "--run-id", "mine"]
    options = ["--set", "params.n_iterations=1000"]
    # A group of its own, as a shell gives to a job: the terminal signals all of it.
    process = subprocess.Popen(
        [*command, *options], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "3/5 fit" in line:
            break
    os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (130, ""), stderr
    assert stderr.splitlines()[-1] == "error: interrupted"
    assert "KeyboardInterrupt" not in stderr
    deadline = time.monotonic() + 10
    while _group(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _group(process.pid)
    assert not storage.exists(f"{s3}/runs/mine/manifest.json")


def _group(pgid: int) -> list[int]:
    """Processes of a group that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group = stat.read_text().rsplit(")", 1)[1].split()[:3]
        except OSError:
            continue
        if int(group) == pgid and state != "Z":
            found.append(int(stat.parent.name))
    return found
