"""Tables from CSV, TSV and Parquet files, cut into parts that workers read.

Text files are read as text: what type a column has is decided over the whole input (see `table_profile`), not by the
first lines of a file or by each partition for itself. Called by the pipelines on tables. Imports little: what a worker
imports it can't use for data.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from jobs import storage
from jobs.errors import InputError
from jobs.readers.parquet import decoded_size, read_row_groups
from jobs.readers.room import read_within, refuse_beyond_room, room
from jobs.storage import StoredFile

_SUFFIXES = {
    "csv": (".csv", ".csv.gz"),
    "tsv": (".tsv", ".tsv.gz", ".tab", ".tab.gz"),
    "parquet": (".parquet", ".parq", ".pq"),
}
_SEPARATORS = {"csv": ",", "tsv": "\t"}
_LONGEST_HEADER = 1 << 20
_LINE_PIECE = 1 << 16
# Text is there as bytes, as Arrow's columns and as pandas'.
_TEXT_COPIES = 3
_NESTED = ", neither numbers nor text; put it into params.drop"
# Of partitions of Parquet: what a byte of the file may become.
_MOST_GROWTH = 4
_NULLABLE = {
    pa.bool_(): pd.BooleanDtype(),
    pa.int8(): pd.Int8Dtype(),
    pa.int16(): pd.Int16Dtype(),
    pa.int32(): pd.Int32Dtype(),
    pa.int64(): pd.Int64Dtype(),
    pa.uint8(): pd.UInt8Dtype(),
    pa.uint16(): pd.UInt16Dtype(),
    pa.uint32(): pd.UInt32Dtype(),
    pa.uint64(): pd.UInt64Dtype(),
}
# What pandas takes for missing in text, without "None" and "null", which may be names.
_MISSING = ["", "NA", "N/A", "NaN", "nan", "NULL", "#N/A"]


@dataclass(frozen=True)
class Part:
    """One partition: a range of a text file's bytes, or a range of a Parquet file's row groups."""

    file: StoredFile
    format: str
    start: int
    stop: int
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A table that nobody has read yet."""

    files: list[StoredFile]
    parts: list[Part]
    columns: tuple[str, ...]


def open_table(url: str, format: str, blocksize: int) -> Table:
    """List the files of a table and cut them into parts of about `blocksize` bytes.

    Parameters
    ----------
    url : str
        A file, a folder or a glob.
    format : str
        csv, tsv, parquet, or auto: by the names of the files.
    blocksize : int
        Bytes. Compressed text is not cut.

    Raises
    ------
    InputError
        When files are of several formats, are empty, or have other columns than the first.
    """
    listed = storage.list_files(url)
    format = _format_of(url, listed) if format == "auto" else format
    if format not in _SUFFIXES:
        raise InputError(f"{url}: format {format} is no table; set input.format to csv, tsv or parquet")
    files = [file for file in listed if len(listed) == 1 or file.url.lower().endswith(_SUFFIXES[format])]
    if not files:
        raise InputError(f"{url}: no {format} files among {len(listed)}; correct input.format or the URL")
    parts: list[Part] = []
    columns: tuple[str, ...] | None = None
    for file in files:
        if file.size == 0:
            raise InputError(f"{file.url}: empty file; remove it or write it again")
        found = _cut_parquet(file, blocksize) if format == "parquet" else _cut_text(file, format, blocksize)
        columns = columns or found[0].columns
        if found[0].columns != columns:
            odd = sorted(set(columns) ^ set(found[0].columns)) or list(found[0].columns)
            raise InputError(
                f"{file.url}: its columns differ from those of {files[0].url} ({_few(odd)}); read them separately"
            )
        parts += found
    return Table(files, parts, columns or ())


def read_part(part: Part, columns: Sequence[str], numbers: Collection[str] = ()) -> pd.DataFrame:
    """Read some columns of a part as a data frame. Runs on a worker.

    Text files give text, but for `numbers`: columns that are known to hold nothing else. Parquet files give their own
    types.
    """
    # Integers that become floats where one is missing would lose digits there, and be other categories.
    return read_arrow(part, columns, numbers).to_pandas(ignore_metadata=True, types_mapper=_NULLABLE.get)


