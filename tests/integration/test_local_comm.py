"""Large messages between the processes of a local cluster: right at every size and kind, and nothing left behind."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import dask
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from distributed import Client, Worker, wait
from scipy import sparse

from jobs import local_comm
from jobs.cluster import connected

LARGE = local_comm._LARGE
SLOW = local_comm._SLOW


class Pair(NamedTuple):
    rows: Any
    n: int


MADE = {
    "array": lambda n: np.arange(n, dtype=np.uint8),
    "array by columns": lambda n: np.asfortranarray(np.arange(n // 8 * 8, dtype=np.uint8).reshape(-1, 8)),
    "every second": lambda n: np.arange(2 * n, dtype=np.uint8)[::2],
    "bytes": lambda n: bytes(n),
    "text": lambda n: "é" * (n // 2),
    "objects": lambda n: np.array([str(i) for i in range(n // 50)], dtype=object),
    "frame": lambda n: pd.DataFrame({"a": np.arange(n // 16), "b": [str(i) for i in range(n // 16)]}),
    "table": lambda n: pa.table({"a": np.arange(n // 8)}),
    "sparse": lambda n: sparse.random(n // 12, 1, 1.0, "csr", rng=0),
    "tuples": lambda n: [Pair(np.full(n // 4, i, np.uint8), i) for i in range(4)],
    "numbers": lambda n: list(range(n // 24)),
    "many": lambda n: {i: np.full(100, i % 256, np.uint8) for i in range(n // 100)},
}


def test_what_is_written_is_read_and_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    counts = [0, 1, 2, local_comm._N_BUFFERS - 1, local_comm._N_BUFFERS, 2 * local_comm._N_BUFFERS + 1]
    writev, readv = os.writev, os.readv
    for most in (None, 1, 7, 1000):
        if most is not None:  # what the system does at 2 GiB

            def some(file: int, buffers: Any, most: int = most) -> int:
                return os.write(file, b"".join(buffers)[:most])

            def part(file: int, buffers: Any, most: int = most) -> int:
                return readv(file, [buffers[0][:most]])

            writev, readv_now = some, part
            monkeypatch.setattr(os, "writev", writev)
            monkeypatch.setattr(os, "readv", readv_now)
        for n in counts:
            buffers = [memoryview(random.bytes(int(random.integers(0, 40)))) for _ in range(n)]
            path = tmp_path / f"{n}"
            local_comm._write(path, buffers)
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            found = local_comm._read(path, [len(buffer) for buffer in buffers])
            assert [bytes(buffer) for buffer in found] == [bytes(buffer) for buffer in buffers]
            assert not any(buffer.readonly for buffer in found)
            assert not path.exists()


class Counted(list[memoryview]):
    """A list that counts the items of its slices, and of theirs."""

    n_taken = 0

    def __getitem__(self, index: Any) -> Any:
        taken = super().__getitem__(index)
        if not isinstance(index, slice):
            return taken
        Counted.n_taken += len(taken)
        return Counted(taken)


def test_very_many_small_buffers_take_few_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Counted.n_taken = 0
    buffers = Counted([memoryview(b"abcde"), memoryview(b""), memoryview(b"f" * 100)] * 50_000)
    calls = {"writev": 0, "readv": 0}

    def count(name: str) -> None:
        call = getattr(os, name)

        def counted(*args: Any) -> Any:
            calls[name] += 1
            # What one call gets does not grow with what there is.
            assert len(args[1]) <= local_comm._N_BUFFERS
            return call(*args)

        monkeypatch.setattr(os, name, counted)

    count("writev")
    count("readv")
    local_comm._write(tmp_path / "m", buffers)
    assert Counted.n_taken <= 2 * len(buffers)
    found = local_comm._read(tmp_path / "m", [len(buffer) for buffer in buffers])
    assert found == buffers
    assert calls["writev"] <= len(buffers) / local_comm._N_BUFFERS + 1
    assert calls["readv"] <= len(buffers) / local_comm._N_BUFFERS + 1
    assert all(np.frombuffer(each, np.uint8).ctypes.data % 16 == 0 for each in found if len(each))


def test_a_file_that_is_cut_short_is_no_message(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(b"abc")
    with pytest.raises(OSError, match="No data"):
        local_comm._read(tmp_path / "m", [2, 2])


def test_no_file_is_written_over_another(tmp_path: Path) -> None:
    (tmp_path / "m").symlink_to(tmp_path / "theirs")
    with pytest.raises(FileExistsError):
        local_comm._write(tmp_path / "m", [memoryview(b"a")])
    assert not (tmp_path / "theirs").exists()


@pytest.fixture(scope="module")
def local() -> Iterator[Client]:
    with connected(2) as client:
        client.run(count_files)
        yield client


def count_files() -> None:
    """Have this process count the files that it writes."""
    module: Any = local_comm
    write, module.n_written = module._write, 0

    def counted(*args: Any) -> None:
        module.n_written += 1
        write(*args)

    module._write = counted


def n_written(client: Client) -> int:
    return sum(client.run(getattr, local_comm, "n_written").values())


def left(client: Client) -> list[str]:
    (folder,) = set(client.run(lambda: dask.config.get(local_comm.FOLDER)).values())
    return [name for name in os.listdir(folder) if name.startswith("message")]


def equal(found: Any, expected: Any) -> bool:
    if isinstance(expected, sparse.csr_array | sparse.csr_matrix):
        return bool((found != expected).nnz == 0)
    if isinstance(expected, pd.DataFrame | pa.Table):
        return bool(found.equals(expected))
    if isinstance(expected, np.ndarray):
        return found.dtype == expected.dtype and np.array_equal(found, expected)
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(map(equal, found.values(), expected.values()))
    if isinstance(expected, list):
        if not isinstance(expected[0], Pair):
            return bool(found == expected)
        return [type(a) for a in found] == [Pair] * len(expected) and all(
            equal(a.rows, b.rows) and a.n == b.n for a, b in zip(found, expected, strict=True)
        )
    return bool(found == expected)


def moved(client: Client, value: Any) -> tuple[bool, Any]:
    """Take a value from here to one worker, to the other one, and back; whether it was right there."""
    one, other = sorted(client.nthreads())
    there = client.scatter(value, workers=[one], hash=False)
    is_equal = client.submit(equal, there, value, workers=[other], pure=False)
    back = client.submit(lambda each: each, there, workers=[other], pure=False)
    return is_equal.result(), back.result()


@pytest.mark.parametrize(
    "n", [0, 1, 1000, LARGE // 2, LARGE - 4096, LARGE, LARGE + 1, 1 << 20, SLOW, SLOW + 1, 70 << 20]
)
def test_every_size_comes_as_it_was(local: Client, n: int) -> None:
    one, other = sorted(local.nthreads())
    before = n_written(local)
    made = local.submit(lambda: np.arange(n, dtype=np.uint8), workers=[one], pure=False)
    wait(made)

    def seen(array: Any) -> tuple[bool, bool]:
        is_right = np.array_equal(array, np.arange(n, dtype=np.uint8))
        return is_right, array.flags.writeable or not n

    assert local.submit(seen, made, workers=[other], pure=False).result() == (True, True)
    assert np.array_equal(made.result(), np.arange(n, dtype=np.uint8))
    # To the other worker, and to this process.
    assert (n_written(local) - before == 2) == (n >= LARGE)
    assert left(local) == []


@pytest.mark.parametrize("n", [LARGE // 8, 3 * LARGE])
@pytest.mark.parametrize("kind", MADE)
def test_every_kind_comes_as_it_was(local: Client, kind: str, n: int) -> None:
    value = MADE[kind](n)
    is_right, back = moved(local, value)
    assert is_right
    assert equal(back, value)
    assert left(local) == []


def long(n: int) -> Any:
    return np.arange(n)


def have_no_room() -> None:
    """Have the disk be full in the middle of this process's next files."""
    module: Any = local_comm
    write = module._write

    def full(path: Path, buffers: Any) -> None:
        write(path, buffers[:1])
        raise OSError(errno.ENOSPC, "No space left on device")

    module._write = full


