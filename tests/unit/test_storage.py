"""Every kind of storage behaves alike, and its errors say URL, cause and remedy."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import s3fs

from jobs import storage
from jobs.errors import InputError, StorageDeniedError, StorageError, StorageMissingError
from jobs.local_s3 import LocalS3
from jobs.storage import files, tries
from tests.s3_proxy import Rule, S3Proxy


@pytest.fixture(params=["file", "memory", "s3"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return f"{request.getfixturevalue('s3')}/base"
    return str(tmp_path / "base") if request.param == "file" else f"memory://{uuid.uuid4().hex}"


def test_bytes_come_back_whole_and_by_range(base: str) -> None:
    url = storage.join(base, "a", "b.bin")
    storage.write_bytes(url, b"0123456789")
    assert storage.read_bytes(url) == b"0123456789"
    assert storage.read_bytes(url, 2, 5) == b"234"
    with storage.open_input(url) as file:
        file.seek(7)
        assert file.read() == b"789"
    assert storage.read_bytes(url, 8, 99) == b"89"
    assert storage.read_bytes(url, 10, 99) == b""
    storage.write_bytes(url, b"")
    assert storage.read_bytes(url) == storage.read_bytes(url, 0, 5) == b""
    with storage.open_input(url) as file:
        assert file.read() == b""


def test_of_many_creators_one_wins_and_its_content_stays(base: str) -> None:
    url = storage.join(base, "once")
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda i: storage.create(url, b"%d" % i), range(16)))
    assert sum(won) == 1
    assert storage.read_bytes(url) == b"%d" % won.index(True)


def test_a_version_is_replaced_once_and_a_stale_one_is_refused(base: str) -> None:
    url = storage.join(base, "a", "counter")
    with pytest.raises(StorageMissingError, match=r"counter: not found"):
        storage.read_versioned(url)
    assert storage.replace(url, b"1", "no such version") is None
    assert not storage.exists(storage.join(base, "a"))
    first = storage.replace(url, b"1", None)
    assert storage.read_versioned(url) == (b"1", first)
    assert first is not None
    assert storage.replace(url, b"2", None) is None
    second = storage.replace(url, b"2", first)
    assert second not in (None, first)
    assert storage.replace(url, b"3", first) is None
    assert storage.read_versioned(url) == (b"2", second)
    assert [file.url.rsplit("/", 1)[1] for file in storage.list_files(base)] == ["counter"]
    storage.remove_tree(storage.join(base, "a"))
    assert storage.replace(url, b"3", second) is None
    assert not storage.exists(url)


def count_up(url: str) -> None:
    while True:
        try:
            content, version = storage.read_versioned(url)
        except StorageMissingError:
            content, version = b"0", None  # type: ignore[assignment]
        if storage.replace(url, b"%d" % (int(content) + 1), version) is not None:
            return


def test_of_sixteen_threads_that_count_none_is_lost(base: str) -> None:
    url = storage.join(base, "counter")
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(count_up, [url] * 32))
    assert storage.read_bytes(url) == b"32"


def test_of_processes_that_count_on_a_disk_none_is_lost(tmp_path: Path) -> None:
    url = str(tmp_path / "counter")
    storage.write_bytes(url, b"0")
    code = f"""
from jobs import storage
for _ in range(200):
    is_counted = False
    while not is_counted:
        content, version = storage.read_versioned({url!r})
        is_counted = storage.replace({url!r}, b"%d" % (int(content) + 1), version) is not None
