"""Parses one part of a documents file, and finds where parts may begin. Pure functions that run on the workers."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from jobs import storage
from jobs.errors import InputError
from jobs.readers.parquet import decoded_size, is_text, read_row_groups
from jobs.readers.room import refuse_beyond_room

_QUOTE, _NEWLINE = 0x22, 0x0A
_BOM = b"\xef\xbb\xbf"
_LONGEST_HEADER = 2**20


@dataclass(frozen=True)
class Range:
    """From `start` up to, not including, `end`: bytes of a file or of a folder's files, or rows of a row group."""

    start: int = 0
    end: int = 0


@dataclass(frozen=True)
class Part:
    """What one task reads. `columns` are the text's and, where there are labels, the label's."""

    format: str
    url: str
    columns: tuple[str, ...] = ()
    rows: Range = field(default_factory=Range)
    header: tuple[str, ...] = ()
    row_group: int = 0
    members: tuple[tuple[str, str | None], ...] = ()
    is_labelled: bool = False


@dataclass(frozen=True)
class DocumentBlock:
    """Documents of one part.

    Attributes
    ----------
    texts : pyarrow.Array of large_string, shape (n_documents,)
    labels : pyarrow.Array of string, shape (n_documents,), or None
    rows : ndarray of int64, shape (n_documents,)
        Which row of the part each document is.
    n_rows, n_without_text, n_without_label : int
        Rows of the part, and those of them that were dropped.
    """

    texts: pa.Array
    labels: pa.Array | None
    rows: NDArray[np.int64]
    n_rows: int
    n_without_text: int
    n_without_label: int


def header(url: str, format: str, columns: tuple[str, ...]) -> tuple[tuple[str, ...], int]:
    """Return the column names of a CSV or TSV file, and the byte at which its rows begin.

    Raises
    ------
    InputError
        When it has no header line or lacks one of `columns`.
    """
    data = storage.read_bytes(url, 0, _LONGEST_HEADER)
    first = len(_BOM) if data.startswith(_BOM) else 0
    bytes_ = np.frombuffer(data, np.uint8)[first:]
    is_end = bytes_ == _NEWLINE
    if format == "csv":
        is_end &= np.cumsum(bytes_ == _QUOTE) % 2 == 0
    ends = np.flatnonzero(is_end)
    if not len(ends) and len(data) == _LONGEST_HEADER:
        raise InputError(f"{url}: no header line in the first MiB; add one, or set input.format")
    end = first + int(ends[0]) + 1 if len(ends) else len(data)
    line = _decoded(url, data[first:end], first).rstrip("\r\n")
    try:
        names = next(csv.reader(io.StringIO(line)), []) if format == "csv" else line.split("\t")
    except csv.Error as error:
        raise InputError(f"{url}: the header line is no CSV ({error}); mend the file's line ends or quoting") from error
    _check_columns(url, names, columns)
    return tuple(names), end


def row_ends(piece: tuple[str, Range, str]) -> tuple[bool, int | None, int | None]:
    """Say where a row begins in a piece of a file of lines.

    Returns
    -------
    is_odd : bool
        Whether the piece has an odd number of quotes (CSV; else False).
    after_plain, after_quoted : int or None
        Where the first row begins, given that the piece begins outside, or inside, a quoted field.

    Notes
    -----
    A newline ends a row of CSV where the number of quotes before it in the file is even. Each piece counts its own
    quotes; what they add up to tells for each piece which of its two answers holds.
    """
    url, bounds, format = piece
    if format != "csv":
        return False, _line_start(url, bounds), None
    # A piece that begins right after a newline begins with a row: the byte before it is looked at as well.
    first = max(bounds.start - 1, 0)
    data = np.frombuffer(storage.read_bytes(url, first, bounds.end), np.uint8)
    is_after_newline = first == bounds.start or data[0] == _NEWLINE
    data = data[bounds.start - first :]
    newlines = np.flatnonzero(data == _NEWLINE)
    is_inside = np.cumsum(data == _QUOTE)[newlines] % 2 == 1
    starts: list[int | None] = []
    for state in (False, True):
        if not state and is_after_newline:
            starts.append(bounds.start)
        else:
            ends = newlines[is_inside == state]
            starts.append(bounds.start + int(ends[0]) + 1 if len(ends) else None)
    return bool(np.count_nonzero(data == _QUOTE) % 2), starts[0], starts[1]


