"""Awkward job files and data are one line and exit code 2: never a traceback, never "run again with --debug"."""

from __future__ import annotations

import bz2
import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from jobs.cli.app import app
from jobs.errors import InputError, SpecError
from jobs.readers import document_formats, interactions
from jobs.readers.document_formats import Part, Range
from jobs.readers.images import list_input, scan
from jobs.readers.tables import open_table, read_part
from jobs.spec import load, parse
from jobs.storage import StoredFile, list_files

HUGE = "9" * 5000
JOB = "pipeline: kmeans\nparams: {n_clusters: %s}\ninput: a.csv\noutput: out\n"
MORE = JOB % 2 + "x: "

JOB_FILES: dict[str, tuple[bytes | str, str]] = {
    "a number of 5,000 digits": (JOB % HUGE, "9… is not of type int"),
    "one below zero": (JOB % f"-{HUGE}", "9… is not of type int"),
    "one with underscores": (JOB % ("1_" * 5000 + "1"), "is not of type int"),
    "one in hexadecimal": (JOB % f"0x{'f' * 6000}", "params.n_clusters: a number beyond 64 bits"),
    "one in base 60": (JOB % ("1:" * 3000 + "1"), "params.n_clusters: a number beyond 64 bits"),
    "10 to the 400": (JOB % 10**400, "params.n_clusters: a number beyond 64 bits"),
    "2 to the 63": (JOB % 2**63, "params.n_clusters: a number beyond 64 bits"),
    "infinity": (JOB % "2, tol: .inf", "params.tol: inf is no number to compute with"),
    "a number that becomes infinity": (JOB % "2, tol: 1e999", "params.tol: inf is no number to compute with"),
    "no number": (JOB % "2, tol: .nan", "params.tol: nan is no number to compute with"),
    "a date": (JOB % "2, seed: 2026-01-01", "params.seed: 2026-01-01 is a date; quote"),
    "no date": (JOB % "2, seed: 2026-13-45", "2026-13-45 is not of type timestamp"),
    "a date as key": (JOB % 2 + "2026-01-01: 1\n", "the key 2026-01-01 is no text"),
    "a number as key": (JOB % 2 + "1: 1\n", "the key 1 is no text"),
    "yes as key": (JOB % 2 + "yes: 1\n", "the key True is no text"),
    "nothing as key": (JOB % 2 + "~: 1\n", "the key None is no text"),
    "a list as key": (JOB % 2 + "? [a]\n: 1\n", "unhashable key"),
    "a number as key twice": (JOB % 2 + "x: {1: a, 1: b}\n", "key 1 stands twice"),
    "UTF-16": ((JOB % 2).encode("utf-16"), "not UTF-8 text at byte 0"),
    "noise": (b"\xff\x00\x1b" + bytes(range(256)), "not UTF-8 text at byte 0"),
    "nothing": ("", "not nothing"),
    "a NUL": (MORE + "\0", "unacceptable character #x0000"),
    "a written NUL": (MORE + '"a\\0b"', "x: 'a\\\\x00b' holds a NUL"),
    "a bell": (MORE + "\x07", "unacceptable character #x0007"),
    "half a character": (MORE + '"\\ud800"', "x: '\\\\ud800' holds half a character"),
    "two documents": (JOB % 2 + "---\n" + JOB % 2, "another document"),
    "a call": (MORE + "!!python/object/apply:os.system [id]", "could not determine a constructor"),
    "bytes": (MORE + "!!binary aGk=", "x: b'hi' is a bytes"),
    "a set": (MORE + "!!set {a}", "x: {'a'} is a set"),
    "text as int": (MORE + "!!int foo", "foo is not of type int"),
    "text as bool": (MORE + "!!bool foo", "foo is not of type bool"),
    "text as timestamp": (MORE + "!!timestamp foo", "foo is not of type timestamp"),
    "a merge of a number": (JOB % 2 + "<<: 3\n", "expected a mapping"),
    "an unknown alias": (MORE + "*nope", "undefined alias 'nope'"),
}