"""
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: subprocess.run([sys.executable, "-c", code], check=True, timeout=120), range(3)))
    assert storage.read_bytes(url) == b"600"


def test_versions_of_disks_and_memory_are_hashes(tmp_path: Path) -> None:
    for url in (str(tmp_path / "a"), f"memory://{uuid.uuid4().hex}/a"):
        storage.write_bytes(url, b"x")
        assert storage.read_versioned(url) == (b"x", hashlib.sha256(b"x").hexdigest())


@pytest.mark.parametrize("version", ["absent", "present"])
@pytest.mark.parametrize("winner", ["ours", "another"])
def test_a_write_whose_answer_was_lost_is_known_as_our_own(
    s3: str, s3_server: LocalS3, version: str, winner: str
) -> None:
    """The first PUT succeeds and its answer is lost; the second is refused, by our own content or by another's."""
    url = f"{s3}/a"
    with S3Proxy(s3_server) as proxy, ThreadPoolExecutor(1) as pool:
        before = None if version == "absent" else storage.replace(url, b"before", None)
        proxy.add(Rule("lost", method="PUT", last=1))
        second = proxy.add(Rule("held", method="PUT"))
        replacing = pool.submit(storage.replace, url, b"ours", before)
        proxy.wait(second)
        if winner == "another":
            with s3_server._client() as client:
                client.put_object(Bucket=s3.removeprefix("s3://"), Key="a", Body=b"another's")
        proxy.release(second)
        if winner == "another":
            assert replacing.result(60) is None
            assert storage.read_bytes(url) == b"another's"
        else:
            assert storage.read_versioned(url) == (b"ours", replacing.result(60))


def test_a_lock_that_is_never_given_back_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tries, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(files, "_LOCK_S", 0.02)
    with (
        files._locked_beside(str(tmp_path / "a")),
        pytest.raises(StorageError, match=r"another process has held .*\.a\.lock") as caught,
    ):
        storage.replace(str(tmp_path / "a"), b"", None)
    assert caught.value.exit_code == 75


def test_storage_without_conditional_writes_is_refused() -> None:
    with pytest.raises(StorageDeniedError, match="no conditional writes; use s3:// or a path"):
        storage.replace("http://127.0.0.1:9/file", b"", None)


@pytest.mark.parametrize("size", [10, (8 << 20) + 1])
def test_a_file_that_became_another_is_not_read_for_what_was_listed(base: str, size: int) -> None:
    url = storage.join(base, "a")
    storage.write_bytes(url, b"1" * size)
    (listed,) = storage.list_files(url)
    assert storage.read_bytes(url, 2, 4, etag=listed.etag) == b"11"
    time.sleep(0.02)
    storage.write_bytes(url, b"2" * size)
    for limits in ((2, 4), (None, None)):
        with pytest.raises(InputError, match="a: changed while it was read"):
            storage.read_bytes(url, *limits, etag=listed.etag)
    with pytest.raises(InputError, match="a: changed while it was read"), storage.open_input(url, etag=listed.etag):
        pass
    (listed,) = storage.list_files(url)
    with storage.open_input(url, etag=listed.etag) as file:
        assert file.read(3) == b"222"


def test_listing_is_recursive_sorted_and_leaves_markers_out(base: str) -> None:
    for name in ("b.csv", "a/c.csv", "a/d.txt", "_SUCCESS", ".hidden/e.csv"):
        storage.write_bytes(storage.join(base, name), b"x")
    found = [
        file.url[file.url.index(base.split("://")[-1]) + len(base.split("://")[-1]) :]
        for file in storage.list_files(base)
    ]
    assert found == ["/a/c.csv", "/a/d.txt", "/b.csv"]
    assert len(storage.list_files(base, suffixes=(".csv",))) == 2
    assert len(storage.list_files(storage.join(base, "*.csv"))) == 1
    assert [file.size for file in storage.list_files(storage.join(base, "b.csv"))] == [1]


def test_an_etag_changes_with_the_content(base: str) -> None:
    url = storage.join(base, "a")
    storage.write_bytes(url, b"one")
    before = storage.list_files(url)[0].etag
    time.sleep(0.02)
    storage.write_bytes(url, b"two")
    assert storage.list_files(url)[0].etag != before


def test_what_is_missing_is_said_to_be_missing(base: str) -> None:
    storage.write_bytes(storage.join(base, "there"), b"")
    for call in (storage.read_bytes, storage.list_files):
        with pytest.raises(StorageMissingError, match=r"none.*not found; correct the URL"):
            call(storage.join(base, "none"))
    with pytest.raises(StorageMissingError, match=r"no files that end in \.csv"):
        storage.list_files(base, suffixes=(".csv",))
    assert not storage.exists(storage.join(base, "none"))


