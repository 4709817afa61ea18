"""A run is committed once, by a manifest; everything else can be thrown away."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from jobs import storage
from jobs.artifacts import Attempt, Manifest, read_manifest
from jobs.errors import OutputError, StorageMissingError


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


def test_what_fails_after_the_commit_takes_no_file_with_it(run_url: str) -> None:
    attempt = Attempt(run_url)
    attempt.write_bytes("a.txt", b"abc")
    attempt.commit(manifest_of(attempt))
    attempt.discard()
    [file] = read_manifest(run_url).files
    assert storage.read_bytes(file.url) == b"abc"
