"""A run is committed once, by a manifest; everything else can be thrown away."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from jobs import storage
from jobs.artifacts import Attempt, Manifest, read_manifest
from jobs.errors import OutputError, StorageError, StorageMissingError


def manifest_of(attempt: Attempt) -> Manifest:
    now = datetime.now(UTC)
    return Manifest(
        run_id="r",
        pipeline="kmeans",
        spec={},
        attempt=attempt.id,
        headline="inertia",
        metrics={"inertia": 1.5, "n": 3},
        n_rows=3,
        n_workers=1,
        seed=0,
        seconds=0.1,
        started_at=now,
        committed_at=now,
        stages=[],
        inputs=[],
        files=attempt.files,
        package_version="0",
        git_commit=None,
        versions={},
    )


@pytest.fixture
def run_url(s3: str) -> str:
    return f"{s3}/runs/r"


def test_a_committed_run_lists_its_files_with_sizes_and_hashes(run_url: str) -> None:
    attempt = Attempt(run_url)
    attempt.write_bytes("b.txt", b"hello")
    attempt.write_bytes("a/c.txt", b"")
    standing = attempt.commit(manifest_of(attempt))
    assert standing == read_manifest(run_url)
    assert [file.name for file in standing.files] == ["a/c.txt", "b.txt"]
    for file in standing.files:
        content = storage.read_bytes(file.url)
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file.size, file.sha256)


def test_without_a_manifest_there_is_no_run(run_url: str) -> None:
    Attempt(run_url).write_bytes("model.json", b"{}")
    with pytest.raises(StorageMissingError, match="no committed run there"):
        read_manifest(run_url)


def test_of_racing_attempts_one_wins_and_the_others_leave_nothing(run_url: str) -> None:
    attempts = [Attempt(run_url) for _ in range(8)]
    for attempt in attempts:
        attempt.write_bytes("model.json", attempt.id.encode())
    with ThreadPoolExecutor(8) as pool:
        standing = list(pool.map(lambda attempt: attempt.commit(manifest_of(attempt)), attempts))
    assert len({manifest.attempt for manifest in standing}) == 1
    winner = read_manifest(run_url)
    left = [file.url for file in storage.list_files(run_url)]
    assert left == [winner.files[0].url, f"{run_url}/manifest.json"]
    assert storage.read_bytes(winner.files[0].url) == winner.attempt.encode()


def test_the_winner_removes_what_a_killed_attempt_left(run_url: str) -> None:
    Attempt(run_url).write_bytes("half", b"x")
    attempt = Attempt(run_url)
    attempt.write_bytes("whole", b"x")
    attempt.commit(manifest_of(attempt))
    assert [file.url.rsplit("/", 1)[-1] for file in storage.list_files(run_url)] == ["whole", "manifest.json"]


def test_a_repeated_commit_whose_answer_was_lost_still_counts_as_ours(run_url: str) -> None:
    attempt = Attempt(run_url)
    attempt.write_bytes("a", b"x")
    manifest = manifest_of(attempt)
    attempt.commit(manifest)
    assert attempt.commit(manifest).attempt == attempt.id
    assert storage.exists(attempt.file_url("a"))


def test_a_foreign_file_in_the_manifests_place_is_refused(run_url: str) -> None:
    storage.write_bytes(f"{run_url}/manifest.json", b'{"something": "else"}')
    with pytest.raises(OutputError, match=r"manifest.json: not a manifest of Daskyard"):
        read_manifest(run_url)


def edited(run_url: str, edit: Callable[[dict[str, Any]], object]) -> None:
    attempt = Attempt(run_url)
    attempt.write_bytes("a/b.txt", b"abc")
    attempt.write_bytes("c", b"abc")
    attempt.commit(manifest_of(attempt))
    url = f"{run_url}/manifest.json"
    document = json.loads(storage.read_bytes(url))
    edit(document)
    storage.write_bytes(url, json.dumps(document).encode())


NAMES = ["../c", "a/../c", "..", ".", "./c", "a/./c", "", "/etc/passwd", "a//c", "c/", "c\0", "c\n", "\x7f", "\x9b1m"]


@pytest.mark.parametrize("name", NAMES)
def test_a_manifest_from_elsewhere_leads_to_nothing_outside_its_run(name: str, tmp_path: Path) -> None:
    run_url = f"{tmp_path}/r"
    edited(run_url, lambda document: document["files"][1].update(name=name))
    with pytest.raises(OutputError, match=r"manifest.json: not a manifest of Daskyard \(a file's name is .*\)"):
        read_manifest(run_url)


@pytest.mark.parametrize("attempt", ["../../../x", "", ".", "a", "20260101T000000-0123456789ab/", "../x\n"])
def test_a_manifest_names_an_attempt_as_attempts_are_named(attempt: str, tmp_path: Path) -> None:
    run_url = f"{tmp_path}/r"
    edited(run_url, lambda document: document.update(attempt=attempt))
    with pytest.raises(OutputError, match=r"not a manifest of Daskyard \(attempt is "):
        read_manifest(run_url)


def test_a_manifest_lists_files_and_each_of_them_once(tmp_path: Path) -> None:
    edited(f"{tmp_path}/none", lambda document: document.update(files=[]))
    with pytest.raises(OutputError, match="it lists no files"):
        read_manifest(f"{tmp_path}/none")
    edited(f"{tmp_path}/twice", lambda document: document["files"][0].update(name="c"))
    with pytest.raises(OutputError, match="it lists 'c' twice"):
        read_manifest(f"{tmp_path}/twice")


def test_what_fails_after_the_commit_takes_no_file_with_it(run_url: str) -> None:
    attempt = Attempt(run_url)
    attempt.write_bytes("a.txt", b"abc")
    attempt.commit(manifest_of(attempt))
    attempt.discard()
    [file] = read_manifest(run_url).files
    assert storage.read_bytes(file.url) == b"abc"


def test_a_manifest_that_storage_took_and_did_not_keep_is_no_commit(
    run_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = Attempt(run_url)
    attempt.write_bytes("a.txt", b"abc")
    monkeypatch.setattr(storage, "create", lambda url, data: True)
    with pytest.raises(StorageError, match="yet it is not there") as caught:
        attempt.commit(manifest_of(attempt))
    assert caught.value.exit_code == 75
    assert attempt.settle() is None
    assert not attempt.discard()
    assert storage.exists(attempt.file_url("a.txt"))