def test_a_tree_is_removed_and_removing_nothing_is_fine(base: str) -> None:
    storage.write_bytes(storage.join(base, "t/a"), b"x")
    storage.write_bytes(storage.join(base, "t/b/c"), b"x")
    storage.write_bytes(storage.join(base, "u"), b"x")
    storage.remove_tree(storage.join(base, "t"))
    storage.remove_tree(storage.join(base, "t"))
    assert not storage.exists(storage.join(base, "t/b/c"))
    assert storage.exists(storage.join(base, "u"))


def test_a_local_file_is_never_half_written(tmp_path: Path) -> None:
    url = str(tmp_path / "folder" / "file")
    storage.write_bytes(url, b"x" * 100)
    storage.create(url, b"y")
    assert os.listdir(tmp_path / "folder") == ["file"]


@pytest.fixture
def s3_environment(s3: str, monkeypatch: pytest.MonkeyPatch) -> object:
    """Change S3's environment for one test; filesystems made before must not answer."""

    def change(**variables: str | None) -> str:
        for name, value in variables.items():
            monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        return s3

    yield change
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_missing_bucket_is_named(s3: str) -> None:
    for call in (storage.read_bytes, storage.list_files, lambda url: storage.write_bytes(url, b"x")):
        with pytest.raises(StorageMissingError, match=r"s3://no-such-bucket-here/a: (no such bucket|not found)"):
            call("s3://no-such-bucket-here/a")


def test_a_wrong_secret_is_denied_and_not_shown(s3_environment: object) -> None:
    bucket = s3_environment(AWS_SECRET_ACCESS_KEY="wrong-secret")  # type: ignore[operator]
    with pytest.raises(StorageDeniedError, match=r"AWS_SECRET_ACCESS_KEY|access denied") as caught:
        storage.write_bytes(f"{bucket}/a", b"x")
    assert "wrong-secret" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_an_unknown_key_is_denied(s3_environment: object) -> None:
    bucket = s3_environment(AWS_ACCESS_KEY_ID="nobody")  # type: ignore[operator]
    with pytest.raises(StorageDeniedError):
        storage.list_files(f"{bucket}/a")


def test_absent_credentials_are_named(s3_environment: object) -> None:
    bucket = s3_environment(  # type: ignore[operator]
        AWS_ACCESS_KEY_ID=None, AWS_SECRET_ACCESS_KEY=None, AWS_EC2_METADATA_DISABLED="true"
    )
    with pytest.raises(StorageDeniedError, match=r"AWS_ACCESS_KEY_ID|access denied"):
        storage.write_bytes(f"{bucket}/a", b"x")


def test_an_unreachable_endpoint_is_worth_another_try(s3_environment: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tries, "FIRST_PAUSE_S", 0.01)
    bucket = s3_environment(  # type: ignore[operator]
        AWS_ENDPOINT_URL="http://127.0.0.1:9", AWS_ENDPOINT_URL_S3="http://127.0.0.1:9"
    )
    with pytest.raises(StorageError, match="did not answer as it should") as caught:
        storage.list_files(f"{bucket}/a")
    assert caught.value.exit_code == 75


@pytest.mark.parametrize("url", ["nosuch://a/b", "s3://Not_A_Bucket!/a", "/dev/null/a/b"])
def test_an_impossible_url_is_no_reason_to_try_again(url: str, s3: str) -> None:
    with pytest.raises(StorageError) as caught:
        storage.write_bytes(url, b"")
    assert caught.value.exit_code == 2


def test_only_errors_that_may_pass_are_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tries, "FIRST_PAUSE_S", 0.001)
    calls = []

    def function(error: Exception | None, n_failures: int) -> str:
        calls.append(1)
        if len(calls) <= n_failures and error:
            raise error
        return "done"

    assert tries.retried(function)(StorageError("busy"), 2) == "done"
    assert len(calls) == 3
    calls.clear()
    with pytest.raises(StorageDeniedError):
        tries.retried(function)(StorageDeniedError("no"), 2)
    assert len(calls) == 1
    calls.clear()
    with pytest.raises(StorageError, match="busy"):
        tries.retried(function)(StorageError("busy"), 99)
    assert len(calls) == tries.N_TRIES