def test_without_room_it_goes_over_the_connection() -> None:
    with connected(2) as client:
        client.run(have_no_room)
        value = np.arange(2 * LARGE)
        is_right, back = moved(client, value)
        assert is_right
        assert equal(back, value)
        assert left(client) == []


def test_two_clusters_of_one_process_have_a_folder_each(local: Client) -> None:
    value = np.arange(2 * LARGE)
    with connected(1) as second:
        for client in (local, second):
            there = client.scatter(value, hash=False)
            assert equal(client.submit(lambda each: each + 1, there, pure=False).result(), value + 1)
            # Over a connection that was made while the second cluster was there.
            with Client(client.scheduler.address, security=client.security, set_as_default=False) as other:
                made = other.submit(lambda: np.arange(2 * LARGE), pure=False)
                assert equal(made.result(), value)
            assert left(client) == []
    assert equal(local.submit(lambda: np.arange(2 * LARGE), pure=False).result(), value)


@pytest.mark.parametrize("folder", [None, "/elsewhere"])
def test_others_lead_to_no_file(tmp_path: Path, folder: str | None) -> None:
    comm: Any = object.__new__(local_comm._LocalTLS)
    comm.local_info, comm.remote_info = {local_comm.FOLDER: str(tmp_path)}, {local_comm.FOLDER: folder}
    assert comm._folder() is None


def lose_the_first() -> None:
    """Have the first file of this process be gone before it is read."""
    module: Any = local_comm
    write, n = module._write, 0

    def lost(path: Path, buffers: Any) -> None:
        nonlocal n
        write(path, buffers)
        n += 1
        if n == 1:
            path.unlink()

    module._write = lost


def test_what_is_gone_is_asked_for_again(local: Client) -> None:
    one, other = sorted(local.nthreads())
    local.run(lose_the_first, workers=[one])
    made = local.submit(long, 2 * LARGE, workers=[one], allow_other_workers=True, pure=False)
    wait(made)
    total = local.submit(np.sum, made, workers=[other], allow_other_workers=True, pure=False)
    assert total.result(timeout=60) == LARGE * (2 * LARGE - 1)


def test_a_worker_that_dies_with_a_file_under_way_costs_nothing_but_the_file() -> None:
    def die(dask_worker: Worker) -> None:
        os._exit(1)

    with connected(2) as client:
        (folder,) = set(client.run(lambda: dask.config.get(local_comm.FOLDER)).values())
        # As a writer leaves it whose reader dies.
        Path(folder, "message-left").write_bytes(b"1")
        one, _ = sorted(client.nthreads())
        made = client.submit(long, 2 * LARGE, pure=False)
        wait(made)
        client.run(die, workers=[one], on_error="ignore")
        assert client.submit(np.sum, made, pure=False).result(timeout=60) == LARGE * (2 * LARGE - 1)
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    assert not Path(folder).exists()
