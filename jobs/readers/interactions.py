"""Reads interactions (user, item, rating, time) from csv, tsv and Parquet, in partitions, on the workers.

A csv or tsv file is cut at line ends. In tsv quotes mean nothing, and every line end ends a row. In csv a line break
within quotes does not: a file that is cut and has one is refused, since a cut might fall on it. Rows without a user, an
item or a rating are dropped and counted. Called by the recommender pipeline; `interaction_blocks` goes on from here.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from jobs import storage
from jobs.errors import InputError, SpecError
from jobs.readers.parquet import decoded_size, read_row_groups

# Object arrays hold text ids, int64 arrays integer ids.
Ids = NDArray[Any]

FORMATS = {".csv": "csv", ".tsv": "tsv", ".parquet": "parquet", ".pq": "parquet"}
_HEADER_BYTES = 1 << 16
_NULLS = ["", "NaN", "nan", "NA", "null", "NULL"]
# A row of its own, put behind the others: where a quote swallows it, that quote was never closed.
_END = "\x1edaskyard end of part\x1e"
# Above it neighbouring counts are one number, and squares and sums of squares of single precision end soon after.
_LARGEST_RATING = 2.0**53
# What int64 holds for certain, written as Python writes it: "007" and "7" stay two ids.
_INTEGER = r"^(0|-?[1-9][0-9]{0,17})$"
# ISO 8601's end of a time of day that says how far it is from UTC.
_ZONE = r"[0-9](Z|[+-][0-9]{2}(:?[0-9]{2})?)$"
_TIME_OF_DAY = r"^.{10}[T ]"


@dataclass(frozen=True)
class Columns:
    """Which column is what; `names` are the columns of text files without a header."""

    user: str
    item: str
    rating: str | None
    timestamp: str | None
    names: tuple[str, ...] | None = None

    @property
    def used(self) -> dict[str, str]:
        """The columns to read, by the param that names them."""
        named = {
            "user_column": self.user,
            "item_column": self.item,
            "rating_column": self.rating,
            "timestamp_column": self.timestamp,
        }
        return {param: name for param, name in named.items() if name is not None}


@dataclass(frozen=True)
class Part:
    """A part of a file for one task: bytes from `start` to `stop`, or the row groups from `start` to `stop`.

    `is_cut` says that there are other parts, of which a reader of this one knows nothing.
    """

    url: str
    format: str
    start: int
    stop: int
    end: int
    names: tuple[str, ...]
    is_test: bool
    is_cut: bool = False


@dataclass(frozen=True)
class Partition:
    """The usable rows of a part, in the file's order; codes point into the part's own ids.

    Attributes
    ----------
    user_ids, item_ids : ndarray of int64 or of str
        Distinct ids, in no particular order.
    users, items : ndarray of shape (n_rows,)
        Codes.
    ratings, times : ndarray of shape (n_rows,)
        Times are -inf where they are missing: numbers as they are, or dates in microseconds since 1970 in UTC.
    time_kind : {"numbers", "dates"} or None
        What the times are, which others can be compared with; None where no row has one.
    n_dropped : int
        Rows left out because user, item or rating is missing.
    """

    user_ids: Ids
    item_ids: Ids
    users: NDArray[np.int64]
    items: NDArray[np.int64]
    ratings: NDArray[np.float64]
    times: NDArray[np.float64]
    n_dropped: int
    is_test: bool
    time_kind: str | None = None


def format_of(url: str, given: str) -> str:
    """Return the format of a file, by the spec's word or by its name."""
    if given in FORMATS.values():
        return given
    if given != "auto":
        raise SpecError(f"input.format: {given!r} holds no interactions; use csv, tsv or parquet")
    for suffix, found in FORMATS.items():
        if url.lower().endswith(suffix):
            return found
    raise InputError(f"{url}: its name does not tell its format; set input.format to csv, tsv or parquet")


def plan(file: storage.StoredFile, format: str, columns: Columns, n_bytes: int, is_test: bool) -> list[Part]:
    """Cut a file into parts of about `n_bytes`, after a look at its header or footer. Runs on a worker.

    Raises
    ------
    InputError
        When a column is missing, or the file is not of its format.
    SpecError
        When column names are given for Parquet, which has its own.
    """
    if format != "parquet":
        storage.refuse_resized(file)
    if file.size == 0:
        return []
    if format == "parquet":
        return _plan_parquet(file, columns, n_bytes, is_test)
    first, names = 0, columns.names
    if names is None:
        head = storage.read_bytes(file.url, 0, min(file.size, _HEADER_BYTES))
        line, newline, _ = head.partition(b"\n")
        first = len(line) + len(newline)
        try:
            text = line.decode("utf-8-sig").rstrip("\r")
        except UnicodeDecodeError as error:
            raise InputError(f"{file.url}: the header is not UTF-8 text; save the file as UTF-8") from error
        delimiter = "\t" if format == "tsv" else ","
        try:
            # A second line shows whether the first one ends within quotes.
            if format == "csv" and len(list(csv.reader([f"{text}\n", "\n"]))) < 2:
                raise InputError(
                    f"{file.url}: a quote in the header is not closed in the first line; rename that column"
                )
            names = tuple(next(csv.reader([text], delimiter=delimiter), []))
        except csv.Error as error:
            raise InputError(
                f"{file.url}: the header line is no CSV ({error}); mend its line ends or quoting"
            ) from error
        _check_columns(file.url, names, columns)
    starts = range(first, file.size, n_bytes)
    is_cut = len(starts) > 1
    return [Part(file.url, format, s, min(s + n_bytes, file.size), file.size, names, is_test, is_cut) for s in starts]


