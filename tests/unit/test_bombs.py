"""What promises, or turns out, to be larger than memory is refused by name, before the process has grown by it.

Bombs are made as they are needed, and read in a process of its own, whose memory is measured; the room that readers
have there is a small worker's.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed import Client
from PIL import Image

from jobs.cli.submit_manifest import manifest
from jobs.errors import InputError, SpecError
from jobs.readers import room as rooms
from jobs.readers.images import decode, list_input, scan
from jobs.readers.parquet import read_row_groups
from jobs.readers.tables import open_table, read_part
from jobs.spec import load

MIB = 1 << 20
ROOM = 64 * MIB
# What the file itself, a piece of what it unpacks to, and imports that come late may take.
SLACK = 128 * MIB
_CHILD = """
import json, pathlib, resource, sys
from jobs import spec, storage
from jobs.errors import DaskyardError
from jobs.readers import document_formats, documents, image_archives, images, interactions, room, tables
import PIL.Image
PIL.Image.init()
room.MEMORY_LIMIT = 2 * int(sys.argv[1])
status = pathlib.Path("/proc/self/status")
def size(what):
    return int(next(line for line in status.read_text().splitlines() if line.startswith(what)).split()[1]) * 1024
for line in sys.stdin:
    code, path = json.loads(line)
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = size("VmRSS")
    try:
        exec(code)
        told = [0, 0, "read"]
    except DaskyardError as error:
        told = [error.exit_code, size("VmHWM") - before, str(error)]
    print(json.dumps(told), flush=True)