@pytest.mark.parametrize("command", ["validate", "preflight", "submit"])
@pytest.mark.parametrize("kind", JOB_FILES)
def test_an_awkward_job_file_is_one_line_and_exit_code_2(kind: str, command: str, tmp_path: Path) -> None:
    content, message = JOB_FILES[kind]
    path = tmp_path / "job.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    result = CliRunner().invoke(app, [command, str(path)])
    assert result.exit_code == 2, result.output
    if not (command == "submit" and kind == "nothing"):
        with pytest.raises(SpecError, match=message):
            load(path)
    assert len(result.stderr.splitlines()) == 1
    assert len(result.stderr) < 500


@pytest.mark.parametrize(
    "item",
    [
        *("x", "=3", "a..b=1", ".=1", "params.n_clusters", "params=3", "params.n_clusters.x=3", "pipeline.x=1"),
        *("a." * 3000 + "a=1", f"params.n_clusters={HUGE}", "params.x=" + "[" * 500, "params.x=*y", "params.x=a: b: c"),
        *(
            "params.x=@",
            "params.x=2026-01-01",
            "params.x=!!python/name:os.system",
            "params.\udcff=1",
            "params.x=\udcff",
        ),
        *("output=\x1b[31mx", "params.x=!!int y", "params.x={a: 1, a: 2}", "params.n_clusters=.inf", "1=1"),
    ],
)
def test_an_awkward_set_is_one_line_and_exit_code_2(item: str, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB % 2)
    for command in ("validate", "submit"):
        result = CliRunner().invoke(app, [command, str(tmp_path / "job.yaml"), "--set", item])
        assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1), result.output


@pytest.mark.parametrize("path", ["", "/", "/dev/null", "/dev/urandom", "x" * 5000, "/proc/1/mem/x"])
def test_what_is_no_job_file_is_one_line_and_exit_code_2(path: str) -> None:
    result = CliRunner().invoke(app, ["validate", path])
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1), result.output