def read(part: Part, columns: Columns, *, is_implicit: bool) -> Partition:
    """Read a part. Runs on a worker.

    Raises
    ------
    InputError
        When the part does not parse, is one of several and has a line break within quotes, an id is neither integer
        nor text, a rating is not a number of at most 2^53 (`is_implicit`: not one from 0 up), or a time is neither a
        number nor a date.
    """
    table = _read_parquet(part, columns) if part.format == "parquet" else _read_text(part, columns)
    user_ids, users = _ids(part.url, columns.user, table.column(columns.user))
    item_ids, items = _ids(part.url, columns.item, table.column(columns.item))
    ratings, times = np.ones(len(table)), np.full(len(table), -np.inf)
    time_kind = "numbers"
    if columns.rating is not None:
        ratings = _numbers(part.url, columns.rating, table.column(columns.rating))
    if columns.timestamp is not None:
        times, time_kind = _times(part.url, columns.timestamp, table.column(columns.timestamp))
    if np.isinf(ratings).any():
        raise InputError(f"{part.url}: column {columns.rating!r} has an infinite value; remove such rows")
    if (np.abs(ratings) > _LARGEST_RATING).any():
        value = ratings[np.abs(ratings) > _LARGEST_RATING][0]
        raise InputError(
            f"{part.url}: column {columns.rating!r} has {value:g}, above {_LARGEST_RATING:g} in size; "
            "remove such rows or divide the column by a constant"
        )
    if is_implicit and (ratings < 0).any():
        low = ratings[ratings < 0][0]
        raise InputError(
            f"{part.url}: column {columns.rating!r} has {low:g}, but implicit counts are not negative; "
            "remove such rows, set params.rating_column to null or params.mode to explicit"
        )
    # An implicit count of 0 says what a missing row says.
    kept = (users >= 0) & (items >= 0) & ~np.isnan(ratings) & ~(is_implicit & (ratings == 0))
    user_ids, users = _used(user_ids, users[kept])
    item_ids, items = _used(item_ids, items[kept])
    ratings, times, n_dropped = ratings[kept], times[kept], int((~kept).sum())
    has_times = bool(np.isfinite(times).any())
    return Partition(
        user_ids, item_ids, users, items, ratings, times, n_dropped, part.is_test, time_kind if has_times else None
    )


def union(ids: Sequence[Ids]) -> Ids:
    """Return the distinct ids of several sets, sorted: by value if all are integers, else as text."""
    if any(some.dtype == object for some in ids):
        ids = [as_text(some) for some in ids]
    return np.unique(np.concatenate(ids))


def as_text(ids: Ids) -> Ids:
    """Return ids as text."""
    return ids if ids.dtype == object else ids.astype(str).astype(object)


def _check_columns(url: str, names: Sequence[str], columns: Columns) -> None:
    listed = ", ".join(repr(name) for name in names[:20]) + (", …" if len(names) > 20 else "")
    for param, name in columns.used.items():
        if name not in names:
            raise InputError(f"{url}: no column {name!r} among {listed}; set params.{param} to one of them")
        if list(names).count(name) > 1:
            raise InputError(f"{url}: column {name!r} stands twice in the header; rename one of the two")


