"""Runs while storage is late, loses answers, denies, or ignores conditions: whole or not there, and never in doubt.

What a rule does at each moment of an attempt is in tests/unit/test_attempt_faults.py; here are pipelines with workers,
retries and the command.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from distributed import Client

from jobs import preflight, retries, runner, storage
from jobs.errors import DaskyardError, OutputError
from jobs.listener import Listener
from jobs.local_s3 import LocalS3
from jobs.spec import JobSpec, parse
from tests.s3_proxy import Rule, S3Proxy
from tests.s3_reader import Reader
from tests.threads import threads

STALL_S = 10
OVER_S = 600


@pytest.fixture(scope="module")
def proxy(s3_server: LocalS3) -> Iterator[S3Proxy]:
    with S3Proxy(s3_server) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def reader(s3_server: LocalS3) -> Iterator[Reader]:
    with closing(Reader(s3_server)) as reader:
        yield reader


@pytest.fixture(scope="module")
def in_threads(proxy: S3Proxy) -> Iterator[Client]:
    """Workers whose storage lies behind the proxy, as the runner's does."""
    with threads(2) as client:
        yield client


@pytest.fixture(scope="module")
def bucket(proxy: S3Proxy, s3_server: LocalS3) -> str:
    name = f"test-{uuid.uuid4().hex[:12]}"
    s3_server.create_bucket(name)
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(400, 3))
    frame = pd.DataFrame(rows, columns=list("abc")).assign(y=rows.sum(axis=1), key=rng.integers(0, 5, 400))
    storage.write_bytes(f"s3://{name}/data.csv", frame.to_csv(index=False).encode())
    return f"s3://{name}"


PIPELINES: dict[str, dict[str, Any]] = {
    "linear_regression": {"params": {"target": "y"}},
    "kmeans": {"params": {"n_clusters": 3}},
}


def spec_of(pipeline: str, bucket: str) -> JobSpec:
    job = {"pipeline": pipeline, "input": f"{bucket}/data.csv", "output": f"{bucket}/runs", **PIPELINES[pipeline]}
    return parse({**job, "run_id": f"r{uuid.uuid4().hex[:8]}", "storage": {"stall_seconds": STALL_S}})


def rules(run_id: str) -> dict[str, list[Rule]]:
    """What is done to a run; the manifest and its answers are what matters most."""
    manifest = f"{run_id}/manifest.json"
    lost = Rule("lost", method="PUT", key=manifest, last=1)
    return {
        "each answer late": [Rule("late", seconds=0.1)],
        "manifest late": [Rule("late", method="PUT", key=manifest, seconds=2.0)],
        "every fifth answer lost": [Rule("lost", key=run_id, first=n, last=n) for n in range(5, 60, 5)],
        "manifest's answer lost": [lost],
        "manifest's answer lost, then reads refused": [
            lost,
            Rule("refused", method="GET", key=manifest, after=lost, within_s=4.0),
        ],
        "manifest's answer lost, then all denied": [lost, Rule("denied", after=lost)],
        "denied after 3 writes": [Rule("denied", method="PUT", key=run_id, first=4)],
        "denied from its last requests on": [Rule("denied", key=run_id, first=13)],
        "nothing may be removed": [Rule("denied", method="POST", key="delete"), Rule("denied", method="DELETE")],
    }


CASES = [("linear_regression", rule) for rule in rules("")] + [
    ("kmeans", rule) for rule in ("every fifth answer lost", "denied after 3 writes", "nothing may be removed")
]


