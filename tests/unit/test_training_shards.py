"""Shards: what is written comes back row by row, from anywhere, and damage is noticed."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import dask
import numpy as np
import pytest

from jobs import storage
from jobs.errors import InputError, StorageError, StorageMissingError
from jobs.training.shards import Shards, _open, commit_index, damage_of, write_shard
from tests.strangers import NOBODY

RNG = np.random.default_rng(1)
SIZES = (5, 1, 8)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path) -> object:
    with dask.config.set({"temporary-directory": str(tmp_path / "cache")}):
        yield


def written(url: str) -> dict[str, np.ndarray]:
    """Write three shards of images, labels and features; return all rows."""
    n = sum(SIZES)
    arrays = {
        "images": RNG.integers(256, size=(n, 3, 3, 1), dtype=np.uint8),
        "labels": RNG.integers(9, size=n),
        "features": RNG.normal(size=(n, 5)).astype(np.float32),
    }
    starts = np.cumsum([0, *SIZES])
    infos = [
        write_shard(f"{url}/{i:05d}.raw", {name: a[starts[i] : starts[i + 1]] for name, a in arrays.items()})
        for i in range(len(SIZES))
    ]
    assert commit_index(url, infos, {"classes": ["a", "b"]})
    return arrays


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_rows_come_back_in_the_order_asked_for(scheme: str, tmp_path: Path) -> None:
    url = f"memory://shards-{tmp_path.name}" if scheme == "memory" else str(tmp_path / "shards")
    arrays = written(url)
    shards = Shards.load(url)
    indices = RNG.permutation(np.repeat(np.arange(shards.n_rows), 2))
    rows = shards.open().gather(indices)
    for name, array in arrays.items():
        assert rows[name].dtype == array.dtype
        np.testing.assert_array_equal(rows[name], array[indices])
    np.testing.assert_array_equal(shards.open().rows(4, 7, ["labels"])["labels"], arrays["labels"][4:7])


def test_the_index_tells_rows_arrays_and_meta(tmp_path: Path) -> None:
    written(str(tmp_path / "shards"))
    shards = Shards.load(str(tmp_path / "shards"))
    assert shards.n_rows == 14
    assert shards.meta == {"classes": ["a", "b"]}
    assert shards.arrays["images"].shape == (3, 3, 1)
    assert shards.blocks(6) == [(0, 6), (6, 12), (12, 14)]


def test_a_row_outside_is_an_index_error(tmp_path: Path) -> None:
    written(str(tmp_path / "shards"))
    opened = Shards.load(str(tmp_path / "shards")).open()
    for index in (-1, 14):
        with pytest.raises(IndexError, match="of 14"):
            opened.gather(np.array([index]))


def test_a_folder_without_index_is_no_data_set(tmp_path: Path) -> None:
    write_shard(str(tmp_path / "shards/0.raw"), {"x": np.arange(3)})
    with pytest.raises(StorageMissingError):
        Shards.load(str(tmp_path / "shards"))


def test_the_index_is_created_once(tmp_path: Path) -> None:
    url = str(tmp_path / "shards")
    info = write_shard(f"{url}/0.raw", {"x": np.arange(3)})
    assert commit_index(url, [info])
    assert not commit_index(url, [info])


def test_shards_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    url = str(tmp_path / "shards")
    infos = [write_shard(f"{url}/{dtype}.raw", {"x": np.zeros(3, dtype)}) for dtype in ("float32", "float64")]
    with pytest.raises(InputError, match="differ in dtype or shape"):
        commit_index(url, infos)


def test_no_rows_are_refused(tmp_path: Path) -> None:
    info = write_shard(str(tmp_path / "shards/0.raw"), {"x": np.zeros((0, 2))})
    with pytest.raises(InputError, match="no rows"):
        commit_index(str(tmp_path / "shards"), [info])


def test_arrays_of_different_lengths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rows"):
        write_shard(str(tmp_path / "x.raw"), {"x": np.zeros(3), "y": np.zeros(4)})


@pytest.mark.parametrize("damage", ["changed", "truncated"])
def test_a_shard_that_is_not_what_the_index_says_is_an_error(tmp_path: Path, damage: str) -> None:
    url = str(tmp_path / "shards")
    written(url)
    path = tmp_path / "shards/00001.raw"
    data = path.read_bytes()
    path.write_bytes(data[:-1] if damage == "truncated" else data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(StorageError, match=r"00001\.raw: content differs from its index"):
        Shards.load(url).open()


def test_a_damaged_cache_is_fetched_again(tmp_path: Path) -> None:
    url = str(tmp_path / "shards")
    arrays = written(url)
    shards = Shards.load(url)
    shards.open()
    for path in (tmp_path / "cache").rglob("*"):
        if path.is_file():
            path.write_bytes(b"rubbish")
    other = Shards(url + "/", shards.infos, shards.meta)  # a process keeps what it opened by URL
    np.testing.assert_array_equal(other.open().rows(0, 14)["features"], arrays["features"])


def test_an_index_that_is_none_is_an_error(tmp_path: Path) -> None:
    url = str(tmp_path / "shards")
    storage.write_bytes(f"{url}/index.json", json.dumps({"shards": []}).encode())
    with pytest.raises(InputError, match="not an index of shards"):
        Shards.load(url)


GOOD = {"version": 1, "arrays": [{"name": "x", "dtype": "<i8", "shape": []}], "meta": {}}
BAD_INDICES = {
    "empty": b"",
    "cut": json.dumps(GOOD).encode()[:40],
    "no JSON": b"\xff\x00",
    "a list": b"[]",
    "no shards": json.dumps({**GOOD, "shards": []}).encode(),
    "an empty shard": json.dumps({**GOOD, "shards": [{"file": "a", "n": 0, "size": 0, "sha256": "b"}]}).encode(),
    "sizes that are not those of rows": json.dumps(
        {**GOOD, "shards": [{"file": "a", "n": 2, "size": 17, "sha256": "b"}]}
    ).encode(),
    "meta that is none": json.dumps(
        {**GOOD, "shards": [{"file": "a", "n": 2, "size": 16, "sha256": "b"}], "meta": 1}
    ).encode(),
}


@pytest.mark.parametrize("content", BAD_INDICES.values(), ids=BAD_INDICES)
def test_whatever_else_lies_in_the_place_of_an_index_is_an_error_that_says_what_to_remove(
    content: bytes, tmp_path: Path
) -> None:
    storage.write_bytes(f"{tmp_path}/index.json", content)
    with pytest.raises(InputError, match=r"index\.json: not an index of shards \(.*\); remove the folder"):
        Shards.load(str(tmp_path))


@pytest.mark.parametrize("damage", ["changed", "truncated", "emptied", "missing"])
def test_damage_in_storage_is_found_though_this_machine_has_a_copy(tmp_path: Path, damage: str) -> None:
    url = str(tmp_path / "shards")
    written(url)
    shards = Shards.load(url)
    shards.open()
    assert [damage_of(url, info) for info in shards.infos] == [None] * 3
    path = tmp_path / "shards/00001.raw"
    data = path.read_bytes()
    spoilt = {"changed": data[:-1] + bytes([data[-1] ^ 1]), "truncated": data[:-1], "emptied": b"", "missing": None}
    path.unlink()
    if (content := spoilt[damage]) is not None:
        path.write_bytes(content)
    found = [damage_of(url, info) for info in shards.infos]
    assert [each is None for each in found] == [True, False, True]
    assert "00001.raw" in str(found[1])


def give_to_a_stranger(path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("needs root, to give a folder to another user")
    os.lchown(path, NOBODY, NOBODY)


@pytest.mark.parametrize("taken_by", ["folder", "closed folder", "link", "dangling link", "file", "link to ours"])
def test_a_stranger_who_takes_the_name_of_the_cache_blocks_nothing(tmp_path: Path, taken_by: str) -> None:
    arrays = written(str(tmp_path / "shards"))
    (tmp_path / "cache").mkdir(mode=0o777)
    (tmp_path / "cache").chmod(0o1777)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    for suffix in ("", "-0", "-zzz"):  # and those of the folders that are taken instead
        taken = tmp_path / "cache" / f"daskyard-shards-{os.geteuid()}{suffix}"
        match taken_by:
            case "folder" | "closed folder":
                taken.mkdir(mode=0o777 if taken_by == "folder" else 0o700)
            case "link" | "link to ours":
                taken.symlink_to(elsewhere)
            case "dangling link":
                taken.symlink_to(tmp_path / "nowhere")
            case "file":
                taken.write_bytes(b"")
        give_to_a_stranger(taken)
    if taken_by == "link":
        give_to_a_stranger(elsewhere)
    for _ in range(2):
        _open.cache_clear()
        rows = Shards.load(str(tmp_path / "shards")).open().rows(0, 14)
        np.testing.assert_array_equal(rows["images"], arrays["images"])
    assert list(elsewhere.iterdir()) == []
    assert not (tmp_path / "nowhere").exists()
    [ours] = [path for path in (tmp_path / "cache").iterdir() if path.lstat().st_uid == os.geteuid()]
    assert stat.S_IMODE(ours.lstat().st_mode) == 0o700
    assert len(list(ours.iterdir())) == len(SIZES)


def test_a_cache_that_others_may_write_to_is_closed_to_them(tmp_path: Path) -> None:
    written(str(tmp_path / "shards"))
    cache = tmp_path / "cache" / f"daskyard-shards-{os.geteuid()}"
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    Shards.load(str(tmp_path / "shards")).open()
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700


def test_a_copy_that_a_killed_process_left_unfinished_is_removed(tmp_path: Path) -> None:
    written(str(tmp_path / "shards"))
    code = textwrap.dedent("""
        import os, signal, sys
        from pathlib import Path
        from jobs.temporary import held_file
        with held_file(Path(sys.argv[1])) as (file, path):
            file.write(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    cache = tmp_path / "cache" / f"daskyard-shards-{os.geteuid()}"
    cache.mkdir(parents=True)
    assert subprocess.run([sys.executable, "-c", code, cache], check=False).returncode == -signal.SIGKILL
    assert len(list(cache.iterdir())) == 1
    Shards.load(str(tmp_path / "shards")).open()
    assert len(list(cache.iterdir())) == len(SIZES)
