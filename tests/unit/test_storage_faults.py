"""Whatever a store or a network does, an operation on storage ends in time, says why, and gives no wrong bytes."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import errno
import ipaddress
import itertools
import os
import signal
import ssl
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import botocore.exceptions
import fsspec.asyn
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs

from jobs import storage
from jobs.errors import (
    DaskyardError,
    InputError,
    SpecError,
    StorageDeniedError,
    StorageError,
    StorageMissingError,
    StorageStalledError,
)
from jobs.local_s3 import LocalS3
from jobs.readers import interactions, tables
from jobs.spec import parse
from jobs.storage import s3 as s3_files
from jobs.storage import tries
from tests.s3_proxy import Rule, S3Proxy

STALL_S = 0.4
# Generous: what is shown is that it ends at all, where it took minutes, or for ever.
LONGEST_S = 20.0
LARGE = bytes(range(256)) * (120 << 12)  # 120 MiB: written in parts, read in ranges


@pytest.fixture(scope="module")
def bucket(s3_server: LocalS3) -> str:
    """One for all: each bucket takes volumes of its own, and a small disk does not hold many."""
    return s3_server.create_bucket("faults")


@pytest.fixture
def s3(bucket: str) -> str:
    return f"{bucket}/{uuid.uuid4().hex[:8]}"


@pytest.fixture
def proxy(s3_server: LocalS3, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Proxy]:
    monkeypatch.setattr(tries, "FIRST_PAUSE_S", 0.001)
    with S3Proxy(s3_server) as proxy:
        yield proxy


def read_through(url: str) -> bytes:
    with storage.open_input(url) as file:
        content: bytes = file.read()
        return content


OPERATIONS: dict[str, Callable[[str], Any]] = {
    "read_bytes": storage.read_bytes,
    "a range": lambda url: storage.read_bytes(url, 1, 3),
    "open_input": read_through,
    "read_versioned": storage.read_versioned,
    "write_bytes": lambda url: storage.write_bytes(url, b"12345"),
    "create": lambda url: storage.create(f"{url}-new", b"12345"),
    "replace": lambda url: storage.replace(f"{url}-other", b"12345", None),
    "list_files": storage.list_files,
    "exists": storage.exists,
    "remove_tree": storage.remove_tree,
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("kind", ["silent", "trickling"])
def test_an_operation_that_does_not_move_ends(s3: str, proxy: S3Proxy, kind: Any, operation: str) -> None:
    url = f"{s3}/data"
    storage.write_bytes(url, b"0123456789" * 100)
    proxy.add(Rule(kind, part="head"))
    begin = time.monotonic()
    with storage.stalling_after(STALL_S), pytest.raises(StorageStalledError) as caught:
        OPERATIONS[operation](url)
    assert STALL_S <= time.monotonic() - begin < LONGEST_S
    assert url in str(caught.value)
    assert "less than 64 KiB moved in 0.4 s, which is storage.stall_seconds" in str(caught.value)
    assert caught.value.exit_code == 75


@pytest.mark.parametrize(
    ("rule", "operation"),
    [
        (Rule("trickling", method="PUT", key="partNumber", part="request"), "write"),
        (Rule("silent", method="PUT", key="partNumber=2"), "write"),
        (Rule("silent", method="POST", key="uploadId"), "write"),
        (Rule("trickling", method="GET", first=2), "read"),
        (Rule("silent", method="GET", first=3), "read"),
    ],
    ids=["slow part", "silent part", "silent end", "slow range", "silent range"],
)
def test_a_large_object_ends_as_well(s3: str, proxy: S3Proxy, rule: Rule, operation: str) -> None:
    if operation == "read":
        storage.write_bytes(f"{s3}/large", LARGE)
    proxy.add(rule)
    # While a busy server swallows 50 MiB nothing moves either: where that took too long, it gets more time.
    for stall_s in (STALL_S * 5, STALL_S * 25, STALL_S * 125):
        with storage.stalling_after(stall_s), pytest.raises(StorageStalledError, match=r"s3://.*/large: less than"):
            storage.write_bytes(f"{s3}/large", LARGE) if operation == "write" else storage.read_bytes(f"{s3}/large")
        if proxy.n_struck(rule):
            break
    assert proxy.n_struck(rule)


def test_what_moves_slowly_but_moves_is_not_ended(s3: str, proxy: S3Proxy) -> None:
    data = os.urandom(384 << 10)
    storage.write_bytes(f"{s3}/data", data)
    proxy.add(Rule("trickling", method="GET", step=48 << 10, pace_s=0.4))
    begin = time.monotonic()
    with storage.stalling_after(1.6):
        assert storage.read_bytes(f"{s3}/data") == data
    assert time.monotonic() - begin > 1.6


def test_one_deadline_holds_over_all_tries(s3: str, proxy: S3Proxy) -> None:
    """No single wait is long; together, of 4 × 5 × 2 tries, they are."""
    storage.write_bytes(f"{s3}/data", b"0" * 1000)
    rule = proxy.add(Rule("lost", method="GET", delay_s=0.5))
    with storage.stalling_after(1.2), pytest.raises(StorageStalledError):
        storage.read_bytes(f"{s3}/data")
    assert proxy.n_struck(rule) < 10


def test_what_goes_out_slowly_but_goes_out_is_not_ended(s3: str, proxy: S3Proxy) -> None:
    data = os.urandom(40 << 20)
    # The first try takes 8 s, and its connection ends without an answer; the second passes. What the system's buffers
    # hold is out for whoever sends it: while the last of it is read, nothing moves.
    rule = proxy.add(Rule("trickling", method="PUT", part="request", step=2 << 20, pace_s=0.4, last=1))
    with storage.stalling_after(5):
        storage.write_bytes(f"{s3}/data", data)
    assert proxy.n_struck(rule) == 1
    assert storage.read_bytes(f"{s3}/data") == data


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_cut_or_refused_operation_is_worth_another_try(s3: str, proxy: S3Proxy, operation: str) -> None:
    url = f"{s3}/data"
    storage.write_bytes(url, b"0123456789" * 100)
    for kind in ("refused", "lost", "cut"):
        rule = proxy.add(Rule(kind, last=1))  # type: ignore[arg-type]
        OPERATIONS[operation](url)
        assert proxy.n_struck(rule) == 1
        proxy.clear()
    if operation == "remove_tree":
        assert not storage.exists(url)


@pytest.mark.parametrize("size", [1000, 1 << 20])
def test_a_request_that_is_cut_is_sent_again(s3: str, proxy: S3Proxy, size: int) -> None:
    rule = proxy.add(Rule("cut", method="PUT", part="request", last=1))
    data = os.urandom(size)
    storage.write_bytes(f"{s3}/data", data)
    assert storage.read_bytes(f"{s3}/data") == data
    assert proxy.n_struck(rule) == 1


@pytest.mark.parametrize("operation", ["read_bytes", "open_input", "write_bytes", "list_files"])
@pytest.mark.parametrize("kind", ["refused", "lost", "cut"])
def test_what_is_always_cut_or_refused_ends(s3: str, proxy: S3Proxy, kind: Any, operation: str) -> None:
    url = f"{s3}/data"
    storage.write_bytes(url, b"0123456789" * 100)
    proxy.add(Rule(kind, part="request" if operation == "write_bytes" else "answer"))
    begin = time.monotonic()
    with storage.stalling_after(STALL_S), pytest.raises(StorageError, match="data: ") as caught:
        OPERATIONS[operation](url)
    assert caught.value.exit_code == 75
    assert time.monotonic() - begin < LONGEST_S


def test_a_server_that_is_down_ends_an_operation(s3: str, proxy: S3Proxy) -> None:
    storage.write_bytes(f"{s3}/data", b"1")
    with proxy.down(), storage.stalling_after(1.0), pytest.raises(StorageError) as caught:
        storage.read_bytes(f"{s3}/data")
    assert caught.value.exit_code == 75
    assert storage.read_bytes(f"{s3}/data") == b"1"


def test_who_is_interrupted_while_he_waits_leaves_nothing_going_on(s3: str, proxy: S3Proxy) -> None:
    class Stop(BaseException):
        pass

    def stop(*_: object) -> None:
        raise Stop

    def tasks() -> int:
        return len(asyncio.all_tasks(fsspec.asyn.get_loop()))

    storage.exists(s3)
    before = tasks()
    rule = proxy.add(Rule("held", method="PUT"))
    previous = signal.signal(signal.SIGUSR1, stop)
    helper = threading.Thread(target=lambda: (proxy.wait(rule), os.kill(os.getpid(), signal.SIGUSR1)))
    helper.start()
    try:
        with pytest.raises(Stop):
            storage.write_bytes(f"{s3}/data", b"1")
    finally:
        helper.join()
        signal.signal(signal.SIGUSR1, previous)
    deadline = time.monotonic() + LONGEST_S
    while tasks() > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert tasks() <= before


# What storage says of refusals.


@pytest.mark.parametrize("operation", ["create", "replace"])
def test_a_store_without_conditional_writes_is_named_at_once(s3: str, proxy: S3Proxy, operation: str) -> None:
    rule = proxy.add(Rule("unimplemented", header="If-None-Match"))
    with pytest.raises(StorageDeniedError, match=r"does not implement .*NotImplemented.*conditional writes") as caught:
        OPERATIONS[operation](f"{s3}/data")
    assert caught.value.exit_code == 2
    assert proxy.n_struck(rule) == 1


@pytest.mark.parametrize("operation", OPERATIONS)
def test_another_region_is_named(s3: str, proxy: S3Proxy, operation: str) -> None:
    url = f"{s3}/data"
    storage.write_bytes(url, b"0123456789")
    rule = proxy.add(Rule("moved", region="ap-south-1"))
    with pytest.raises(StorageDeniedError, match=r"in ap-south-1 .*set AWS_DEFAULT_REGION=ap-south-1") as caught:
        OPERATIONS[operation](url)
    assert caught.value.exit_code == 2
    assert proxy.n_struck(rule) <= 4


@pytest.mark.parametrize("operation", ["create", "replace"])
@pytest.mark.parametrize("n", [1, 3])
def test_a_conflict_is_tried_again(s3: str, proxy: S3Proxy, operation: str, n: int) -> None:
    rule = proxy.add(Rule("conflict", method="PUT", last=n))
    assert OPERATIONS[operation](f"{s3}/data")
    assert proxy.n_struck(rule) == n


REASONS = {
    "InvalidAccessKeyId": "AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": "expired",
    "RequestTimeTooSkewed": "clock",
    "InvalidToken": "AWS_SESSION_TOKEN",
    "AccessDenied": "grant",
}


@pytest.mark.parametrize(
    ("operation", "code"),
    [
        *itertools.product(OPERATIONS, ["SignatureDoesNotMatch"]),
        *itertools.product(["open_input", "write_bytes"], sorted(set(REASONS) - {"SignatureDoesNotMatch"})),
    ],
)
def test_the_first_refusal_says_why(s3: str, proxy: S3Proxy, operation: str, code: str) -> None:
    url = f"{s3}/data"
    storage.write_bytes(url, b"0123456789")
    rule = proxy.add(Rule("denied", code=code, status=400 if code == "ExpiredToken" else 403))
    with pytest.raises(StorageDeniedError, match=rf"access denied \({code}\).*{REASONS[code]}"):
        OPERATIONS[operation](url)
    assert proxy.n_struck(rule) <= 3


@pytest.mark.parametrize("code", ["XMinioStorageFull", "InsufficientStorage"])
def test_a_full_store_is_not_tried_again(s3: str, proxy: S3Proxy, code: str) -> None:
    rule = proxy.add(Rule("denied", method="PUT", status=507, code=code))
    with pytest.raises(StorageDeniedError, match=rf"cannot be written \({code}\); free space"):
        storage.write_bytes(f"{s3}/data", b"1")
    assert proxy.n_struck(rule) <= 2


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG])
def test_a_full_disk_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    calls = []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    for call in (storage.write_bytes, storage.create):
        with pytest.raises(StorageDeniedError, match="a: cannot be written") as caught:
            call(str(tmp_path / "a"), b"1")
        assert caught.value.exit_code == 2
    assert len(calls) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("url", ["{}", "{}/folder/"])
def test_a_bucket_that_may_not_be_listed_is_no_missing_one(s3: str, proxy: S3Proxy, url: str) -> None:
    proxy.add(Rule("denied"))
    with pytest.raises(StorageDeniedError, match="access denied"):
        storage.list_files(url.format(s3))


def test_an_object_that_is_not_removed_is_an_error(s3: str, proxy: S3Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """S3 answers 200 to the removal of many, with an error for each that it keeps."""
    storage.write_bytes(f"{s3}/t/a", b"1")
    original = s3fs.S3FileSystem._call_s3

    async def keeping(self: Any, method: str, *arguments: Any, **options: Any) -> Any:
        if method == "delete_objects":
            return {"Errors": [{"Key": "t/a", "Code": "AccessDenied", "Message": "no"}]}
        return await original(self, method, *arguments, **options)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", keeping)
    with pytest.raises(StorageDeniedError, match="access denied"):
        storage.remove_tree(f"{s3}/t")


@pytest.mark.parametrize("operation", ["list_files", "list_sizes", "remove_tree", "glob"])
def test_a_listing_that_never_ends_ends(s3: str, proxy: S3Proxy, operation: str) -> None:
    url = f"{s3}/t"
    for name in ("a", "b"):
        storage.write_bytes(f"{url}/{name}", b"1")
    rule = proxy.add(Rule("endless"))
    listings = {
        "list_files": storage.list_files,
        "list_sizes": storage.list_sizes,
        "remove_tree": storage.remove_tree,
        "glob": lambda url: storage.list_files(f"{url}/*"),
    }
    with storage.stalling_after(20), pytest.raises(StorageError, match=r"damaged .*its listing goes on") as caught:
        listings[operation](url)
    assert caught.value.exit_code == 75
    assert proxy.n_struck(rule) <= 16
    proxy.clear()
    assert len(storage.list_files(url)) == 2


def test_all_pages_of_a_listing_come(s3: str) -> None:
    names = [f"{n:02d}{'/a' * (n % 2)}" for n in range(12)]
    for name in names:
        storage.write_bytes(f"{s3}/t/{name}", b"1")
    fs, path = storage.options_fs(f"{s3}/t")
    bucket, prefix, _ = fs.split_path(path)

    async def count(delimiter: str) -> int:
        options = {"Bucket": bucket, "Prefix": f"{prefix}/", "Delimiter": delimiter, "MaxKeys": 1}
        return len([page async for page in fs._list_pages("list_objects_v2", **options)])

    assert fs.run(count, "") == fs.run(count, "/") == len(names)


def test_what_a_library_says_holds_no_password() -> None:
    with pytest.raises(StorageError, match=r"Invalid endpoint: \*\*\*@host") as caught, storage.mapped("s3://a/b"):
        raise ValueError("Invalid endpoint: user:SECRETPW@host")
    assert "SECRETPW" not in str(caught.value)


def test_a_refusal_that_blames_the_request_is_not_tried_again(s3: str, proxy: S3Proxy) -> None:
    rule = proxy.add(Rule("denied", status=400, code="InvalidRequest"))
    with pytest.raises(StorageDeniedError, match="InvalidRequest"):
        storage.write_bytes(f"{s3}/data", b"1")
    assert proxy.n_struck(rule) == 1


# What is read is what was stored.


def big_parquet(n_bytes: int) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"a": pa.array(range(n_bytes // 8), pa.int64())}), sink, compression="none")
    return bytes(sink.getvalue())


def read_parquet(url: str) -> Any:
    with storage.open_input(url) as file:
        return pq.ParquetFile(file).read_row_groups([0])


def read_csv(url: str) -> Any:
    with storage.open_input(url) as file:
        return pd.read_csv(file)


def read_a_line(url: str) -> Any:
    with storage.open_input(url, block_size=1 << 20) as file:
        file.seek(100)
        return file.readline()


READERS: dict[str, Callable[[str], Any]] = {
    "whole": storage.read_bytes,
    "versioned": storage.read_versioned,
    "range": lambda url: storage.read_bytes(url, 3, 700),
    "range over all": lambda url: storage.read_bytes(url, 0, 1 << 40),
    "file": read_through,
    "line": read_a_line,
    "pandas": read_csv,
    "pyarrow": read_parquet,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("has_checksum", [True, False], ids=["checksum", "etag"])
def test_a_flipped_byte_is_found(s3: str, proxy: S3Proxy, reader: str, has_checksum: bool) -> None:
    url = f"{s3}/data"
    storage.write_bytes(url, big_parquet(90_000) if reader == "pyarrow" else b"a,b\n" + b"10,20\n" * 12_000)
    READERS[reader](url)
    drop = None if has_checksum else "x-amz-checksum"
    once = proxy.add(Rule("flipped", method="GET", drop=drop, last=1))
    READERS[reader](url)  # damage on the way heals
    assert proxy.n_struck(once) == 1
    proxy.add(Rule("flipped", method="GET", drop=drop))
    with pytest.raises(StorageError, match=r"data: (damaged|storage did not answer).*") as caught:
        READERS[reader](url)
    assert caught.value.exit_code == 75


@pytest.mark.parametrize("reader", ["pandas", "pyarrow"])
def test_libraries_that_read_a_file_do_not_hide_that_it_stalled(s3: str, proxy: S3Proxy, reader: str) -> None:
    url = f"{s3}/data"
    storage.write_bytes(url, big_parquet(90_000) if reader == "pyarrow" else b"a,b\n" + b"10,20\n" * 12_000)
    proxy.add(Rule("silent", method="GET"))
    with storage.stalling_after(STALL_S), pytest.raises(StorageStalledError, match="data: less than 64 KiB"):
        READERS[reader](url)


@pytest.mark.parametrize("size", [(8 << 20) + 1, 60 << 20])
@pytest.mark.parametrize("reader", ["whole", "file"])
def test_a_flipped_byte_in_a_large_object_is_found_where_all_of_it_is_read(
    s3: str, proxy: S3Proxy, reader: str, size: int
) -> None:
    url = f"{s3}/data"
    data = b"0123456789abcdef" * (size // 16) + b"0" * (size % 16)
    storage.write_bytes(url, data)
    assert READERS[reader](url) == data
    proxy.add(Rule("flipped", method="GET", drop="x-amz-checksum"))
    with pytest.raises(StorageError, match="damaged"):
        READERS[reader](url)


@pytest.mark.parametrize("size", [100, 60 << 20])
def test_a_file_is_of_one_version(s3: str, size: int) -> None:
    url = f"{s3}/data"
    storage.write_bytes(url, b"a" * size)
    with storage.open_input(url, block_size=5 << 20) as file:
        if size > 100:
            assert file.read(10) == b"a" * 10
        storage.write_bytes(url, b"b" * size)
        file.seek(size - 5)
        with pytest.raises(InputError, match="changed while it was read"):
            file.read()


def test_ranges_of_a_large_object_are_of_one_version(s3: str, s3_server: LocalS3, proxy: S3Proxy) -> None:
    url = f"{s3}/data"
    storage.write_bytes(url, b"a" * (60 << 20))
    rule = proxy.add(Rule("held", method="GET", first=2))
    outcome: list[Any] = []

    def read() -> None:
        try:
            outcome.append(storage.read_bytes(url))
        except DaskyardError as error:
            outcome.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    proxy.wait(rule, 2)
    with s3_server._client() as client:
        name, _, folder = s3.removeprefix("s3://").partition("/")
        client.put_object(Bucket=name, Key=f"{folder}/data", Body=b"b" * (60 << 20))
    proxy.release(rule)
    thread.join(60)
    assert isinstance(outcome[0], InputError)


LINES = b"a,b\n" + b"10,20\n" * 12_000


@pytest.mark.parametrize("size", [100, len(LINES), (8 << 20) + 5])
@pytest.mark.parametrize(("start", "end"), [(10, 20), (0, 10), (99, 1 << 30), (7, None), (None, 9), (-9, None)])
def test_a_range_that_the_store_ignores_is_cut_out(
    s3: str, proxy: S3Proxy, size: int, start: int | None, end: int | None
) -> None:
    data = (LINES * (size // len(LINES) + 1))[:size]
    storage.write_bytes(f"{s3}/data", data)
    rule = proxy.add(Rule("unranged", method="GET"))
    assert storage.read_bytes(f"{s3}/data", start, end) == data[start:end]
    assert proxy.n_struck(rule) >= 1


def test_ranges_of_a_file_that_the_store_ignores_are_cut_out(s3: str, proxy: S3Proxy) -> None:
    data = bytes(range(256)) * (10 << 12)
    storage.write_bytes(f"{s3}/data", data)
    rule = proxy.add(Rule("unranged", method="GET"))
    with storage.open_input(f"{s3}/data", block_size=4 << 20) as file:
        file.seek(1_000_001)
        assert file.read(10) == data[1_000_001:1_000_011]
    assert proxy.n_struck(rule) >= 1


def test_a_store_that_sends_all_of_a_large_object_for_each_range_is_refused(s3: str, proxy: S3Proxy) -> None:
    storage.write_bytes(f"{s3}/data", b"1" * (51 << 20))
    proxy.add(Rule("unranged", method="GET"))
    with pytest.raises(StorageError, match=r"damaged.*sent all of 53,477,376 bytes") as caught:
        storage.read_bytes(f"{s3}/data")
    assert caught.value.exit_code == 75


@pytest.mark.parametrize("reader", ["range", "large", "file"])
def test_half_a_range_is_never_taken_for_all_of_it(s3: str, proxy: S3Proxy, reader: str) -> None:
    url = f"{s3}/data"
    data = LINES if reader == "range" else bytes(range(256)) * (52 << 12)
    storage.write_bytes(url, data)
    read = READERS.get(reader, storage.read_bytes)
    right = read(url)
    once = proxy.add(Rule("halved", method="GET", last=1))
    assert read(url) == right  # what is wrong once heals
    assert proxy.n_struck(once) == 1
    proxy.add(Rule("halved", method="GET"))
    with pytest.raises(StorageError, match=r"damaged.*were asked for") as caught:
        read(url)
    assert caught.value.exit_code == 75


@pytest.mark.parametrize("more", [-6, 6])
@pytest.mark.parametrize("size", [len(LINES), 12 << 20])
def test_a_size_that_is_not_the_objects_cuts_nothing_off(s3: str, proxy: S3Proxy, size: int, more: int) -> None:
    url = f"{s3}/data.csv"
    storage.write_bytes(url, (LINES * (size // len(LINES) + 1))[:size])
    listed = storage.list_files(url)[0]
    storage.refuse_resized(listed)
    wrong = proxy.add(Rule("resized", more=more))
    for read in (read_through, read_csv, lambda url: storage.refuse_resized(storage.list_files(url)[0])):
        with pytest.raises(StorageError, match=r"damaged.* bytes") as caught:
            read(url)
        assert caught.value.exit_code == 75
    assert proxy.n_struck(wrong) >= 3


@pytest.mark.parametrize("reader", ["table", "interactions"])
@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_no_rows_are_lost_behind_a_size_that_is_too_small(s3: str, proxy: S3Proxy, reader: str, method: str) -> None:
    storage.write_bytes(f"{s3}/t/data.csv", LINES)
    proxy.add(Rule("resized", method=method, more=-600))

    def read() -> int:
        if reader == "table":
            table = tables.open_table(f"{s3}/t", "csv", 20_000)
            return sum(len(tables.read_part(part, ["a"])) for part in table.parts)
        columns = interactions.Columns("a", "b", None, None)
        (file,) = storage.list_files(f"{s3}/t")
        parts = interactions.plan(file, "csv", columns, 20_000, is_test=False)
        return sum(len(interactions.read(part, columns, is_implicit=False).users) for part in parts)

    if (reader, method) == ("interactions", "HEAD"):  # which asks for none
        assert read() == 12_000
        return
    with pytest.raises(StorageError, match="damaged"):
        read()


def test_an_etag_that_is_no_md5_is_not_taken_for_one() -> None:
    for answer in (
        {"ETag": '"' + "0" * 32 + '-2"'},
        {"ETag": '"' + "0" * 32 + '"', "ServerSideEncryption": "aws:kms"},
        {"ETag": '"' + "0" * 32 + '"', "SSECustomerAlgorithm": "AES256"},
        {"ETag": '"' + "0" * 32 + '"', "StorageClass": "EXPRESS_ONEZONE"},
        {},
    ):
        s3_files.check(answer, b"1")
    with pytest.raises(s3_files.Damaged):
        s3_files.check({"ETag": '"' + "0" * 32 + '"', "ServerSideEncryption": "AES256"}, b"1")


# URLs and settings that cannot work.


def known_protocols() -> list[str]:
    from fsspec.registry import known_implementations

    # These two call their server before they are asked for anything.
    return sorted(set(known_implementations) - {"ftp", "gist"})


@pytest.mark.parametrize("protocol", known_protocols())
def test_a_url_of_any_kind_is_opened_or_refused_in_one_line(protocol: str) -> None:
    refusals = []
    try:
        storage.options_fs(f"{protocol}://place/a")
    except DaskyardError as error:
        refusals.append(error)
    for refusal in refusals:
        assert refusal.exit_code == 2
        assert "\n" not in str(refusal)
        assert str(refusal).startswith(f"{protocol}://place/a: ")


def put(url: str) -> None:
    storage.write_bytes(url, b"1")


INCOMPLETE = {
    "s3://": "names no bucket",
    "s3:///": "names no bucket",
    "s3:///demo/x": "names no bucket",
    "s3a://": "names no bucket",
    "s3:/demo/x": r"write s3://…, or \./s3:…",
    "s3:demo/x": r"write s3://…, or \./s3:…",
    "S3:demo": r"write S3://…, or \./S3:…",
    "file:/tmp/x": r"write file://…, or \./file:…",
    "a:b/c": r"or \./a:… for a file of that name",
    r"C:\data": r"or \./C:… for a file of that name",
    "file://": "names no place",
    "file://localhost": "names no place",
    "https://": "names no place",
    "file://host/tmp/x": "names the host 'host'",
    "local://host/tmp/x": "names the host 'host'",
}


@pytest.mark.parametrize("url", INCOMPLETE)
def test_a_url_that_names_no_place_is_refused_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.chdir(tmp_path)
    places = [url, storage.join(url, "runs")] if url.startswith("s3") else [url]
    for place, call in itertools.product(places, (storage.read_bytes, storage.list_files, storage.remove_tree, put)):
        with pytest.raises(StorageMissingError, match=INCOMPLETE[url]) as caught:
            call(place)
        assert caught.value.exit_code == 2
    assert not list(tmp_path.iterdir())
    for keys in ({"output": url}, {"input": url}, {"input": {"url": "a", "test_url": url}}):
        with pytest.raises(SpecError, match=INCOMPLETE[url]):
            parse({"pipeline": "kmeans", "params": {"n_clusters": 2}, "input": "a", "output": "b", **keys})


def test_the_name_of_this_machine_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for host in ("localhost", "LOCALHOST", ""):
        url = f"file://{host}{tmp_path}/folder/a{host}"
        assert storage.create(url, b"1")
        assert (tmp_path / f"folder/a{host}").read_bytes() == storage.read_bytes(url) == b"1"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    storage.write_bytes("./a:b/c", b"2")
    assert (tmp_path / "a:b" / "c").read_bytes() == b"2"


def test_parts_are_joined_behind_the_scheme() -> None:
    assert storage.join("s3://", "a") == "s3:///a"
    assert storage.join("s3://b/", "/a/", "c") == "s3://b/a/c"
    assert storage.join("file:///", "a") == "file:///a"
    assert storage.join("memory://", "a") == "memory:///a"
    assert storage.join("/", "a") == "/a"
    assert storage.join("d//", "a") == "d/a"


def test_colons_in_names_are_names_and_chains_are_refused(s3: str, tmp_path: Path) -> None:
    for url in (f"{s3}/a::b", str(tmp_path / "a::b"), (tmp_path / "c::s3:").as_uri()):
        storage.write_bytes(url, b"1")
        assert storage.read_bytes(storage.list_files(url)[0].url) == b"1"
    for url in ("zip://a.csv::s3://bucket/a.zip", "simplecache::s3://bucket/a"):
        with pytest.raises(StorageMissingError, match=r"chains kinds of URLs"):
            storage.read_bytes(url)
    with pytest.raises(StorageError, match="not a valid bucket name") as caught:
        storage.read_bytes("s3://a::b/c")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"])
@pytest.mark.parametrize("endpoint", ["not a url", "s3.example.com", "http://"])
def test_an_endpoint_that_is_no_url_is_named(
    s3: str, monkeypatch: pytest.MonkeyPatch, endpoint: str, name: str
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    monkeypatch.setenv(name, endpoint)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StorageDeniedError, match="AWS_ENDPOINT_URL"):
        storage.read_bytes(f"{s3}/a")
    s3fs.S3FileSystem.clear_instance_cache()


def refusal(url: str) -> str:
    """Return what storage says of settings that cannot work, and what a traceback would show."""
    s3fs.S3FileSystem.clear_instance_cache()
    begin = time.monotonic()
    with pytest.raises(StorageDeniedError) as caught:
        storage.read_bytes(url)
    s3fs.S3FileSystem.clear_instance_cache()
    assert caught.value.exit_code == 2
    assert time.monotonic() - begin < LONGEST_S
    assert "\n" not in str(caught.value)
    assert "SECRET" not in "".join(traceback.format_exception(caught.value)).replace("AWS_SECRET", "")
    return str(caught.value)


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"])
@pytest.mark.parametrize(
    "endpoint",
    [
        *("user:SECRETPW@host", "http://user:SECRETPW@host:9000", "http://user:SECRET/PW@host", "http://[::1"),
        *("ftp://host", "http://host:99999", "http://host:0", "http://host:port", "http://host:9000 ", "http://host\n"),
        *("http://:9000", "//host", "host:9000"),
    ],
)
def test_an_endpoint_that_cannot_work_is_named_and_not_quoted(
    s3: str, monkeypatch: pytest.MonkeyPatch, endpoint: str, name: str
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    monkeypatch.setenv(name, endpoint)
    said = refusal(f"{s3}/a")
    assert f"a: {name} " in said
    assert "AWS_DEFAULT_REGION" not in said


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"])
@pytest.mark.parametrize(
    "key", ["SECRETKEY\n", " SECRETKEY", "SECRETKEY\r\n", "SECRET\tKEY", "SECRETKEY\x7f", "\ufeffSECRET"]
)
def test_a_key_with_more_than_the_key_is_named(s3: str, monkeypatch: pytest.MonkeyPatch, name: str, key: str) -> None:
    monkeypatch.setenv(name, key)
    assert f"a: {name} holds white space" in refusal(f"{s3}/a")


def test_files_of_settings_that_cannot_work_are_named(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "credentials"
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(file))
        for content in (b"SECRET", b"\x00\xff\xfe", b"[default\nSECRET=1"):
            file.write_bytes(content)
            assert f"{file}, which {name} names, cannot be parsed" in refusal(f"{s3}/a")
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    file.write_text("[default]\naws_access_key_id = key\naws_secret_access_key = SECRET KEY\n")
    storage.exists(f"{s3}/a")  # the environment's keys count
    keys = {name: os.environ[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    for name in keys:
        monkeypatch.delenv(name)
    assert "aws_secret_access_key in the file of credentials holds white space" in refusal(f"{s3}/a")
    for name in ("AWS_PROFILE", "AWS_DEFAULT_PROFILE"):
        monkeypatch.setenv(name, "nope")
        assert f"a: {name} names a profile that is neither in" in refusal(f"{s3}/a")
        monkeypatch.delenv(name)
    file.write_text("[default]\n" + "".join(f"{name.lower()} = {value} \r\n" for name, value in keys.items()))
    s3fs.S3FileSystem.clear_instance_cache()
    assert not storage.exists(f"{s3}/a")
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize(("region", "has_endpoint"), [("", False), ("bad region!", True), ("bad region!", False)])
def test_a_region_that_is_none_is_named(
    s3: str, monkeypatch: pytest.MonkeyPatch, region: str, has_endpoint: bool
) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", region)
    if not has_endpoint:
        monkeypatch.delenv("AWS_ENDPOINT_URL")
        monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StorageDeniedError, match="AWS_DEFAULT_REGION") as caught:
        storage.read_bytes(f"{s3}/a")
    assert caught.value.exit_code == 2
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize(
    ("url", "secret"),
    [
        ("s3://KEY:sec/re+t@bucket/a", "sec/re+t"),
        ("https://user:secret@127.0.0.1:9/a.csv", "secret"),
        ("https://token@127.0.0.1:9/a.csv", "token"),
        ("ftp://user:secret@127.0.0.1/a", "secret"),
        ("https://127.0.0.1:9/a.csv?x=1&X-Amz-Signature=secret", "secret"),
        ("https://127.0.0.1:9/a.csv?sig=secret&token=secrets", "secret"),
        ("https://user:secret@127.0.0.1:9/a.csv?access_token=secrets", "secret"),
    ],
)
def test_a_password_in_a_url_is_refused_and_not_repeated(url: str, secret: str) -> None:
    for call in (storage.read_bytes, storage.list_files, storage.exists):
        with pytest.raises(StorageDeniedError, match=r"\*\*\*.*holds a password") as caught:
            call(url)
        assert secret not in str(caught.value)
        assert secret not in repr(caught.value)


@pytest.mark.parametrize("text", ["s3://bucket/a:b@c", "a@b", "http://127.0.0.1:9/x@y", "12:30@noon", "s3://b/k@v1"])
def test_what_is_no_password_stays(text: str) -> None:
    assert str(StorageError(text)) == text


# Certificates.


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate for 127.0.0.1 that no authority has signed."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(True, None), True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "certificate.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + private)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(path)
    return path, context


def test_an_untrusted_certificate_is_named_at_once(
    s3: str, s3_server: LocalS3, certificate: tuple[Path, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, context = certificate
    with S3Proxy(s3_server, context) as proxy:
        begin = time.monotonic()
        with pytest.raises(StorageDeniedError, match=r"certificate is not trusted .*AWS_CA_BUNDLE") as caught:
            storage.write_bytes(f"{s3}/a", b"1")
        assert caught.value.exit_code == 2
        assert time.monotonic() - begin < LONGEST_S
        for bundle in ("/no/such/file.pem", str(path.parent), "/dev/null"):
            monkeypatch.setenv("AWS_CA_BUNDLE", bundle)
            s3fs.S3FileSystem.clear_instance_cache()
            with pytest.raises(StorageDeniedError, match=r"authorities cannot be read: .*AWS_CA_BUNDLE"):
                storage.write_bytes(f"{s3}/a", b"1")
        assert time.monotonic() - begin < LONGEST_S
        monkeypatch.setenv("AWS_CA_BUNDLE", str(path))
        s3fs.S3FileSystem.clear_instance_cache()
        storage.write_bytes(f"{s3}/a", b"1")
        assert storage.read_bytes(f"{s3}/a") == b"1"
        # Encrypted connections are watched as plain ones are.
        proxy.add(Rule("silent"))
        with storage.stalling_after(STALL_S), pytest.raises(StorageStalledError):
            storage.read_bytes(f"{s3}/a")


# The deadline's value.


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "much", ""])
def test_a_deadline_that_is_no_time_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(tries.STALL_VARIABLE, value)
    with pytest.raises(DaskyardError, match="no number of seconds") as caught:
        storage.write_bytes(str(tmp_path / "a"), b"1")
    assert caught.value.exit_code == 2


def test_the_deadline_holds_inside_and_not_after() -> None:
    assert tries.stall_seconds() == 300
    with contextlib.suppress(botocore.exceptions.BotoCoreError), storage.stalling_after(10):
        assert tries.stall_seconds() == 10
    assert tries.stall_seconds() == 300


def test_no_connection_is_left_of_an_upload_that_stalled(s3: str, proxy: S3Proxy) -> None:
    proxy.add(Rule("trickling", method="PUT", key="partNumber", part="request"))
    port = urlsplit(proxy.endpoint).port
    with storage.stalling_after(STALL_S * 5), pytest.raises(StorageStalledError):
        storage.write_bytes(f"{s3}/large", LARGE)

    def left() -> list[Any]:
        return [each for each in psutil.Process().net_connections("tcp") if each.raddr and each.raddr.port == port]

    deadline = time.monotonic() + 10
    while left() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left() == []