def parquet_row_groups(url: str, columns: tuple[str, ...]) -> list[tuple[int, int]]:
    """Return rows and bytes of the wanted columns of each row group of a Parquet file.

    Raises
    ------
    InputError
        When it is no Parquet file, or lacks one of `columns`, or a column holds neither text nor labels.
    """
    with storage.open_input(url) as file, _parquet(url, file) as parquet:
        schema = parquet.schema_arrow
        _check_columns(url, schema.names, columns)
        text = schema.field(columns[0]).type
        text = text.value_type if pa.types.is_dictionary(text) else text
        if not (is_text(text) or pa.types.is_null(text)):
            raise InputError(f"{url}: column {columns[0]!r} holds {text}, not text; set params.text_column to another")
        if len(columns) > 1 and pa.types.is_nested(schema.field(columns[1]).type):
            raise InputError(
                f"{url}: column {columns[1]!r} holds {schema.field(columns[1]).type}, not one label a row; "
                "set params.label_column to another"
            )
        groups = []
        for at in range(parquet.metadata.num_row_groups):
            group = parquet.metadata.row_group(at)
            chunks = [group.column(column) for column in range(group.num_columns)]
            n_bytes = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema in columns)
            refuse_beyond_room(url, decoded_size(group, columns), f"row group {at}", "write it with smaller row groups")
            groups.append((group.num_rows, n_bytes))
        return groups


def _read_parquet(part: Part) -> DocumentBlock:
    with storage.open_input(part.url) as file:
        try:
            table = read_row_groups(part.url, file, [part.row_group], part.columns, ", not text")
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{part.url}: damaged Parquet file ({_line(error)}); write it again") from error
    table = table.slice(part.rows.start, part.rows.end - part.rows.start)
    columns = [table[name].combine_chunks() for name in part.columns]
    texts = columns[0].cast(columns[0].type.value_type) if pa.types.is_dictionary(columns[0].type) else columns[0]
    try:
        texts = texts.cast(pa.large_string())
        texts.validate(full=True)
    except pa.ArrowInvalid as error:
        for row, value in enumerate(texts.cast(pa.large_binary()).to_pylist()):
            place = f"{part.url}: row {part.rows.start + row} of row group {part.row_group}, column {part.columns[0]!r}"
            _decoded(place, value or b"", 0)
        raise InputError(f"{part.url}: damaged Parquet file ({_line(error)}); write it again") from error
    return _block(texts, _as_labels(columns[1]) if part.is_labelled else None)


def _read_csv(part: Part) -> DocumentBlock:
    data = storage.read_bytes(part.url, part.rows.start, part.rows.end)
    _decoded(part.url, data, part.rows.start)
    if not data.strip():
        return _block(pa.array([], pa.large_string()), pa.array([], pa.string()) if part.is_labelled else None)
    try:
        table = pyarrow.csv.read_csv(
            pa.BufferReader(data),
            pyarrow.csv.ReadOptions(
                use_threads=False, column_names=list(part.header), block_size=min(len(data) + 1, 2**31 - 1)
            ),
            pyarrow.csv.ParseOptions(newlines_in_values=True),
            pyarrow.csv.ConvertOptions(
                include_columns=list(part.columns),
                column_types={name: pa.large_string() for name in part.columns},
                check_utf8=False,
            ),
        )
    except pa.ArrowInvalid as error:
        raise InputError(
            f"{part.url}: not valid CSV in the rows from byte {part.rows.start} ({_line(error)}); "
            "mend the row, or set input.format to tsv or jsonl"
        ) from error
    columns = [table[name].combine_chunks() for name in part.columns]
    return _block(columns[0], columns[1] if part.is_labelled else None)


def _read_tsv(part: Part) -> DocumentBlock:
    lines = _lines(part)
    fields = pc.split_pattern(lines, "\t")
    n_fields = pc.list_value_length(fields).to_numpy()
    wrong = np.flatnonzero(n_fields != len(part.header))
    if len(wrong):
        raise InputError(
            f"{part.url}: {n_fields[wrong[0]]} fields in place of {len(part.header)} in the row that begins with "
            f"{lines[wrong[0]].as_py()[:40]!r}; mend it, or set input.format to csv where fields are quoted"
        )
    columns = [pc.list_element(fields, part.header.index(name)) for name in part.columns]
    return _block(columns[0], columns[1] if part.is_labelled else None)


def _read_jsonl(part: Part) -> DocumentBlock:
    texts: list[str | None] = []
    labels: list[str | None] = []
    for line in _lines(part).to_pylist():
        try:
            row = json.loads(line)
        except RecursionError as error:
            raise InputError(f"{_place(part, line)}: nested too deep for JSON; mend it") from error
        except ValueError as error:
            raise InputError(f"{_place(part, line)}: not valid JSON ({error}); mend it") from error
        if not isinstance(row, dict):
            raise InputError(f"{_place(part, line)}: {type(row).__name__} in place of an object; write one a line")
        text = row.get(part.columns[0])
        if not isinstance(text, (str, type(None))):
            raise InputError(
                f"{_place(part, line)}: {part.columns[0]!r} is {type(text).__name__}, not text; "
                "mend it, or set params.text_column"
            )
        _refuse_half_characters(part, line, text)
        texts.append(text)
        if part.is_labelled:
            label = row.get(part.columns[1])
            if isinstance(label, (dict, list)):
                raise InputError(
                    f"{_place(part, line)}: {part.columns[1]!r} is {type(label).__name__}, not one label; "
                    "mend it, or set params.label_column"
                )
            _refuse_half_characters(part, line, label)
            labels.append(label if isinstance(label, (str, type(None))) else json.dumps(label))
    return _block(pa.array(texts, pa.large_string()), pa.array(labels, pa.string()) if part.is_labelled else None)