@pytest.mark.parametrize(("pipeline", "rule"), CASES)
def test_a_run_on_a_spoilt_network_is_whole_or_none_and_its_retry_ends_well(
    pipeline: str,
    rule: str,
    proxy: S3Proxy,
    reader: Reader,
    in_threads: Client,
    bucket: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    proxy.clear()
    spec = spec_of(pipeline, bucket)
    for each in rules(spec.name)[rule]:
        proxy.add(each)
    run_url = f"{spec.output}/{spec.name}"
    start = time.monotonic()
    error = None
    try:
        result = retries.with_retries(
            lambda: runner.run(spec, client=in_threads), 1, Listener(), pause=lambda seconds: time.sleep(1)
        )
        assert reader.manifest(run_url) == result.manifest
    except DaskyardError as failure:
        error = failure
    assert time.monotonic() - start < OVER_S
    manifest = reader.manifest(run_url)
    if error is not None:
        assert error.exit_code in (2, 75)
        assert manifest is None or "is not known" in caplog.text
    else:
        assert rule != "denied after 3 writes"
    proxy.clear()
    again = runner.run(spec, client=in_threads)
    assert reader.manifest(run_url) == again.manifest
    assert manifest in (None, again.manifest)


def test_keys_that_may_not_remove_anything_search_and_commit(
    proxy: S3Proxy, reader: Reader, in_threads: Client, bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The files of a search's trials are removed while the run goes on."""
    proxy.clear()
    for rule in rules("")["nothing may be removed"]:
        proxy.add(rule)
    tune = {"space": {"fit_intercept": {"choices": [True, False]}}, "n_trials": 2}
    spec = spec_of("linear_regression", bucket)
    spec = parse({**spec.model_dump(mode="json", exclude_none=True), "tune": tune})
    preflight.check(spec)
    storage.write_bytes(f"{spec.output}/{spec.name}/attempts/earlier/half", b"of a run that was killed")
    result = runner.run(spec, client=in_threads)
    assert not result.was_committed
    assert reader.manifest(result.run_url) == result.manifest
    assert "what other attempts left stays there" in caplog.text


def test_racing_runs_on_a_store_that_ignores_conditions_are_refused_before_their_first_file(
    proxy: S3Proxy, reader: Reader, in_threads: Client, bucket: str
) -> None:
    proxy.clear()
    proxy.add(Rule("ignored", header="If-None-Match"))
    spec = spec_of("linear_regression", bucket)
    for _ in range(2):
        with pytest.raises(OutputError, match="ignores If-None-Match"):
            runner.run(spec, client=in_threads)
    assert reader.keys(f"{spec.output}/{spec.name}") == set()


@pytest.mark.parametrize(("kind", "seconds"), [("late", 4.0), ("held", 30.0)])
def test_a_stop_while_the_manifest_is_under_way_leaves_its_files_to_it(
    kind: Any, seconds: float, proxy: S3Proxy, reader: Reader, bucket: str, tmp_path: Path
) -> None:
    """Told to stop one second after the PUT; the store answers, or gets it, when the run is long over."""
    proxy.clear()
    spec = spec_of("linear_regression", bucket)
    run_url, file, result = f"{spec.output}/{spec.name}", tmp_path / "job.yaml", tmp_path / "result.json"
    file.write_text(yaml.safe_dump(spec.model_dump(mode="json", exclude_none=True)))
    rule = proxy.add(Rule(kind, method="PUT", key=f"{spec.name}/manifest.json", last=1, seconds=seconds))
    command = [sys.executable, "-m", "jobs.cli", "run", str(file), "--result", str(result)]
    process = subprocess.Popen(
        [*command, "--workers", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    proxy.wait(rule, timeout_s=120)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    if kind == "late":
        # It stands, and can be read: the run is committed, whoever was told to stop.
        assert process.returncode == 0, errors
        assert "committed; told to stop after it" in errors
    else:
        assert process.returncode == 75, errors
        assert "is not known" in errors
        assert reader.manifest(run_url) is None
        proxy.release(rule)
        deadline = time.monotonic() + 30
        while reader.manifest(run_url) is None and time.monotonic() < deadline:
            time.sleep(0.05)
    assert f'"outcome": "{"committed" if kind == "late" else "failed"}"' in result.read_text()
    manifest = reader.manifest(run_url)
    assert manifest is not None
    again = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert again.returncode == 0, again.stderr
    assert "committed before" in again.stderr
    assert reader.manifest(run_url) == manifest
