import csv
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.errors import InputError
from jobs.job import Job
from jobs.readers.documents import DocumentBlock, find_documents, read_part

Pairs = list[tuple[str | None, str | None]]
Read = Callable[..., list[DocumentBlock]]

HARD: Pairs = [
    ('says "hi", twice', "a"),
    ("two\nlines, and a comma", "b"),
    ('"\n"', "a"),
    ("größer 日本語 😀", "ü"),
    ("", "a"),
    ("no label", ""),
    ("tab\there", "b"),
    ("x" * 3000, "b"),
]


@pytest.fixture
def read(job_factory: Callable[..., Job]) -> Read:
    def read(path: Path, format: str = "auto", label: str | None = "label", size: int | None = None) -> Any:
        job = job_factory("text_mining", {}, str(path))
        source = find_documents(job, str(path), format, "text", label, size)
        assert len(job.inputs) >= 1
        return [read_part(part) for part in source.parts]

    return read


def pairs_of(blocks: list[DocumentBlock]) -> Pairs:
    found: Pairs = []
    for block in blocks:
        labels = [None] * len(block.texts) if block.labels is None else block.labels.to_pylist()
        found += zip(block.texts.to_pylist(), labels, strict=True)
    return found


def rows_of(blocks: list[DocumentBlock]) -> list[int]:
    first, found = 0, []
    for block in blocks:
        found += (block.rows + first).tolist()
        first += block.n_rows
    return found


def many(n: int = 200, hard: bool = True) -> Pairs:
    generator = random.Random(0)
    return [HARD[generator.randrange(len(HARD))] if hard else (f"text {i}", f"c{i % 3}") for i in range(n)]


def write(path: Path, pairs: Pairs) -> Path:
    kind = path.suffix
    if kind == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\r\n")
            writer.writerow(["id", "label", "text"])
            writer.writerows([i, label, text] for i, (text, label) in enumerate(pairs))
    elif kind == ".tsv":
        path.write_bytes("".join(["label\ttext\n", *(f"{label}\t{text}\n" for text, label in pairs)]).encode())
    elif kind == ".jsonl":
        lines = (json.dumps({"label": label, "text": text}, ensure_ascii=False) + "\n" for text, label in pairs)
        path.write_bytes("".join(lines).encode())
    else:
        table = pa.table({"label": [label for _, label in pairs], "text": [text for text, _ in pairs]})
        pq.write_table(table, path, row_group_size=70)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("size", [37, 5000, None])
def test_every_document_is_read_once_and_in_order_whatever_the_size_of_parts(
    read: Read, tmp_path: Path, suffix: str, size: int | None
) -> None:
    pairs = many(60 if size == 37 else 200)
    blocks = read(write(tmp_path / f"documents{suffix}", pairs), size=size)
    expected = [(i, pair) for i, pair in enumerate(pairs) if pair[0] and pair[1]]
    assert pairs_of(blocks) == [pair for _, pair in expected]
    assert rows_of(blocks) == [i for i, _ in expected]
    assert sum(block.n_without_text for block in blocks) == sum(not text for text, _ in pairs)
    assert sum(block.n_without_label for block in blocks) == sum(bool(text) and not label for text, label in pairs)


@pytest.mark.parametrize("size", [17, 400, None])
def test_quotes_mean_nothing_in_tsv(read: Read, tmp_path: Path, size: int | None) -> None:
    pairs: Pairs = [('"open', "a"), ('in"side', "b"), ('"both"', "a"), ("''", 'c"')] * 10
    assert pairs_of(read(write(tmp_path / "documents.tsv", pairs), size=size)) == pairs


def test_windows_line_ends_a_byte_order_mark_and_blank_lines_are_no_part_of_documents(
    read: Read, tmp_path: Path
) -> None:
    for name, content in {
        "a.tsv": "text\tlabel\r\none\tx\r\n\r\ntwo\ty\r\n",
        "a.csv": "text,label\r\none,x\r\n\r\ntwo,y\r\n",
        "a.jsonl": '{"text": "one", "label": "x"}\r\n\r\n{"text": "two", "label": "y"}',
    }.items():
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content.encode())
        assert pairs_of(read(tmp_path / name)) == [("one", "x"), ("two", "y")]


@pytest.mark.parametrize("size", [1, None])
def test_folders_are_classes(read: Read, tmp_path: Path, size: int | None) -> None:
    for name, text in {
        "b/x.txt": "bee",
        "a/deep/er/y.txt": "ay",
        "a/z.txt": "line\nline",
        "top.txt": "no class",
    }.items():
        path = tmp_path / "texts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    blocks = read(tmp_path / "texts", size=size)
    assert pairs_of(blocks) == [("ay", "a"), ("line\nline", "a"), ("bee", "b")]
    assert sum(block.n_without_label for block in blocks) == 1
    assert pairs_of(read(f"{tmp_path}/texts/a/*.txt", label=None)) == [("line\nline", None)]  # type: ignore[arg-type]
    assert len(pairs_of(read(tmp_path / "texts", format="folder", label=None))) == 4


def test_several_files_are_one_input(read: Read, tmp_path: Path) -> None:
    write(tmp_path / "2.parquet", many(30, hard=False))
    write(tmp_path / "1.parquet", many(20, hard=False))
    blocks = read(tmp_path)
    assert pairs_of(blocks) == many(20, hard=False) + many(30, hard=False)
    assert rows_of(blocks) == list(range(50))


