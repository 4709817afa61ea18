"""Shards: training data as raw arrays in storage, written by workers, read by ranks at random positions.

A folder holds `<name>.raw` files and `index.json`, which is created last: a folder without it is no data set. A raw
file is its arrays' bytes one after the other, so a row is found by arithmetic. Readers copy each file once to a disk
cache of their machine, under its SHA-256, and map it into memory: ranks of one machine share the pages.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import dask
import numpy as np
from numpy.typing import NDArray

from jobs import storage
from jobs.errors import InputError, StorageError, StorageMissingError
from jobs.temporary import held_file

Array = NDArray[Any]

_BLOCK_BYTES = 16 << 20
# A byte may be spoilt on its way: what is fetched twice and is wrong both times is wrong in storage.
_N_FETCHES = 2
_UNUSED_DAYS = 7


class DamagedShardError(StorageError):
    """A shard is not what its index says: another try makes it anew."""


@dataclass(frozen=True)
class ArraySpec:
    """One array of a data set: its name, dtype (numpy's string, e.g. ``|u1``) and the shape of one row."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.dtype(self.dtype).itemsize * math.prod(self.shape))


@dataclass(frozen=True)
class ShardInfo:
    """One written shard: file name, rows, bytes, hash, and what it holds."""

    file: str
    n: int
    size: int
    sha256: str
    arrays: tuple[ArraySpec, ...]


def write_shard(url: str, arrays: Mapping[str, Array]) -> ShardInfo:
    """Write arrays with equally many rows to `url`; runs on a worker.

    Parameters
    ----------
    url
        ``<folder>/<name>.raw``; writing it again with the same rows changes nothing.
    arrays
        Name → array (n, ...), any fixed-size dtype.
    """
    n = {len(array) for array in arrays.values()}
    if len(n) != 1:
        raise ValueError(f"{url}: arrays of {sorted(n)} rows; all must have the same number")
    specs, parts = [], []
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        specs.append(ArraySpec(name, array.dtype.str, array.shape[1:]))
        parts.append(array.tobytes())
    data = b"".join(parts)
    storage.write_bytes(url, data)
    return ShardInfo(url.rsplit("/", 1)[-1], n.pop(), len(data), hashlib.sha256(data).hexdigest(), tuple(specs))


def commit_index(url: str, shards: Sequence[ShardInfo], meta: Mapping[str, Any] | None = None) -> bool:
    """Make the folder `url` a data set of `shards` in this order; False where it was one already.

    `meta` is any JSON: class names, what was dropped, where it came from.
    """
    filled = [shard for shard in shards if shard.n]
    if not filled:
        raise InputError(f"{url}: no rows to write; the input has no usable ones")
    if len({shard.arrays for shard in filled}) != 1:
        raise InputError(f"{url}: shards differ in dtype or shape; the parts of the input do not fit together")
    index = {
        "version": 1,
        "arrays": [asdict(spec) for spec in filled[0].arrays],
        "shards": [{k: v for k, v in asdict(shard).items() if k != "arrays"} for shard in filled],
        "meta": dict(meta or {}),
    }
    return storage.create(storage.join(url, "index.json"), json.dumps(index, indent=1).encode())


def damage_of(url: str, info: ShardInfo) -> str | None:
    """Return what is wrong with a shard of the data set `url`, None where nothing is; it is then in the cache here.

    It is read from storage in any case: what this machine has in its cache another one may not have. Runs on a worker.
    """
    place = storage.join(url, info.file)
    try:
        _fetched(place, info, _cache_folder())
    except StorageMissingError:
        return f"{place}: missing"
    except DamagedShardError as error:
        return str(error)
    return None


@dataclass(frozen=True)
class Shards:
    """A committed data set; small and picklable. `open` it where its rows are needed."""

    url: str
    infos: tuple[ShardInfo, ...]
    meta: Mapping[str, Any]

    @classmethod
    def load(cls, url: str) -> Shards:
        """Read the index of `url`.

        Raises
        ------
        StorageMissingError
            When nothing was committed there.
        InputError
            When what is there is no index of shards.
        """
        place = storage.join(url, "index.json")
        try:
            index = json.loads(storage.read_bytes(place))
            arrays = tuple(ArraySpec(a["name"], a["dtype"], tuple(a["shape"])) for a in index["arrays"])
            infos = tuple(ShardInfo(**shard, arrays=arrays) for shard in index["shards"])
            row_bytes = sum(spec.row_bytes for spec in arrays)
            if not infos or any(info.n < 1 or info.size != info.n * row_bytes for info in infos):
                raise ValueError("its shards do not have the sizes of their rows")
            return cls(url, infos, dict(index["meta"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{place}: not an index of shards ({error}); remove the folder") from error

    @property
    def n_rows(self) -> int:
        """Rows of all shards."""
        return sum(info.n for info in self.infos)

    @property
    def arrays(self) -> dict[str, ArraySpec]:
        """What a row consists of."""
        return {spec.name: spec for spec in self.infos[0].arrays}

    def blocks(self, n_rows: int) -> list[tuple[int, int]]:
        """Return (start, stop) of blocks of `n_rows` that cover all rows, for work that goes through them once."""
        return [(i, min(i + n_rows, self.n_rows)) for i in range(0, self.n_rows, n_rows)]

    def open(self) -> OpenShards:
        """Bring the files to this machine's disk and map them; once in a process."""
        return _open(self.url, self.infos)


class OpenShards:
    """Mapped shards: rows by global index."""

    def __init__(self, files: Sequence[Path], infos: Sequence[ShardInfo]) -> None:
        self._starts = np.cumsum([0, *(info.n for info in infos)])
        self._parts: dict[str, list[Array]] = {spec.name: [] for spec in infos[0].arrays}
        for path, info in zip(files, infos, strict=True):
            offset = 0
            for spec in info.arrays:
                shape = (info.n, *spec.shape)
                part = np.memmap(path, np.dtype(spec.dtype), "r", offset, shape)
                self._parts[spec.name].append(part)
                offset += info.n * spec.row_bytes

    def __len__(self) -> int:
        return int(self._starts[-1])

    def gather(self, indices: NDArray[np.int64], names: Sequence[str] | None = None) -> dict[str, Array]:
        """Copy the rows at `indices` (k,), in that order: name → array (k, ...)."""
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"rows {indices.min()}..{indices.max()} of {len(self)}")
        shard_of = np.searchsorted(self._starts, indices, side="right") - 1
        taken = {}
        for name in names or self._parts:
            parts = self._parts[name]
            rows = np.empty((len(indices), *parts[0].shape[1:]), parts[0].dtype)
            for shard in np.unique(shard_of):
                here = shard_of == shard
                rows[here] = parts[shard][indices[here] - self._starts[shard]]
            taken[name] = rows
        return taken

    def rows(self, start: int, stop: int, names: Sequence[str] | None = None) -> dict[str, Array]:
        """Copy the rows from `start` up to, not including, `stop`."""
        return self.gather(np.arange(start, stop), names)


@functools.lru_cache(maxsize=8)
def _open(url: str, infos: tuple[ShardInfo, ...]) -> OpenShards:
    folder = _cache_folder()
    files = {}
    # Ranks of one machine start at different shards, so that each file is fetched by one of them.
    first = os.getpid() % len(infos)
    for info in infos[first:] + infos[:first]:
        files[info.file] = _cached(storage.join(url, info.file), info, folder)
    return OpenShards([files[info.file] for info in infos], infos)


def _cached(url: str, info: ShardInfo, folder: Path) -> Path:
    path = folder / info.sha256
    if path.exists() and _sha256(path) == info.sha256:
        os.utime(path)
        return path
    return _fetched(url, info, folder)


def _fetched(url: str, info: ShardInfo, folder: Path) -> Path:
    path = folder / info.sha256
    # Storage may answer a range that is not there in many ways; a size is a size.
    if storage.size_of(url) == info.size:
        for _ in range(_N_FETCHES):
            with held_file(folder) as (copy, unfinished):
                for start in range(0, info.size, _BLOCK_BYTES):
                    copy.write(storage.read_bytes(url, start, min(start + _BLOCK_BYTES, info.size)))
                copy.flush()
                if _sha256(unfinished) == info.sha256:
                    unfinished.replace(path)
                    return path
    raise DamagedShardError(f"{url}: content differs from its index; remove the folder and run the job again")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cache_folder() -> Path:
    """Return this user's folder of cached shards, without those that nobody used for a week.

    Everybody may write where it lies. Where somebody else took its name, another folder is found or made.
    """
    base = Path(dask.config.get("temporary-directory", None) or tempfile.gettempdir())
    name = f"daskyard-shards-{os.geteuid()}"
    base.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        (base / name).mkdir(mode=0o700)
    folder = next(filter(_is_ours, [base / name, *sorted(base.glob(f"{name}-*"))]), None)
    if folder is None:
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=base))
    for path in _unused_since(folder, time.time() - _UNUSED_DAYS * 86400):
        path.unlink(missing_ok=True)
    return folder


def _is_ours(folder: Path) -> bool:
    """Whether it is a folder of this user's, no link to one; then nobody else can write into it any more."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        if os.fstat(handle).st_uid != os.geteuid():
            return False
        os.fchmod(handle, 0o700)
        return True
    finally:
        os.close(handle)


def _unused_since(folder: Path, moment: float) -> Iterator[Path]:
    for path in folder.iterdir():
        try:
            if path.stat().st_mtime < moment:
                yield path
        except FileNotFoundError:  # another process removed it
            continue
