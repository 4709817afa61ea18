"""A committed run is held against its manifest: every kind of damage to every file is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs import preflight, runner, storage
from jobs.artifacts import Attempt, Manifest, read_manifest
from jobs.cli.app import app
from jobs.errors import OutputError, StorageDeniedError
from jobs.local_s3 import LocalS3
from jobs.spec import JobSpec, parse
from jobs.verify import look, verify
from tests.s3_proxy import Rule, S3Proxy
from tests.unit.test_artifacts import manifest_of

CONTENT = {"empty": b"", "model.json": b'{"a": 1}', "predictions/_part.parquet": b"x" * 5000}


def spec_of(output: str) -> JobSpec:
    return parse({"pipeline": "kmeans", "input": "none", "output": output, "run_id": "r"})


def commit(output: str) -> Manifest:
    attempt = Attempt(f"{output}/r")
    for name, data in CONTENT.items():
        attempt.write_bytes(name, data)
    spec = spec_of(output).model_dump(mode="json")
    return attempt.commit(manifest_of(attempt).model_copy(update={"spec": spec, "files": attempt.files}))


DAMAGE = {
    "missing": (None, "missing"),
    "truncated": (lambda data: data[:-1], "bytes in place of"),
    "emptied": (lambda data: b"", "0 bytes in place of"),
    "longer": (lambda data: data + b"1", "bytes in place of"),
    "changed": (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "the content is not what was written"),
}


@pytest.mark.parametrize("name", ["model.json", "predictions/_part.parquet"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_by_show_and_but_for_the_same_size_by_a_rerun(damage: str, name: str, tmp_path: Path) -> None:
    output = str(tmp_path / "runs")
    manifest = commit(output)
    run_url = f"{output}/r"
    [file] = [file for file in manifest.files if file.name == name]
    spoil, problem = DAMAGE[damage]
    if spoil is None:
        storage.remove_tree(file.url)
    else:
        storage.write_bytes(file.url, spoil(CONTENT[name]))
    assert [each.name for each in verify(manifest, run_url)] == [name]
    shown = CliRunner().invoke(app, ["show", run_url, "--verify", "--json"])
    assert shown.exit_code == 2
    document = json.loads(shown.stdout)
    assert [(each["name"], problem in each["problem"]) for each in document["damaged"]] == [(name, True)]
    assert f"damaged: {file.url}: " in shown.stderr
    assert f"error: {run_url}: 1 of 3 files are damaged" in shown.stderr
    spec = spec_of(output)
    if damage == "changed":
        assert look(manifest, run_url) == []
        assert preflight.committed_of(spec) == manifest
        return
    with pytest.raises(OutputError, match=rf"committed before, but damaged: .*{name}.*remove .*manifest\.json"):
        preflight.committed_of(spec)
    storage.remove_tree(f"{run_url}/manifest.json")
    assert preflight.committed_of(spec) is None


def test_a_whole_run_is_verified_where_it_is_and_where_it_was_copied_to(tmp_path: Path) -> None:
    manifest = commit(str(tmp_path / "runs"))
    (tmp_path / "runs").rename(tmp_path / "copy")
    moved = f"{tmp_path}/copy/r"
    told: list[tuple[int, int]] = []
    assert verify(manifest, moved, lambda done, total: told.append((done, total))) == []
    assert told[-1] == (5008, 5008)
    shown = CliRunner().invoke(app, ["show", moved, "--verify"])
    assert shown.exit_code == 0
    assert "verified: 3 files are what was written" in shown.stdout
    plain = CliRunner().invoke(app, ["show", moved, "--json"])
    assert json.loads(plain.stdout) == read_manifest(moved).model_dump(mode="json")


def test_a_listing_that_is_old_or_denied_makes_no_damage(s3_server: LocalS3, s3: str) -> None:
    with S3Proxy(s3_server) as proxy:
        stale = proxy.add(Rule("stale"))
        manifest = commit(f"{s3}/runs")
        assert look(manifest, f"{s3}/runs/r") == []
        assert proxy.n_struck(stale) > 0
        proxy.clear()
        proxy.add(Rule("denied", method="GET", key="list-type"))
        with pytest.raises(StorageDeniedError):
            look(manifest, f"{s3}/runs/r")
        # Keys that may read and not list still hear that the run is there.
        assert preflight.committed_of(spec_of(f"{s3}/runs")) == manifest


def test_that_storage_refuses_for_other_reasons_is_not_taken_for_a_run_that_is_there(
    s3_server: LocalS3, s3: str
) -> None:
    with S3Proxy(s3_server) as proxy:
        commit(f"{s3}/runs")
        for kind in ("unimplemented", "moved"):
            proxy.clear()
            proxy.add(Rule(kind, method="GET", key="list-type"))
            with pytest.raises(StorageDeniedError):
                preflight.committed_of(spec_of(f"{s3}/runs"))


def test_the_manifest_of_another_run_is_not_this_runs(tmp_path: Path) -> None:
    output = str(tmp_path / "runs")
    commit(output)
    shutil.copytree(tmp_path / "runs" / "r", tmp_path / "runs" / "r2")
    spec = spec_of(output).model_copy(update={"run_id": "r2"})
    with pytest.raises(OutputError, match="r2: holds a run of another"):
        preflight.committed_of(spec)


def test_a_byte_that_is_spoilt_on_its_way_is_no_damage(s3_server: LocalS3, s3: str) -> None:
    with S3Proxy(s3_server) as proxy:
        manifest = commit(f"{s3}/runs")
        proxy.add(Rule("flipped", method="GET", key="model.json", last=1, drop="x-amz-checksum"))
        assert verify(manifest, f"{s3}/runs/r") == []


def test_a_damaged_run_is_not_run_again_and_not_called_done(tmp_path: Path) -> None:
    manifest = commit(str(tmp_path / "runs"))
    storage.remove_tree(manifest.files[1].url)
    with pytest.raises(OutputError, match="damaged"):
        runner.run(spec_of(str(tmp_path / "runs")))
