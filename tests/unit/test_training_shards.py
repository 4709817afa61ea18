"""Shards: what is written comes back row by row, from anywhere, and damage is noticed."""

from __future__ import annotations

import json
from pathlib import Path

import dask
import numpy as np
import pytest

from jobs import storage
from jobs.errors import InputError, StorageError, StorageMissingError
from jobs.training.shards import Shards, commit_index, damage_of, write_shard

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