def _plan_parquet(file: storage.StoredFile, columns: Columns, n_bytes: int, is_test: bool) -> list[Part]:
    if columns.names is not None:
        raise SpecError(f"params.columns: {file.url} is Parquet and names its columns itself; leave params.columns out")
    with storage.open_input(file.url) as source:
        metadata = _parquet_file(file.url, source).metadata
    names = tuple(metadata.schema.to_arrow_schema().names)
    _check_columns(file.url, names, columns)
    parts, start, size = [], 0, 0
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        size += max(row_group.total_byte_size, decoded_size(row_group) // 4)
        if size >= n_bytes or group == metadata.num_row_groups - 1:
            parts.append(Part(file.url, "parquet", start, group + 1, metadata.num_row_groups, names, is_test))
            start, size = group + 1, 0
    return parts


def _parquet_file(url: str, source: Any) -> Any:
    try:
        return pq.ParquetFile(source)
    except pa.ArrowInvalid as error:
        raise InputError(f"{url}: not a Parquet file ({_first_line(error)}); write it again") from error


def _read_parquet(part: Part, columns: Columns) -> Any:
    with storage.open_input(part.url) as source:
        try:
            table = read_row_groups(
                part.url,
                source,
                range(part.start, part.stop),
                list(columns.used.values()),
                "; ids are integers or text, ratings and times are numbers",
            )
            table.validate(full=True)  # text that is not UTF-8 would fail where no file is known any more
            return table
        except (pa.ArrowException, OSError) as error:
            # Errors of the storage carry a number or a cause; Arrow's own about damaged pages do not.
            if isinstance(error, OSError) and (error.errno is not None or error.__cause__ is not None):
                raise
            raise InputError(f"{part.url}: damaged Parquet ({_first_line(error)}); write it again") from error


def _read_text(part: Part, columns: Columns) -> Any:
    used = list(columns.used.values())
    data = _lines(part)
    if not data.strip():
        return pa.table({name: pa.array([], pa.string()) for name in used})
    is_tsv = part.format == "tsv"
    is_quoted = not is_tsv and b'"' in data
    if is_quoted:
        data += (b"" if data.endswith(b"\n") else b"\n") + ",".join([_END] * len(part.names)).encode() + b"\n"
    try:
        table = pyarrow.csv.read_csv(
            io.BytesIO(data),
            read_options=pyarrow.csv.ReadOptions(column_names=list(part.names), use_threads=False),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter="\t" if is_tsv else ",",
                quote_char=False if is_tsv else '"',
                newlines_in_values=is_quoted,
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=used,
                column_types={name: pa.string() for name in used},
                null_values=_NULLS,
                strings_can_be_null=True,
            ),
        )
    except pa.ArrowInvalid as error:
        message = _first_line(error)
        if "UTF8" in message:
            raise InputError(f"{part.url}: not UTF-8 text; save the file as UTF-8") from error
        if is_quoted and _END in str(error):
            raise _open_quote(part) from error
        remedy = "mend the file, or set input.format to what it is"
        if part.is_cut and not is_tsv:
            remedy += f"; if a value in quotes holds a line break, {_in_one_part(part)}"
        raise InputError(f"{part.url}: {message}; {remedy}") from error
    return _checked_quotes(part, data, table) if is_quoted else table


def _checked_quotes(part: Part, data: bytes, table: Any) -> Any:
    """Return the rows of a part with quotes, without the one that was put at its end.

    A part that begins where a row does either has a row a line, and the next part begins where a row does, or it is
    refused: the first line break within quotes is found wherever it is, and before it nothing was cut wrongly.
    """
    n_rows, n_lines = len(table), _n_lines(data)
    is_closed = n_rows > 0 and all(column[-1].as_py() == _END for column in table.columns)
    if part.is_cut and (n_rows != n_lines or not is_closed):
        raise InputError(
            f"{part.url}: a value in quotes holds a line break, where a part may end; {_in_one_part(part)}"
        )
    if not is_closed:
        raise _open_quote(part)
    return table.slice(0, n_rows - 1)


def _n_lines(data: bytes) -> int:
    """Count the lines that are not empty, as Arrow ends them: by LF, CR or both."""
    n_ends = data.count(b"\n") + data.count(b"\r") - data.count(b"\r\n")
    has_empty = data.startswith((b"\n", b"\r")) or any(pair in data for pair in (b"\n\n", b"\n\r", b"\r\r"))
    return sum(map(bool, data.splitlines())) if has_empty else n_ends


def _open_quote(part: Part) -> InputError:
    if part.is_cut:
        return InputError(
            f"{part.url}: a value in quotes does not end in its line or part; close the quote, or {_in_one_part(part)}"
        )
    return InputError(f"{part.url}: a quote opens a value that never ends; close it, or double it within quotes")


def _in_one_part(part: Part) -> str:
    return (
        f"set params.partition_bytes to {part.end} or more, so that the file is read in one part, or save it as Parquet"
    )


def _lines(part: Part) -> bytes:
    """The lines that begin in the part: the one before its first line end belongs to the part before."""
    is_first = part.start == 0 or storage.read_bytes(part.url, part.start - 1, part.start) == b"\n"
    data = storage.read_bytes(part.url, part.start, part.stop)
    if not is_first:
        data = data.partition(b"\n")[2]
        if not data:  # no line begins here
            return b""
    position = part.stop
    while position < part.end and not data.endswith(b"\n"):
        more = storage.read_bytes(part.url, position, min(position + _HEADER_BYTES, part.end))
        line, newline, _ = more.partition(b"\n")
        data += line + newline
        position += len(more)
    return data.removeprefix(b"\xef\xbb\xbf") if part.start == 0 else data