def read_arrow(part: Part, columns: Sequence[str], numbers: Collection[str] = ()) -> pa.Table:
    """Read some columns of a part as an Arrow table, as `read_part` does."""
    if part.format == "parquet":
        return _read_parquet(part, columns)
    data = _unpacked_lines(part) if part.file.url.lower().endswith(".gz") else _lines_between(part)
    if not data.strip():
        return pa.table({name: pa.array([], pa.string()) for name in columns})
    if data.count(b'"') % 2:
        raise InputError(
            f"{part.file.url}: a quoted field is not closed, or goes over several lines; "
            "mend the quoting, or raise params.blocksize_mb above the file's size"
        )
    if numbers:
        try:
            return _parsed(part, data, columns, numbers)
        except pa.ArrowInvalid:
            # Arrow takes fewer spellings of a number than pandas, no "+1" for one: whoever asked will convert the text.
            pass
    with _mapped(part.file.url):
        return _parsed(part, data, columns)


def _format_of(url: str, files: Sequence[StoredFile]) -> str:
    found = {format for format, suffixes in _SUFFIXES.items() for file in files if file.url.lower().endswith(suffixes)}
    if len(found) != 1:
        what = f"files of several formats ({', '.join(sorted(found))})" if found else "no csv, tsv or parquet files"
        raise InputError(f"{url}: {what}; set input.format or correct the URL")
    return found.pop()


