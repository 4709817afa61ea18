"""Checkpoints: the newest whole one wins, none goes backwards, what is damaged or cut off leaves one to go on from."""

from __future__ import annotations

import logging
import pickle
import re
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jobs import storage
from jobs.errors import StorageError, StorageMissingError
from jobs.training import checkpoints as module
from jobs.training.checkpoints import Checkpoints

FINGERPRINT = "0123456789abcdef" * 4


@pytest.fixture(params=["file", "memory", "s3"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Checkpoints:
    if request.param == "s3":
        url = request.getfixturevalue("s3")
    else:
        url = str(tmp_path / "run") if request.param == "file" else f"memory://{uuid.uuid4().hex}"
    return Checkpoints(f"{url}/checkpoints", FINGERPRINT)


@pytest.fixture
def local(tmp_path: Path) -> Checkpoints:
    return Checkpoints(str(tmp_path), FINGERPRINT)


def files(kept: Checkpoints) -> list[str]:
    """Names of the state files that there are."""
    try:
        return [file.url.rsplit("/", 1)[1] for file in storage.list_files(kept.folder, suffixes=(".state",))]
    except StorageMissingError:
        return []


def test_the_newest_is_read_and_says_what_it_is(kept: Checkpoints) -> None:
    assert kept.latest() is None
    assert kept.read() is None
    for position in (10, 20, 30):
        assert kept.write(position, b"state %d" % position, {"loss": 1 / position, "shape": (2, 3)})
    found = kept.read()
    assert found is not None
    checkpoint, state = found
    assert checkpoint == kept.latest()
    assert state == b"state 30"
    assert (checkpoint.position, checkpoint.n_bytes) == (30, 8)
    assert checkpoint.notes == {"loss": 1 / 30, "shape": [2, 3]}
    assert re.fullmatch(r"step-000000000030-[0-9a-f]{8}\.state", checkpoint.file)
    assert pickle.loads(pickle.dumps(kept)).latest() == checkpoint


def test_a_move_backwards_or_to_the_same_position_is_refused_and_leaves_no_file(kept: Checkpoints) -> None:
    assert kept.write(20, b"first", {})
    before = kept.latest(), files(kept)
    for position in (20, 10):
        assert not kept.write(position, b"late", {})
        assert (kept.latest(), files(kept)) == before


def test_two_state_files_at_most_are_left_after_many_writes(kept: Checkpoints) -> None:
    for position in range(1, 12):
        assert kept.write(position, b"%d" % position, {})
        assert len(files(kept)) == min(position, 2)
    assert [name[:17] for name in files(kept)] == ["step-000000000010", "step-000000000011"]


def test_writers_that_race_never_go_backwards(kept: Checkpoints) -> None:
    seen, is_over = [], threading.Event()

    def watch() -> None:
        while not is_over.is_set():
            latest = kept.latest()
            seen.append(latest.position if latest else 0)
            time.sleep(0.001)

    def write(writer: int) -> list[int]:
        return [p for p in range(1, 11) if kept.write(p, b"state %d" % p, {"writer": writer})]

    with ThreadPoolExecutor(3) as pool:
        watcher = pool.submit(watch)
        try:
            written = [position for positions in pool.map(write, range(2)) for position in positions]
        finally:
            is_over.set()
        watcher.result(60)
    assert seen == sorted(seen)
    assert sorted(written) == list(range(1, 11))  # each position once, whoever was first
    found = kept.read()
    assert found is not None
    assert (found[0].position, found[1]) == (10, b"state 10")
    assert len(files(kept)) == 2


def test_a_writer_that_was_thought_dead_changes_nothing(kept: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    """It wrote its state, slept while another run went past it, and then tries to move."""
    replace = storage.replace

    def late(url: str, data: bytes, version: str | None) -> str | None:
        monkeypatch.setattr(storage, "replace", replace)
        for position in (8, 9):
            assert kept.write(position, b"alive", {})
        return replace(url, data, version)

    kept.write(3, b"both", {})
    monkeypatch.setattr(storage, "replace", late)
    assert not kept.write(5, b"thought dead", {})
    found = kept.read()
    assert found is not None
    assert (found[0].position, found[1]) == (9, b"alive")
    assert [name[:17] for name in files(kept)] == ["step-000000000008", "step-000000000009"]


def test_a_writer_that_always_comes_second_gives_up_and_removes_its_file(
    local: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAUSE_S", 0.001)
    local.write(1, b"first", {})
    monkeypatch.setattr(storage, "replace", lambda *arguments: None)
    assert not local.write(2, b"second", {})
    assert [name[:17] for name in files(local)] == ["step-000000000001"]


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_damaged_newest_is_passed_over_with_a_warning(
    kept: Checkpoints, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    kept.write(1, b"one", {})
    kept.write(2, b"two", {})
    newest = kept.latest()
    assert newest is not None
    url = storage.join(kept.folder, newest.file)
    if damage == "missing":
        storage.remove_tree(url)
    else:
        storage.write_bytes(url, b"tw")
    with caplog.at_level(logging.WARNING):
        found = kept.read()
    assert found is not None
    assert (found[0].position, found[1]) == (1, b"one")
    assert newest.file in caplog.text
    assert kept.write(3, b"three", {})
    assert kept.latest() != newest


def test_states_that_vanish_while_they_are_read_are_looked_for_once_more(
    kept: Checkpoints, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    read_bytes = storage.read_bytes

    def slow(url: str) -> bytes:
        monkeypatch.setattr(storage, "read_bytes", read_bytes)
        for position in (3, 4):
            kept.write(position, b"newer", {})
        return read_bytes(url)

    for position in (1, 2):
        kept.write(position, b"older", {})
    monkeypatch.setattr(storage, "read_bytes", slow)
    found = kept.read()
    assert found is not None
    assert (found[0].position, found[1]) == (4, b"newer")
    assert not caplog.records


def test_states_of_another_fingerprint_are_ignored(kept: Checkpoints) -> None:
    kept.write(5, b"ours", {})
    for fingerprint in ("f" * 64, FINGERPRINT[:16] + "f" * 48):
        other = Checkpoints(kept.url, fingerprint)
        assert other.latest() is None
        assert other.read() is None
    assert Checkpoints(kept.url, "f" * 64).write(1, b"theirs", {})
    found = kept.read()
    assert found is not None
    assert found[1] == b"ours"


def test_a_write_that_is_cut_off_leaves_the_earlier_one_in_force(
    kept: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise StorageError("the network is gone")

    kept.write(1, b"one", {})
    with monkeypatch.context() as patch:
        patch.setattr(storage, "replace", fail)
        with pytest.raises(StorageError, match="the network is gone"):
            kept.write(2, b"two", {})
    found = kept.read()
    assert found is not None
    assert found[1] == b"one"
    assert kept.write(2, b"two again", {})
    assert len(files(kept)) == 2  # what was cut off is gone as well
    found = kept.read()
    assert found is not None
    assert found[1] == b"two again"


def test_an_old_state_that_cannot_be_removed_does_not_undo_the_write(
    local: Checkpoints, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(url: str) -> None:
        raise StorageError(f"{url}: busy")

    for position in (1, 2):
        local.write(position, b"", {})
    with monkeypatch.context() as patch:
        patch.setattr(storage, "remove_tree", fail)
        assert local.write(3, b"", {})
    assert "busy; an old state is left there" in caplog.text
    assert len(files(local)) == 3
    assert local.write(4, b"", {})
    assert len(files(local)) == 2


def test_a_later_run_s_states_are_no_leftovers_of_a_writer_thought_dead(
    local: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its move succeeds; before it removes what was pushed out, all is removed and training starts anew."""
    replace = storage.replace

    def slow(url: str, data: bytes, version: str | None) -> str | None:
        monkeypatch.setattr(storage, "replace", replace)
        moved = replace(url, data, version)
        local.remove()
        assert local.write(1, b"anew", {})
        return moved

    for position in (7, 8):
        local.write(position, b"", {})
    monkeypatch.setattr(storage, "replace", slow)
    local.write(9, b"", {})
    found = local.read()
    assert found is not None
    assert found[1] == b"anew"


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"{", b"[]", b'{"fingerprint": "a"}', b'{"fingerprint": "a", "checkpoints": [{}]}']
)
def test_a_damaged_list_counts_as_empty_and_is_replaced(
    local: Checkpoints, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    storage.write_bytes(f"{local.folder}/latest.json", content)
    with caplog.at_level(logging.WARNING):
        assert local.read() is None
    assert "latest.json: not a list of checkpoints; it counts as empty" in caplog.text
    assert local.write(1, b"anew", {})
    found = local.read()
    assert found is not None
    assert found[1] == b"anew"


@pytest.mark.parametrize("damage", ["missing", "changed", "empty"])
def test_a_listed_state_that_cannot_be_read_does_not_keep_those_before_it_out(kept: Checkpoints, damage: str) -> None:
    for position in (90, 100):
        kept.write(position, b"far", {})
    for file in files(kept):
        url = storage.join(kept.folder, file)
        if damage == "missing":
            storage.remove_tree(url)
        else:
            storage.write_bytes(url, b"" if damage == "empty" else b"fa")
    assert kept.read() is None
    # Training begins anew, and is cut off again long before it was at 100.
    assert kept.write(5, b"near", {})
    found = kept.read()
    assert found is not None
    assert (found[0].position, found[1]) == (5, b"near")


def test_notes_that_json_cannot_hold_fail_before_anything_is_written(local: Checkpoints) -> None:
    with pytest.raises(TypeError):
        local.write(1, b"", {"model": object()})
    assert not storage.exists(local.folder)


def test_remove_removes_all_and_training_may_start_anew(kept: Checkpoints) -> None:
    for position in (1, 2, 3):
        kept.write(position, b"", {})
    kept.remove()
    kept.remove()
    assert kept.latest() is None
    assert files(kept) == []
    assert kept.write(1, b"anew", {})


def test_a_folder_on_a_disk_is_removed_whole(local: Checkpoints, tmp_path: Path) -> None:
    local.write(1, b"", {})
    local.remove()
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_need_no_torch() -> None:
    code = "import sys, jobs.training.checkpoints; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