def _ids(url: str, name: str, column: Any) -> tuple[Ids, NDArray[np.int64]]:
    """Distinct ids of a column and the code of each row, -1 where it is null."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_floating(column.type):
        # Integers with gaps often arrive as floats.
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
        broken = column.filter(pc.fill_null(pc.not_equal(pc.trunc(column), column), False))
        if len(broken):
            raise InputError(f"{url}: column {name!r} has the id {broken[0].as_py()}; ids are integers or text")
    elif not (pa.types.is_integer(column.type) or _is_text(column.type) or pa.types.is_null(column.type)):
        raise InputError(f"{url}: column {name!r} is of type {column.type}; ids are integers or text")
    if not _is_text(column.type):
        try:
            column = column.cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise InputError(f"{url}: column {name!r}: {_first_line(error)}; store such ids as text") from error
    encoded = column.combine_chunks().dictionary_encode()
    ids = encoded.dictionary
    if _is_text(ids.type) and pc.all(pc.match_substring_regex(ids, _INTEGER), min_count=0).as_py():
        ids = ids.cast(pa.int64())
    codes = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    return (np.array(ids.to_pylist(), dtype=object) if _is_text(ids.type) else ids.to_numpy()), codes


def _used(ids: Ids, codes: NDArray[np.int64]) -> tuple[Ids, NDArray[np.int64]]:
    """Leave out the ids of which every row was dropped."""
    used, codes = np.unique(codes, return_inverse=True)
    ids = ids[used]
    # Whether ids are integers must not depend on rows that are dropped: the parts are cut anywhere.
    if ids.dtype == object and all(re.fullmatch(_INTEGER, id) for id in ids):
        ids = ids.astype(np.int64)
    return ids, codes


def _numbers(url: str, name: str, column: Any, wanted: str = "number") -> NDArray[np.float64]:
    """Return a column as floats, NaN where it is null."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if _is_text(column.type):
        column = pc.utf8_trim_whitespace(column)
        try:
            column = column.cast(pa.float64())
        except pa.ArrowInvalid as error:
            bad = next(value for value in column.to_pylist() if value is not None and not _is_number(value))
            raise InputError(
                f"{url}: column {name!r} has {bad[:40]!r}, no {wanted}; remove such rows or choose another column"
            ) from error
    if not (
        pa.types.is_integer(column.type)
        or pa.types.is_floating(column.type)
        or pa.types.is_decimal(column.type)
        or pa.types.is_null(column.type)
    ):
        raise InputError(f"{url}: column {name!r} is of type {column.type}, not numbers; choose another column")
    return np.array(column.cast(pa.float64()).to_numpy(), dtype=np.float64)


def _times(url: str, name: str, column: Any) -> tuple[NDArray[np.float64], str]:
    """Return a column of numbers, dates or ISO 8601 text as floats, -inf where it is null; and which of the two.

    Without a zone a date is UTC.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    dates = _dates(url, name, column)
    times = _numbers(url, name, column if dates is None else dates, "number, nor are all of them dates of ISO 8601")
    return np.where(np.isnan(times), -np.inf, times), "numbers" if dates is None else "dates"


def _dates(url: str, name: str, column: Any) -> Any:
    """Return dates as microseconds since 1970 in UTC, which float64 holds; None where they are none."""
    if _is_text(column.type):
        column = pc.utf8_trim_whitespace(column)
        is_zoned = pc.and_(pc.match_substring_regex(column, _TIME_OF_DAY), pc.match_substring_regex(column, _ZONE))
        nothing = pa.scalar(None, column.type)
        try:
            zoned = pc.if_else(is_zoned, column, nothing).cast(pa.timestamp("us", tz="UTC"))
            plain = pc.if_else(is_zoned, nothing, column).cast(pa.timestamp("us"))
        except pa.ArrowInvalid:  # not dates, hence numbers
            return None
        return pc.coalesce(zoned.cast(pa.int64()), plain.cast(pa.int64()))
    if not (pa.types.is_timestamp(column.type) or pa.types.is_date(column.type)):
        return None
    is_finer = pa.types.is_timestamp(column.type) and column.type.unit == "ns"
    try:
        return column.cast(pa.timestamp("us", getattr(column.type, "tz", None)), safe=not is_finer).cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise InputError(f"{url}: column {name!r}: {_first_line(error)}; remove such rows") from error


def _is_text(type: Any) -> bool:
    return bool(pa.types.is_string(type) or pa.types.is_large_string(type))


def _is_number(text: str) -> bool:
    try:
        pa.scalar(text).cast(pa.float64())
    except pa.ArrowInvalid:
        return False
    return True


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0][:200]