def test_labels_of_other_types_become_text(read: Read, tmp_path: Path) -> None:
    table = pa.table({"text": ["a", "b", "c"], "label": [1.0, float("nan"), None]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert pairs_of(read(tmp_path / "a.parquet")) == [("a", "1")]
    pq.write_table(pa.table({"text": ["a"], "label": pa.array(["x"]).dictionary_encode()}), tmp_path / "b.parquet")
    assert pairs_of(read(tmp_path / "b.parquet")) == [("a", "x")]
    (tmp_path / "c.jsonl").write_text('{"text": "a", "label": 3}\n{"text": "b", "label": true}\n{"text": "c"}')
    assert pairs_of(read(tmp_path / "c.jsonl")) == [("a", "3"), ("b", "true")]


def test_a_field_of_several_mebibytes_is_read(read: Read, tmp_path: Path) -> None:
    pairs: Pairs = [("short", "a"), ("long\n" * 700_000, "b"), ("short", "a")]
    for suffix in (".csv", ".jsonl"):
        assert pairs_of(read(write(tmp_path / f"a{suffix}", pairs), size=2**20)) == pairs


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_bytes_that_are_not_utf8_are_named_with_their_position(read: Read, tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a{suffix}", many(50, hard=False))
    content = path.read_bytes()
    at = content.index(b"text 33")
    path.write_bytes(content[:at] + b"\xff" + content[at + 1 :])
    with pytest.raises(InputError, match=rf"a\{suffix}: byte 0xff at position {at} is not UTF-8; convert"):
        read(path, size=200)


def test_bytes_that_are_not_utf8_in_parquet_and_folders_are_named(read: Read, tmp_path: Path) -> None:
    texts = pa.array([b"good", b"bad \xe4"], pa.binary())
    pq.write_table(pa.table({"text": texts, "label": ["a", "b"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: row 1 of row group 0, column 'text': byte 0xe4 at position 4"):
        read(tmp_path / "a.parquet")
    (tmp_path / "t" / "x").mkdir(parents=True)
    (tmp_path / "t" / "x" / "bad.txt").write_bytes(b"caf\xe9 au lait")
    with pytest.raises(InputError, match=r"t/x/bad\.txt: byte 0xe9 at position 3"):
        read(tmp_path / "t")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"', "not valid JSON"),
        ("[1]", "list in place of an object"),
        ('{"text": 3, "label": "a"}', "'text' is int, not text"),
        ('{"text": "a", "label": ["x"]}', "'label' is list, not one label"),
    ],
)
def test_a_bad_json_line_is_named_by_its_number(read: Read, tmp_path: Path, line: str, message: str) -> None:
    lines = ['{"text": "t", "label": "a"}'] * 40
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, line, *lines]))
    with pytest.raises(InputError, match=rf"a\.jsonl:41: {message}"):
        read(tmp_path / "a.jsonl", size=300)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,other\nx,y\n", "no column 'label' among 'text', 'other'; set params.label_column .* null"),
        ("a.tsv", "label\tother\nx\ty\n", "no column 'text' among 'label', 'other'; set params.text_column"),
        ("a.csv", "text,label,text\nx,y,z\n", "column 'text' stands 2 times"),
        ("a.csv", "text,label\na,b\nc\n", r"not valid CSV in the rows from byte 11 \(.*2 columns, got 1"),
        ("a.tsv", "text\tlabel\na\tb\nc\n", "1 fields in place of 2 in the row that begins with 'c'"),
        ("a.csv", "", "empty file"),
        ("a.parquet", "", "empty file"),
        ("a.parquet", "PAR1 but no more", "not a Parquet file, or truncated"),
        ("a.pdf", "%PDF", r"cannot tell the format from file names that end in \.pdf; set input.format"),
        ("noname", "text", "cannot tell the format"),
        ("a.txt", "one text", "no class folders; .* set params.label_column to null"),
        ("a.csv", "text,label\n", "no documents"),
    ],
)
def test_bad_files_are_errors_that_say_what_to_do(
    read: Read, tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path / name)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_truncated_parquet_file_is_an_error(read: Read, tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", many(50))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="not a Parquet file, or truncated"):
        read(path)


def test_damage_inside_a_parquet_file_is_an_error(read: Read, tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", many(200, hard=False))
    content = path.read_bytes()
    path.write_bytes(content[:4] + b"\xff" * 300 + content[304:])
    with pytest.raises(InputError, match="damaged Parquet file"):
        read(path)


def test_columns_of_the_wrong_type_are_errors(read: Read, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [1, 2], "label": ["a", "b"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"column 'text' holds int64, not text; set params\.text_column"):
        read(tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["a"], "label": [["x"]]}), tmp_path / "b.parquet")
    with pytest.raises(InputError, match=r"column 'label' holds list<.*>, not one label a row"):
        read(tmp_path / "b.parquet")


def test_formats_that_hold_no_documents_and_mixed_ones_are_errors(read: Read, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\na,b\n")
    with pytest.raises(InputError, match="format 'idx' does not hold documents; use one of csv, tsv"):
        read(tmp_path / "a.csv", format="idx")
    (tmp_path / "b.jsonl").write_text("{}")
    with pytest.raises(InputError, match=r"names that end in \.csv, \.jsonl; set input.format"):
        read(tmp_path)