def _refuse_half_characters(part: Part, line: str, value: Any) -> None:
    """Refuse text such as "\\ud800", which JSON can write and no encoding takes."""
    try:
        if isinstance(value, str):
            value.encode()
    except UnicodeEncodeError as error:
        half = ascii(value[error.start])
        raise InputError(f"{_place(part, line)}: {half} is half a character; write both halves, or none") from error


def _read_folder(part: Part) -> DocumentBlock:
    texts = [_decoded(url, storage.read_bytes(url).removeprefix(_BOM), 0) for url, _ in part.members]
    labels = pa.array([label for _, label in part.members], pa.string()) if part.is_labelled else None
    return _block(pa.array(texts, pa.large_string()), labels)


READERS: dict[str, Callable[[Part], DocumentBlock]] = {
    "csv": _read_csv,
    "tsv": _read_tsv,
    "jsonl": _read_jsonl,
    "parquet": _read_parquet,
    "folder": _read_folder,
}


def _block(texts: pa.Array, labels: pa.Array | None) -> DocumentBlock:
    """Drop rows without text or label, and count them."""
    has_text = _is_filled(texts)
    has_label = np.ones(len(texts), bool) if labels is None else _is_filled(labels)
    is_kept = has_text & has_label
    mask = pa.array(is_kept)
    return DocumentBlock(
        texts=texts.filter(mask).cast(pa.large_string()),
        labels=None if labels is None else labels.filter(mask).cast(pa.string()),
        rows=np.flatnonzero(is_kept),
        n_rows=len(texts),
        n_without_text=int(np.count_nonzero(~has_text)),
        n_without_label=int(np.count_nonzero(has_text & ~has_label)),
    )


def _is_filled(strings: pa.Array) -> NDArray[np.bool_]:
    return np.asarray(pc.fill_null(pc.not_equal(strings, pa.scalar("", strings.type)), False), bool)


def _as_labels(column: pa.Array) -> pa.Array:
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.cast(pa.string())


def _parquet(url: str, file: Any) -> pyarrow.parquet.ParquetFile:
    try:
        return pyarrow.parquet.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{url}: not a Parquet file, or truncated ({_line(error)}); write it again") from error


def _lines(part: Part) -> pa.Array:
    """Return the lines of a part that are not blank, without their ends."""
    data = storage.read_bytes(part.url, part.rows.start, part.rows.end)
    text = _decoded(part.url, data, part.rows.start).removeprefix("\ufeff")
    lines = pc.list_flatten(pc.split_pattern(pa.array([text], pa.large_string()), "\n"))
    lines = pc.utf8_rtrim(lines, "\r")
    return lines.filter(pc.not_equal(pc.utf8_trim(lines, " "), pa.scalar("", pa.large_string())))


def _line_start(url: str, bounds: Range) -> int | None:
    """Where the first line begins at or after the start of `bounds`, and in it."""
    if bounds.start == 0:
        return 0
    at = bounds.start - 1
    while at < bounds.end:
        data = storage.read_bytes(url, at, min(at + 2**16, bounds.end))
        found = data.find(b"\n")
        if found >= 0:
            return at + found + 1 if at + found + 1 < bounds.end else None
        at += 2**16
    return None


def _place(part: Part, line: str) -> str:
    """Name the file and the number of the line: only an error pays for counting lines."""
    before = storage.read_bytes(part.url, 0, part.rows.start).count(b"\n") if part.rows.start else 0
    data = storage.read_bytes(part.url, part.rows.start, part.rows.end).decode("utf-8")
    at = next(at for at, other in enumerate(data.split("\n")) if other.removeprefix("\ufeff").rstrip("\r") == line)
    return f"{part.url}:{before + at + 1}"


def _check_columns(url: str, names: Any, columns: tuple[str, ...]) -> None:
    names = list(names)
    shown = ", ".join(repr(name) for name in names[:20]) + (", …" if len(names) > 20 else "")
    for column, param in zip(columns, ("text_column", "label_column"), strict=False):
        remedy = f"set params.{param} to one of them" + (", or to null for topics only" if "label" in param else "")
        if column not in names:
            raise InputError(f"{url}: no column {column!r} among {shown}; {remedy}")
        if names.count(column) > 1:
            raise InputError(f"{url}: column {column!r} stands {names.count(column)} times; rename the others")


def _decoded(place: str, data: bytes, offset: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{place}: byte 0x{data[error.start]:02x} at position {offset + error.start} is not UTF-8; "
            "convert it to UTF-8"
        ) from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160]
