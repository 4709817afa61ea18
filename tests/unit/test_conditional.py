"""A store that ignores If-None-Match is found out by a probe that stays, with keys that may create and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jobs import preflight, runner, storage
from jobs.conditional import PROBE, refuse_unconditional
from jobs.errors import OutputError, StorageDeniedError
from jobs.local_s3 import LocalS3
from jobs.spec import JobSpec, parse
from tests.s3_proxy import Rule, S3Proxy


@pytest.fixture
def proxy(s3_server: LocalS3) -> Iterator[S3Proxy]:
    with S3Proxy(s3_server) as proxy:
        yield proxy


@pytest.fixture(params=["s3", "file", "memory"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return f"{request.getfixturevalue('s3')}/runs"
    return str(tmp_path / "runs") if request.param == "file" else f"memory://{uuid.uuid4().hex}"


def spec_of(bucket: str) -> JobSpec:
    storage.write_bytes(f"{bucket}/data.csv", b"a,y\n1,2\n")
    content = {"pipeline": "linear_regression", "params": {"target": "y"}}
    return parse({**content, "input": f"{bucket}/data.csv", "output": f"{bucket}/runs"})


def test_the_probe_is_created_once_and_stays_whatever_the_storage(output: str) -> None:
    for _ in range(2):
        refuse_unconditional(output)
        assert list(storage.list_sizes(output)) == [PROBE]


def test_of_many_runs_that_begin_at_once_each_finds_the_storage_in_order(output: str) -> None:
    with ThreadPoolExecutor(16) as pool:
        for each in [pool.submit(refuse_unconditional, output) for _ in range(48)]:
            each.result()


def test_a_store_that_ignores_the_condition_is_refused_by_preflight_and_run_before_a_file_is_written(
    proxy: S3Proxy, s3: str
) -> None:
    spec = spec_of(s3)
    proxy.add(Rule("ignored", header="If-None-Match"))
    for check in (preflight.check, runner.run):
        with pytest.raises(
            OutputError, match=r"/runs: this storage ignores If-None-Match: it created .* write to a store"
        ):
            check(spec)
    assert set(storage.list_sizes(s3)) == {"data.csv", f"runs/{PROBE}"}


def test_a_condition_whose_first_answer_was_lost_is_no_fault_of_the_store(proxy: S3Proxy, s3: str) -> None:
    proxy.add(Rule("lost", method="PUT", key=PROBE, last=1))
    refuse_unconditional(f"{s3}/runs")


def test_keys_that_may_write_once_and_never_delete_pass_the_preflight(proxy: S3Proxy, s3: str) -> None:
    spec = spec_of(s3)
    proxy.add(Rule("denied", method="DELETE"))
    proxy.add(Rule("denied", method="POST", key="delete"))
    for _ in range(2):
        assert not preflight.check(spec).was_committed


def test_keys_that_may_not_write_are_refused_though_the_probe_is_there(proxy: S3Proxy, s3: str) -> None:
    spec = spec_of(s3)
    preflight.check(spec)
    proxy.add(Rule("denied", method="PUT"))
    with pytest.raises(StorageDeniedError, match="access denied"):
        preflight.check(spec)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become another user")
def test_of_a_folder_on_a_disk_that_users_share_each_can_use_the_probe_of_another(tmp_path: Path) -> None:
    shared = tmp_path / "runs"
    refuse_unconditional(str(shared))
    for folder in (shared, *shared.parents):
        if folder.is_relative_to("/tmp") and folder != Path("/tmp"):
            folder.chmod(folder.stat().st_mode | 0o055)
    code = (
        "import os, sys, fsspec.implementations.local\nfrom jobs.conditional import refuse_unconditional as check\n"
        "os.setuid(65534)\n"
        "try: check(sys.argv[1]); print('may')\nexcept Exception as error: print(type(error).__name__)"
    )
    for mode, said in ((0o777, "may"), (0o755, "StorageDeniedError")):
        shared.chmod(mode)
        done = subprocess.run(
            [sys.executable, "-c", code, str(shared)], capture_output=True, text=True, timeout=60, check=True
        )
        assert done.stdout.strip() == said, json.dumps(done.stderr)