def _cut_text(file: StoredFile, format: str, blocksize: int) -> list[Part]:
    columns = _header(file, format)
    if file.url.lower().endswith(".gz"):
        return [Part(file, format, 0, file.size, columns)]
    n_parts = max(1, round(file.size / blocksize))
    edges = [file.size * i // n_parts for i in range(n_parts + 1)]
    return [Part(file, format, start, stop, columns) for start, stop in itertools.pairwise(edges)]


def _header(stored: StoredFile, format: str) -> tuple[str, ...]:
    url = stored.url
    # By its listed size it is cut.
    with storage.open_input(url, etag=stored.etag, size=stored.size) as raw, _mapped(url), _unpacked(url, raw) as file:
        # Not readline(…): fsspec's files of S3 take no limit there.
        start = file.read(_LONGEST_HEADER)
        if len(start) == _LONGEST_HEADER and b"\n" not in start:
            raise InputError(f"{url}: no header line in the first MiB; write one, or set input.format")
        line = start.split(b"\n", 1)[0].decode("utf-8-sig")
        names = next(csv.reader([line], delimiter=_SEPARATORS[format]), [])
    if not any(name.strip() for name in names):
        raise InputError(f"{url}: the first line names no columns; write a header line")
    return _distinct(url, names)


def _distinct(url: str, names: Sequence[str]) -> tuple[str, ...]:
    twice = sorted(name for name, n in Counter(names).items() if n > 1)
    if twice:
        raise InputError(f"{url}: column {twice[0]!r} stands twice in the header; rename one")
    return tuple(names)


def _parsed(part: Part, data: bytes, columns: Sequence[str], numbers: Collection[str] = ()) -> pa.Table:
    # Arrow's reader refuses lines with more or fewer fields than the header; pandas' pads and cuts them.
    return pa_csv.read_csv(
        pa.py_buffer(data),
        read_options=pa_csv.ReadOptions(column_names=list(part.columns), use_threads=False),
        parse_options=pa_csv.ParseOptions(delimiter=_SEPARATORS[part.format], newlines_in_values=True),
        convert_options=pa_csv.ConvertOptions(
            include_columns=list(columns),
            column_types={name: pa.float64() if name in numbers else pa.string() for name in columns},
            null_values=_MISSING,
            strings_can_be_null=True,
        ),
    )


def _unpacked_lines(part: Part) -> bytes:
    url = part.file.url
    with storage.open_input(url, etag=part.file.etag) as raw, _mapped(url), gzip.open(raw) as file:
        file.readline(_LONGEST_HEADER)
        return read_within(
            file, room() // _TEXT_COPIES, url, "a compressed table", "unpack it, then it is read in parts"
        )


def _lines_between(part: Part) -> bytes:
    """Return the lines that begin in the part, without the header; the last may end behind it."""
    with storage.open_input(part.file.url, etag=part.file.etag, block_size=1 << 20) as file:
        # The line that holds the byte before the part belongs to the part before.
        begin = _next_line(file, max(part.start - 1, 0), part.stop)
        if begin >= part.stop:
            return b""
        file.seek(begin)
        what = f"the part of {part.stop - begin:,} bytes from byte {begin:,}"
        refuse_beyond_room(part.file.url, _TEXT_COPIES * (part.stop - begin), what, "lower params.blocksize_mb")
        data: bytes = file.read(part.stop - begin)
        if data.endswith(b"\n"):
            return data
        return data + _rest_of_line(part.file, file, begin, data)


def _next_line(file: IO[bytes], start: int, stop: int) -> int:
    """Return where a line begins after the byte at `start`; `stop` or more where that is not before it."""
    file.seek(start)
    while start < stop and (piece := file.read(_LINE_PIECE)):
        at = piece.find(b"\n") + 1
        if at:
            return start + at
        start += len(piece)
    return max(start, stop)


def _rest_of_line(stored: StoredFile, file: IO[bytes], begin: int, data: bytes) -> bytes:
    """Return what the line that ends `data`, which begins at byte `begin`, has behind it."""
    pieces: list[bytes] = []
    n_bytes = len(data)
    while piece := file.read(_LINE_PIECE):
        at = piece.find(b"\n") + 1
        pieces.append(piece[:at] if at else piece)
        n_bytes += len(pieces[-1])
        if at:
            break
        what = f"a line that goes on at byte {begin + n_bytes:,}"
        refuse_beyond_room(stored.url, _TEXT_COPIES * n_bytes, what, "mend the file's line ends or quoting")
    return b"".join(pieces)


def _cut_parquet(file: StoredFile, blocksize: int) -> list[Part]:
    with storage.open_input(file.url) as handle, _mapped(file.url):
        metadata = pq.ParquetFile(handle).metadata
        columns = _distinct(file.url, metadata.schema.to_arrow_schema().names)
    parts: list[Part] = []
    start = size = 0
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        # A number a row costs a bit where they are all the same: what it becomes counts as well.
        size += max(row_group.total_byte_size, decoded_size(row_group) // _MOST_GROWTH)
        if size >= blocksize or group == metadata.num_row_groups - 1:
            parts.append(Part(file, "parquet", start, group + 1, columns))
            start, size = group + 1, 0
    return parts or [Part(file, "parquet", 0, 0, columns)]


def _read_parquet(part: Part, columns: Sequence[str]) -> pa.Table:
    with storage.open_input(part.file.url, etag=part.file.etag) as handle, _mapped(part.file.url):
        table = read_row_groups(part.file.url, handle, range(part.start, part.stop), columns, _NESTED)
        return _plain(part.file.url, table)


def _plain(url: str, table: pa.Table) -> pa.Table:
    """Return a table of numbers, booleans and text alone, as its schema says, whatever a part happens to hold."""
    for place, field in enumerate(table.schema):
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        if pa.types.is_decimal(kind):
            kind = pa.float64()
        elif pa.types.is_null(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind):
            table.column(place).validate(full=True)  # else it fails where no file is known any more
            kind = pa.string()
        elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
            raise InputError(f"{url}: column {field.name!r} is of type {kind}{_NESTED}")
        table = table.set_column(place, field.name, table.column(place).cast(kind))
    return table


@contextmanager
def _unpacked(url: str, raw: Any) -> Iterator[Any]:
    if url.lower().endswith(".gz"):
        with gzip.open(raw) as file:
            yield file
    else:
        yield raw


@contextmanager
def _mapped(url: str) -> Iterator[None]:
    """Turn what csv, gzip, pandas and pyarrow say of a bad file into one line about it."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise InputError(
            f"{url}: not UTF-8 text ({error.reason} at byte {error.start}); convert it to UTF-8"
        ) from error
    except csv.Error as error:
        raise InputError(f"{url}: the header line is no CSV ({error}); mend the file's line ends or quoting") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{url}: damaged or cut gzip file ({error}); write it again") from error
    except pa.ArrowException as error:
        raise _of_arrow(url, error) from error
    except OSError as error:
        # Arrow's own complaints have no number; those of the storage below do, and are mapped there.
        if error.errno is not None or isinstance(error, (TimeoutError, ConnectionError)):
            raise
        raise _of_arrow(url, error) from error


def _of_arrow(url: str, error: Exception) -> InputError:
    cause = str(error).strip().splitlines()[0]
    if "straddling" in cause:
        return InputError(f"{url}: a row is longer than 1 MiB; mend the file's line ends or quoting")
    if "UTF8" in cause:
        return InputError(f"{url}: not UTF-8 text ({cause}); convert it to UTF-8")
    if "CSV" in cause:
        return InputError(f"{url}: lines do not fit the header ({cause}); mend the file or its quoting")
    return InputError(f"{url}: not a readable Parquet file ({cause}); write it again")


def _few(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (", …" if len(names) > 5 else "")