def test_merge_keys_bom_and_escaped_pairs_are_read(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text('\ufeff<<: {pipeline: kmeans, output: a}\ninput: "\\ud83d\\ude00.csv"\noutput: out\n', "utf-8")
    job = load(path)
    assert (job.pipeline, job.input.url, job.output) == ("kmeans", "\U0001f600.csv", "out")


def test_what_aliases_share_is_set_in_one_place(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("pipeline: kmeans\nparams: &p {n_clusters: 2}\ninput: a.csv\noutput: out\nother: *p\n")
    with pytest.raises(SpecError, match="unknown key 'other'"):
        load(path, sets=["params.n_clusters=3"])
    content: dict[str, Any] = {"pipeline": "kmeans", "input": "a.csv", "output": "out"}
    content["params"] = content
    with pytest.raises(SpecError, match="nested too deep"):
        parse(content)


@pytest.mark.parametrize(
    ("pipeline", "params"),
    [
        ("neural_network", {"target": "y", "hidden": [2**62]}),
        ("kmeans", {"n_init": 2**62}),
        ("recommender", {"alpha": 1e308}),
    ],
)
def test_params_that_no_machine_can_serve_are_refused(pipeline: str, params: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="should be less than or equal to"):
        parse({"pipeline": pipeline, "params": params, "input": "a.csv", "output": "out"})


# --- data -----------------------------------------------------------------------------------------------------------

NO_UTF8 = pa.Array.from_buffers(
    pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xff")]
)


def table(path: Path) -> None:
    found = open_table(str(path), "auto", 10**6)
    for part in found.parts:
        read_part(part, found.columns)


def ratings(path: Path) -> None:
    columns = interactions.Columns("a", "b", None, None)
    for file in list_files(str(path)):
        for part in interactions.plan(file, interactions.format_of(file.url, "auto"), columns, 10**6, False):
            interactions.read(part, columns, is_implicit=False)


def documents(path: Path) -> None:
    if path.suffix == ".parquet":
        for group, (n_rows, _) in enumerate(document_formats.parquet_row_groups(str(path), ("a",))):
            document_formats.READERS["parquet"](Part("parquet", str(path), ("a",), Range(0, n_rows), (), group))
    elif path.suffix == ".jsonl":
        part = Part("jsonl", str(path), ("a", "b"), Range(0, path.stat().st_size), is_labelled=True)
        document_formats.READERS["jsonl"](part)
    else:
        document_formats.header(str(path), "csv", ("a",))


def parquet(columns: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(columns, buffer)
    return buffer.getvalue()


Reader = Callable[[Path], None]
CR = b"a,b\r1,2\r3,4\r"
ROWS = '{"a": "x", "b": "y"}\n'
DATA: dict[str, tuple[Reader, str, bytes, str]] = {
    "line ends of an old Mac, table": (table, "a.csv", CR, "the header line is no CSV"),
    "line ends of an old Mac, ratings": (ratings, "a.csv", CR, "the header line is no CSV"),
    "line ends of an old Mac, documents": (documents, "a.csv", CR, "the header line is no CSV"),
    "a long name": (table, "a.csv", b'"' + b"x" * 200_000 + b'",b\n1,2\n', "the header line is no CSV"),
    "a header without end": (table, "a.csv", b"x" * (1 << 20) + b"x", "no header line in the first MiB"),
    "a long cell": (table, "a.csv", b"a,b\n1,2\n" + b"x" * 3_000_000 + b",1\n", "a row is longer than 1 MiB"),
    "a column twice, table": (
        table,
        "a.parquet",
        parquet(pa.Table.from_arrays([pa.array([1])] * 2, names=["a", "a"])),
        "column 'a' stands twice",
    ),
    "no UTF-8, table": (table, "a.parquet", parquet(pa.table({"a": NO_UTF8})), "not UTF-8 text"),
    "no UTF-8, ratings": (ratings, "a.parquet", parquet(pa.table({"a": NO_UTF8, "b": [1, 2]})), "Invalid UTF8"),
    "no UTF-8, documents": (documents, "a.parquet", parquet(pa.table({"a": NO_UTF8})), "is not UTF-8"),
    "JSON nested deep": (documents, "a.jsonl", (ROWS + '{"a":' + "[" * 100_000).encode(), ":2: nested too deep"),
    "JSON nested deep and whole": (
        documents,
        "a.jsonl",
        (ROWS + '{"c":' + "[" * 100_000 + "]" * 100_000 + "}").encode(),
        ":2: nested too deep",
    ),
    "JSON of 5,000 digits": (documents, "a.jsonl", f'{ROWS}{{"a": "x", "c": {HUGE}}}'.encode(), ":2: not valid JSON"),
    "JSON with half a character": (documents, "a.jsonl", b'{"a": "\\ud800", "b": "y"}', "is half a character"),
    "JSON with half a label": (documents, "a.jsonl", b'{"a": "x", "b": "\\udfff"}', "is half a character"),
}


@pytest.mark.parametrize("kind", DATA)
def test_an_awkward_file_is_named(kind: str, tmp_path: Path) -> None:
    read, name, content, message = DATA[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path / name)
    assert name in str(caught.value)
    assert len(str(caught.value)) < 600


def zipped(flag: int, name: str = "a/0.png") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, b"x")
        archive.writestr("b/0.png", b"x")
    data = bytearray(buffer.getvalue())
    for mark, offset in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        at = data.find(mark)
        while at >= 0:
            data[at + offset] |= flag
            at = data.find(mark, at + 1)
    return bytes(data)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.zip", zipped(1), "is encrypted"),
        ("a.zip", zipped(0, "é/0.png").replace("é".encode(), b"\xff\xff"), "can't decode byte 0xff"),
        ("a.tar.gz", b"hello", "Not a gzipped file"),
        ("a.tar.bz2", b"hello", "Invalid data stream"),
        ("a.tar.bz2", bz2.compress(bytes(10240))[:-8] + b"damaged!", "Invalid data stream"),
        ("a.tar.xz", b"hello", "not supported"),
    ],
)
def test_a_damaged_archive_is_named_and_not_tried_again(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name}: truncated or damaged archive .*{message}"):
        scan(list_input(str(tmp_path)), None, "auto", None, str(tmp_path / "scratch"))


def test_a_name_that_a_manifest_cannot_hold_is_refused_before_the_run(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.csv")).write_text("a\n1\n")
    with pytest.raises(InputError, match="its name is not UTF-8; rename it"):
        list_files(str(tmp_path))
    (tmp_path / os.fsdecode(b"\xff.csv")).rename(tmp_path / "東京\x1b\n.csv")
    assert isinstance(list_files(str(tmp_path))[0], StoredFile)


def test_partitions_are_a_byte_at_least(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n1,2\n3,4\n")
    found = open_table(str(tmp_path / "a.csv"), "auto", 1)
    assert sum(len(read_part(part, found.columns)) for part in found.parts) == 2