"""
IMAGES = "images.decode(images.scan(images.list_input(path), None, 'auto', None, path + '-scratch'), 0)"
UNPACK = "list(image_archives.read_entries(image_archives.list_entries(path, storage.list_files(path), path + '-s')))"
TABLE = "table = tables.open_table(path, 'auto', 10**6)\nfor part in table.parts: tables.read_part(part, table.columns)"
INTERACTIONS = (
    "columns = interactions.Columns('a', 'b', None, None)\n"
    "for file in storage.list_files(path):\n"
    "    for part in interactions.plan(file, 'parquet', columns, 10**6, False):\n"
    "        interactions.read(part, columns, is_implicit=False)"
)
DOCUMENTS = (
    "for at, (n, _) in enumerate(document_formats.parquet_row_groups(path, ('a',))):\n"
    "    documents.read_part(documents.Part('parquet', path, ('a',), documents.Range(0, n), (), at))"
)

Refusal = Callable[[str, Path], str]


@pytest.fixture(scope="module")
def refusal() -> Iterator[Refusal]:
    """Run code that reads a bomb in the other process; return what it is refused with, if that was in time."""
    with subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(ROOM)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:

        def refused(code: str, path: Path) -> str:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write(json.dumps([code, str(path)]) + "\n")
            child.stdin.flush()
            exit_code, growth, message = json.loads(child.stdout.readline())
            assert (exit_code, path.name in message) == (2, True), message
            assert growth < SLACK, f"{growth >> 20} MiB: {message}"
            return str(message)

        yield refused
        assert child.stdin is not None
        child.stdin.close()


class Zeros(io.RawIOBase):
    """So many zeros, made as they are read."""

    def __init__(self, size: int) -> None:
        self._left = size

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        n = min(size if size >= 0 else self._left, self._left)
        self._left -= n
        return bytes(n)


def packed(compressor: Any, head: bytes, n_zeros: int) -> bytes:
    """Return `head` and then zeros, packed without ever being whole."""
    pieces = [compressor.compress(head)]
    zeros = Zeros(n_zeros)
    while data := zeros.read(4 * MIB):
        pieces.append(compressor.compress(data))
    return b"".join([*pieces, compressor.flush()])


# --- YAML -----------------------------------------------------------------------------------------------------------


def grown(first: str, link: str, joint: str = "\n") -> str:
    """A value, and nine more of which each stands for the one before it ten times."""
    tens = [f"a{i}: &a{i} {link % ', '.join([f'*a{i - 1}'] * 10)}" for i in range(1, 10)]
    return joint.join([f"a0: &a0 {first}", *tens])


ALIASES = {
    "lists": grown("[x, x]", "[%s]"),
    "mappings": grown("{x: 1}", "{y: [%s]}"),
    "merges": grown("{x: 1}", "{<<: [%s]}"),
    "text": f"a: &a {'x' * 500_000}\nb: [{', '.join(['*a'] * 1000)}]",
}


@pytest.mark.parametrize("kind", ALIASES)
def test_aliases_that_stand_for_gigabytes_are_refused(kind: str, refusal: Refusal, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(ALIASES[kind])
    assert "aliases stand for over 4,194,304 values" in refusal("spec.load(path)", path)
    with pytest.raises(SpecError, match="aliases stand for over"):
        manifest(str(path))


def test_aliases_in_a_value_that_is_set_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("{pipeline: kmeans, input: a.csv, output: out}")
    bomb = "{" + grown("[x, x]", "[%s]", ", ") + "}"
    for kind in (load, lambda file, sets: manifest(str(file), sets=sets)):
        with pytest.raises(SpecError, match=r"^--set params.x: .*aliases stand for over"):
            kind(path, sets=[f"params.x={bomb}"])


def test_aliases_as_people_write_them_are_read(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(
        "pipeline: kmeans\ninput: &in {url: a.csv, format: csv}\noutput: out\n"
        "params: {features: &columns [a, b], categorical: *columns}\n"
    )
    job = load(path, sets=["params.features=[c]"])
    assert (job.params.features, job.params.categorical) == (("c",), ("a", "b"))  # type: ignore[attr-defined]


def test_a_deep_chain_of_aliases_is_refused(refusal: Refusal, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("\n".join(["a0: &a0 x", *(f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 5000))]))
    assert "aliases nested deeper than 64 levels" in refusal("spec.load(path)", path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested deeper than 64 levels"),
        ("{a: " * 100_000, "nested deeper than 64 levels"),
        ("- " * 100_000 + "x", "nested deeper than 64 levels"),
        ("a: &a [*a]", "an alias within what it stands for"),
        ("a: &a {<<: *a}", "an alias within what it stands for"),
        ("x" * (2 * MIB), "longer than 1 MiB"),
        ("a: 1" + ":59" * 200_000, "is not of type int"),
        ("a: 1" + ":59" * 200_000 + ".5", "is not of type float"),
        ("a: " + "9" * 200_000, "is not of type int"),
    ],
    ids=["lists", "mappings", "dashes", "own", "merged", "long", "sixty", "sixty and a half", "digits"],
)
def test_yaml_that_would_take_long_or_for_ever_is_refused(
    text: str, message: str, refusal: Refusal, tmp_path: Path
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    assert message in refusal("spec.load(path)", path)


def test_a_file_without_end_is_refused() -> None:
    with pytest.raises(SpecError, match=r"^/dev/zero: longer than 1 MiB"):
        load("/dev/zero")


# --- archives -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("promised", [None, 1000])
def test_a_member_of_a_zip_that_is_large_is_refused(
    method: int, promised: int | None, refusal: Refusal, tmp_path: Path
) -> None:
    path = tmp_path / "images.zip"
    size = 200 * MIB
    with zipfile.ZipFile(path, "w", method) as archive:
        for name in ("a/1.png", "b/1.png"):
            with archive.open(name, "w") as member:
                zeros = Zeros(size)
                while data := zeros.read(4 * MIB):
                    member.write(data)
    if promised is not None:
        # Both the directory and the members say that there is little.
        path.write_bytes(path.read_bytes().replace(struct.pack("<I", size), struct.pack("<I", promised)))
    message = refusal(UNPACK, path)
    assert ("a/1.png: a member takes 200.00 MiB" if promised is None else "damaged archive") in message


TAR_PACKERS: dict[str, Callable[[], Any]] = {
    "tar.gz": lambda: zlib.compressobj(9, wbits=31),
    "tar.bz2": bz2.BZ2Compressor,
    "tar.xz": lzma.LZMACompressor,
}


def tar_header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    header = tarfile.TarInfo(name)
    header.size, header.type = size, kind
    return header.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("suffix", TAR_PACKERS)
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE])
def test_a_member_of_a_tar_that_is_large_is_refused(suffix: str, kind: bytes, refusal: Refusal, tmp_path: Path) -> None:
    path = tmp_path / f"images.{suffix}"
    size = 200 * MIB
    path.write_bytes(packed(TAR_PACKERS[suffix](), tar_header("a/1.png", size, kind), size + 10240))
    message = refusal(UNPACK, path)
    assert ("a/1.png: a member takes 600.00 MiB" if kind == tarfile.REGTYPE else "a header of 209,715,200") in message


def test_an_xz_file_that_wants_a_dictionary_larger_than_memory_is_refused(refusal: Refusal, tmp_path: Path) -> None:
    path = tmp_path / "images.tar.xz"
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 256 * MIB}]
    content = tar_header("_hidden", 200 * MIB)
    path.write_bytes(packed(lzma.LZMACompressor(filters=filters), content, 200 * MIB + 10240))
    assert "more memory than a task has" in refusal(UNPACK, path)


def test_a_sparse_member_is_as_large_as_it_claims(refusal: Refusal, tmp_path: Path) -> None:
    path = tmp_path / "images.tar"
    facts = (b"major=0", b"minor=1", b"size=9999999999", b"map=0,0,0,0")
    pax = b"".join(b"%d GNU.sparse.%b\n" % (len(fact) + 15, fact) for fact in facts)
    head = tar_header("pax", len(pax), tarfile.XHDTYPE) + pax.ljust(512, b"\0") + tar_header("a/1.png", 0)
    path.write_bytes(head + bytes(10240))
    assert "a/1.png: a member takes 27.94 GiB" in refusal(UNPACK, path)


# --- IDX ------------------------------------------------------------------------------------------------------------


def put_idx(folder: Path, header: bytes, n_zeros: int) -> Path:
    folder.mkdir()
    images = packed(zlib.compressobj(9, wbits=31), header, n_zeros)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(images)
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"\0\0\x08\x01\0\0\0\x02\0\1"))
    return folder


@pytest.mark.parametrize(
    ("n", "n_zeros", "message"),
    [
        (400_000, 400_000 * 784, "what its header promises \\(313,600,000 bytes\\)"),
        (2**32 - 1, 10, "what its header promises"),
        (2, 300 * MIB, "more bytes of values, its header promises 1,568"),
    ],
    ids=["promised and there", "promised", "there"],
)
def test_an_idx_file_that_is_large_is_refused(
    n: int, n_zeros: int, message: str, refusal: Refusal, tmp_path: Path
) -> None:
    folder = put_idx(tmp_path / "data", struct.pack(">4I", 0x803, n, 28, 28), n_zeros)
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(refusal(IMAGES, folder))


# --- pictures -------------------------------------------------------------------------------------------------------


def large_png(n_pixels: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">2I5B", n_pixels, n_pixels, 8, 2, 0, 0, 0)
    pixels = packed(zlib.compressobj(9), b"", n_pixels * (3 * n_pixels + 1))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def large_tile() -> bytes:
    """A TIFF of 8 x 8 pixels in one tile of 16,384 x 16,384."""
    tags = {256: 8, 257: 8, 258: 8, 259: 8, 262: 1, 277: 1, 322: 16_384, 323: 16_384, 324: 200, 325: 300_000}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4)
    return head.ljust(200, b"\0") + packed(zlib.compressobj(9), b"", 16_384**2)


def saved(kind: str, size: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L" if kind in ("JPEG", "GIF", "WEBP") else "RGB", (size, size)).save(buffer, kind)
    return buffer.getvalue()


PICTURES: dict[str, Callable[[], bytes]] = {
    "png": lambda: large_png(6000),
    "jpg": lambda: saved("JPEG", 6000),
    "gif": lambda: saved("GIF", 6000),
    "webp": lambda: saved("WEBP", 4000),
    "tiff": large_tile,
    "ppm": lambda: b"P6 60000 60000 255\n" + bytes(100),
    "bmp": lambda: saved("BMP", 8)[:18] + struct.pack("<2i", 60_000, 60_000) + saved("BMP", 8)[26:],
}


@pytest.mark.parametrize("suffix", PICTURES)
def test_a_picture_that_is_large_is_refused(suffix: str, refusal: Refusal, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "data" / name / "0.png")
    (tmp_path / "data" / "a" / f"1.{suffix}").write_bytes(PICTURES[suffix]())
    assert f"a/1.{suffix}: a picture of " in refusal(IMAGES, tmp_path / "data")


def test_only_formats_of_pictures_are_opened(tmp_path: Path) -> None:
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "0.png")
        (tmp_path / name / "1.png").write_bytes(eps)
    found = scan(list_input(str(tmp_path)), None, "folder", None, str(tmp_path / "scratch"))
    assert decode(found, 0).bad == ("a/1.png", "b/1.png")


def test_parts_of_large_pictures_have_fewer_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(20):
            Image.new("RGB", (64, 64), (i, 0, 0)).save(tmp_path / name / f"{i:02d}.png")
    whole = scan(list_input(str(tmp_path)), None, "folder", None, str(tmp_path / "scratch"))
    monkeypatch.setattr(rooms, "MEMORY_LIMIT", 2 * 4 * 64 * 64 * 3 * 7)
    cut = scan(list_input(str(tmp_path)), None, "folder", None, str(tmp_path / "scratch"))
    assert [len(part.entries) for part in cut.parts] == [7, 7, 7, 7, 7, 5]
    monkeypatch.undo()
    of_parts = [decode(cut, at) for at in range(6)]
    assert np.array_equal(np.concatenate([part.images for part in of_parts]), decode(whole, 0).images)
    assert np.array_equal(np.concatenate([part.numbers for part in of_parts]), decode(whole, 0).numbers)


# --- tables ---------------------------------------------------------------------------------------------------------


def repeated(value: Any, n: int, kind: pa.DataType) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), pa.array([value], kind))


def put_parquet(path: Path, columns: dict[str, pa.Array], **options: Any) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=1 << 31, store_schema=False, **options)
    return path


@pytest.mark.parametrize("reader", [TABLE, INTERACTIONS, DOCUMENTS], ids=["table", "interactions", "documents"])
@pytest.mark.parametrize("kind", ["numbers", "nulls", "text", "prefixes"])
def test_a_parquet_file_of_little_that_becomes_much_is_refused(
    reader: str, kind: str, refusal: Refusal, tmp_path: Path
) -> None:
    if kind == "numbers" and reader is DOCUMENTS:
        pytest.skip("documents are text")
    options: dict[str, Any] = {}
    if kind == "numbers":
        column = repeated(7, 30_000_000, pa.int64())
    elif kind == "nulls":
        column = pa.DictionaryArray.from_arrays(pa.nulls(30_000_000, pa.int32()), pa.array(["x"]))
    elif kind == "text":
        column = repeated("x" * MIB, 2000, pa.string())
    else:
        column = pa.array(["x" * (MIB // 4)] * 2000)
        options = {"use_dictionary": False, "column_encoding": {"a": "DELTA_BYTE_ARRAY"}}
    path = put_parquet(tmp_path / "a.parquet", {"a": column} | ({"b": column} if kind == "numbers" else {}), **options)
    if kind != "numbers" and reader is INTERACTIONS:
        path = put_parquet(tmp_path / "a.parquet", {"a": column, "b": pa.array([1] * len(column))}, **options)
    assert path.stat().st_size < 1_500_000
    assert "row group 0 takes" in refusal(reader, path)


def test_a_compressed_table_that_is_large_is_refused(refusal: Refusal, tmp_path: Path) -> None:
    path = tmp_path / "a.csv.gz"
    path.write_bytes(packed(zlib.compressobj(9, wbits=31), b"a,b\n", 300 * MIB))
    assert "a compressed table is longer than 21.33 MiB unpacked" in refusal(TABLE, path)


def test_a_line_that_does_not_end_is_refused(refusal: Refusal, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with path.open("wb") as file:
        file.write(b"a,b\n1,2\n")
        file.truncate(300 * MIB)
    assert "a line that goes on at byte" in refusal(TABLE, path)


def test_a_quoted_field_that_does_not_end_is_refused(refusal: Refusal, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'a\n"')
    with path.open("ab") as file:
        file.truncate(300 * MIB)
    code = f"documents.read_part(documents.Part('csv', path, ('a',), documents.Range(2, {300 * MIB}), ('a',)))"
    assert "a quoted field that is not closed" in refusal(code, path)


# --- what is large and right is read --------------------------------------------------------------------------------


def test_tables_larger_than_the_room_are_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "MEMORY_LIMIT", 2 * MIB)
    n = 200_000
    with (tmp_path / "a.csv").open("w") as file:
        file.write("a,b\n")
        file.writelines(f"{i},text{i % 100}\n" for i in range(n))
    columns = {"a": pa.array(range(n)), "b": pa.array([f"text{i % 100}" for i in range(n)])}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=5000)
    # A column that never changes takes a few bytes a row group in the file: they must not all come into one part.
    pq.write_table(
        pa.table({"a": pa.array(range(n)), "b": pa.array(["x"] * n)}), tmp_path / "b.parquet", row_group_size=5000
    )
    for name in ("a.csv", "a.parquet", "b.parquet"):
        table = open_table(str(tmp_path / name), "auto", 100_000)
        assert len(table.parts) > 10
        frames = [read_part(part, table.columns) for part in table.parts]
        assert [int(x) for frame in frames for x in frame["a"]] == list(range(n))
        assert [x for frame in frames for x in frame["b"]][:101:100] == (["text0"] * 2 if name[0] == "a" else ["x"] * 2)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_dictionary": False},
        {"dictionary_pagesize_limit": 100},
        {"store_schema": False},
        {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}},
    ],
    ids=["dictionary", "plain", "both", "no schema", "prefixes"],
)
@pytest.mark.parametrize("n", [0, 1, 1000])
def test_row_groups_are_read_as_arrow_reads_them(options: dict[str, Any], n: int, tmp_path: Path) -> None:
    words = [None if i % 10 == 3 else "ü" * (i % 7) + str(i % 50) for i in range(n)]
    kinds = [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary()]
    columns = {str(kind): pa.array(words).cast(pa.string()).cast(kind) for kind in kinds}
    columns |= {"text": pa.array(words, pa.string()), "number": pa.array(range(n), pa.int64())}
    columns |= {f"{name} of words": columns[name].dictionary_encode() for name in ("string", "large_string")}
    columns |= {"nothing": pa.nulls(n), "truth": pa.array([True] * n, pa.bool_())}
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=300, **options)
    groups = range(pq.ParquetFile(path).metadata.num_row_groups)
    for names in (list(columns), list(columns)[::-2]):
        wanted = pq.ParquetFile(path).read_row_groups(list(groups), names).select(names)
        with path.open("rb") as file:
            read = read_row_groups("x", file, groups, names, "")
        assert read.column_names == names
        for name in names:
            kind = wanted.schema.field(name).type
            kind = kind.value_type if pa.types.is_dictionary(kind) else kind
            assert read.schema.field(name).type == kind
            assert read[name].to_pylist() == wanted[name].to_pylist()


def test_the_room_of_a_task_is_half_of_its_share_of_the_workers_memory() -> None:
    with Client(
        n_workers=1, threads_per_worker=2, memory_limit=800 * MIB, processes=False, dashboard_address="127.0.0.1:0"
    ) as client:
        assert client.submit(rooms.room).result() == 200 * MIB
    assert rooms.room() == rooms.MEMORY_LIMIT // 2
    with pytest.raises(
        InputError, match=r"^x: it takes .* and a task has .*; mend it, or give the workers more memory"
    ):
        rooms.refuse_beyond_room("x", rooms.MEMORY_LIMIT, "it", "mend it")
