"""A committed run is held against its manifest: every kind of damage to every file is named."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs import preflight, runner, storage
from jobs.artifacts import Attempt, Manifest, read_manifest
from jobs.cli.app import app
from jobs.errors import OutputError, StorageDeniedError
from jobs.listener import Listener
from jobs.local_s3 import LocalS3
from jobs.spec import JobSpec, parse
from jobs.verify import look, verify
from tests.s3_proxy import Rule, S3Proxy
from tests.unit.test_artifacts import manifest_of

CONTENT = {"empty": b"", "model.json": b'{"a": 1}', "predictions/_part.parquet": b"x" * 5000}


def spec_of(output: str, stall_seconds: float = 300) -> JobSpec:
    storage = {"stall_seconds": stall_seconds}
    return parse({"pipeline": "kmeans", "input": "none", "output": output, "run_id": "r", "storage": storage})


def commit(output: str, stall_seconds: float = 300) -> Manifest:
    attempt = Attempt(f"{output}/r")
    for name, data in CONTENT.items():
        attempt.write_bytes(name, data)
    spec = spec_of(output, stall_seconds).model_dump(mode="json")
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


@pytest.mark.parametrize(
    ("rule", "list_name", "problem", "exit_code"),
    [
        (Rule("flipped", method="GET", key="model.json", drop="x-amz-checksum"), "damaged", "MD5", 2),
        (Rule("denied", key="model.json"), "unreadable", "cannot be read (", 75),
        (Rule("refused", key="model.json"), "unreadable", "cannot be read (", 75),
        (Rule("held", key="model.json"), "unreadable", "is storage.stall_seconds", 75),
    ],
)
def test_a_file_that_cannot_be_read_keeps_no_other_from_being_verified(
    rule: Rule, list_name: str, problem: str, exit_code: int, s3_server: LocalS3, s3: str
) -> None:
    run_url = f"{s3}/runs/r"
    with S3Proxy(s3_server) as proxy:
        manifest = commit(f"{s3}/runs", stall_seconds=3)
        proxy.add(rule)
        shown = CliRunner().invoke(app, ["show", run_url, "--verify", "--json"])
        assert shown.exit_code == exit_code
        document = json.loads(shown.stdout)
        [row] = [row for row in document[list_name] if row["name"] == "model.json"]
        assert problem in row["problem"]
        assert row["url"] == f"{run_url}/attempts/{manifest.attempt}/model.json"
        assert f"{list_name}: {row['url']}: " in shown.stderr
        if rule.kind == "held":
            return
        storage.write_bytes(f"{run_url}/attempts/{manifest.attempt}/predictions/_part.parquet", b"short")
        shown = CliRunner().invoke(app, ["show", run_url, "--verify", "--json"])
        assert shown.exit_code == 2
        document = json.loads(shown.stdout)
        names = [row["name"] for row in document["damaged"] + document["unreadable"]]
        assert sorted(names) == ["model.json", "predictions/_part.parquet"]


def test_a_storage_that_stalls_at_every_file_is_not_waited_for_at_each(s3_server: LocalS3, s3: str) -> None:
    attempt = Attempt(f"{s3}/runs/r")
    for number in range(6):
        attempt.write_bytes(f"{number}", b"x")
    manifest = attempt.commit(manifest_of(attempt))
    with S3Proxy(s3_server) as proxy, storage.stalling_after(0.4):
        proxy.add(Rule("held", key="/attempts/"))
        problems = [each.problem for each in verify(manifest, f"{s3}/runs/r")]
    assert ["storage.stall_seconds" in problem for problem in problems] == [True] * 3 + [False] * 3
    assert problems[3:] == ["cannot be read (storage stalled at the 3 files before it)"] * 3


@pytest.mark.parametrize("kind", ["a pipe", "a folder", "a link that leads to nothing"])
def test_what_is_no_file_is_damage_and_is_not_opened(kind: str, tmp_path: Path) -> None:
    manifest = commit(str(tmp_path / "runs"))
    for file in manifest.files:
        Path(file.url).unlink()
        stand_in(Path(file.url), kind)
    problems = [each.problem for each in verify(manifest, str(tmp_path / "runs" / "r"))]
    assert problems == [f"{kind} in place of a file"] * 3


def stand_in(path: Path, kind: str) -> None:
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "a device" else path)


@pytest.mark.parametrize("kind", ["a pipe", "a folder", "a link that leads to nothing", "a device"])
def test_a_manifest_that_is_no_file_is_told_before_any_work(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "r"
    folder.mkdir(parents=True)
    stand_in(folder / "manifest.json", kind)
    with pytest.raises(OutputError, match=rf"manifest.json: not a manifest of Daskyard \(it is {kind}\)"):
        preflight.committed_of(spec_of(str(tmp_path / "runs")))
    shown = CliRunner().invoke(app, ["show", str(folder)])
    assert (shown.exit_code, "put it back, or remove it to run the job again" in shown.stderr) == (2, True)


def test_of_a_manifest_no_more_is_read_than_one_can_have(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").touch()
    os.truncate(tmp_path / "manifest.json", 64 << 30)
    with pytest.raises(OutputError, match="it has more than 67,108,864 bytes"):
        read_manifest(str(tmp_path))


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


class Full(Listener):
    """Watches from a disk that is full."""

    def message(self, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_listener_that_cannot_write_fails_no_run(tmp_path: Path) -> None:
    manifest = commit(str(tmp_path / "runs"))
    assert runner.run(spec_of(str(tmp_path / "runs")), listener=Full()).manifest == manifest


def test_the_report_of_a_run_that_was_copied_is_named_where_it_is(tmp_path: Path) -> None:
    attempt = Attempt(f"{tmp_path}/runs/r")
    attempt.write_bytes("report.html", b"<html>")
    attempt.commit(manifest_of(attempt))
    (tmp_path / "runs").rename(tmp_path / "copy")
    shown = CliRunner().invoke(app, ["show", f"{tmp_path}/copy/r"])
    assert f"report  {tmp_path}/copy/r/attempts/{attempt.id}/report.html\n" in shown.stdout
