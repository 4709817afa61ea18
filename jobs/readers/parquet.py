"""Reads row groups of Parquet files, having seen that they fit into memory: a few hundred bytes can stand for billions
of values.

What a footer says tells how many values there are, and how large those of a fixed size become. How large text becomes
is not told where a dictionary or a prefix stands for it: such columns are measured before they are written out.
Called by the readers of tables, documents and interactions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.errors import InputError
from jobs.readers.room import refuse_beyond_room, room

_REMEDY = "write it with smaller row groups"
# A value is there as Arrow's and as pandas' or NumPy's.
_COPIES = 2
_OFFSET = 4
_WIDEST_PIECE = 1 << 30  # text of 32-bit offsets ends at 2 GiB


def decoded_size(group: Any, columns: Iterable[str] | None = None) -> int:
    """Return how many bytes the columns of a row group take in memory, as far as its metadata tell; None: all."""
    wanted = None if columns is None else set(columns)
    size = 0
    for place in range(group.num_columns):
        chunk = group.column(place)
        if wanted is not None and chunk.path_in_schema.split(".", 1)[0] not in wanted:
            continue
        n_values = max(chunk.num_values, group.num_rows)
        if chunk.physical_type == "BYTE_ARRAY":
            size += n_values * _OFFSET + max(chunk.total_uncompressed_size, 0)
        else:
            size += max(n_values * (16 if chunk.physical_type == "FIXED_LEN_BYTE_ARRAY" else 8), 0)
    return size


def read_row_groups(url: str, source: Any, groups: Sequence[int], columns: Sequence[str], of_nested: str) -> pa.Table:
    """Read some columns of some row groups; text that a dictionary stands for is written out.

    Parameters
    ----------
    url : str
        What to call the file.
    source : file
        Open for reading.
    groups : sequence of int
        Which row groups.
    columns : sequence of str
        Which columns, of numbers, text and the like: not nested.
    of_nested : str
        What to say of a column of lists or the like behind its type.

    Raises
    ------
    InputError
        When they do not fit into a task's memory, or a column is nested.
    pyarrow.ArrowException, OSError
        When the file is damaged.
    """
    metadata = pq.ParquetFile(source).metadata
    schema = metadata.schema.to_arrow_schema()
    for name in columns:
        if pa.types.is_nested(schema.field(name).type):
            raise InputError(f"{url}: column {name!r} is of type {schema.field(name).type}{of_nested}")
    size = sum(decoded_size(metadata.row_group(group), columns) for group in groups)
    refuse_beyond_room(url, _COPIES * size, _what(groups), _REMEDY)
    texts = [name for name in columns if is_text(schema.field(name).type)]
    table = _read(url, source, metadata, groups, columns, texts)
    written = sum(_written_size(column) for column in table.columns)
    refuse_beyond_room(url, _COPIES * written, _what(groups), _REMEDY)
    fields = [schema.field(name) for name in columns]
    plain = [
        field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field for field in fields
    ]
    return pa.table(
        [_write_out(table.column(field.name), field.type) for field in plain],
        schema=pa.schema(plain, metadata=schema.metadata),
    )


def _read(
    url: str, source: Any, metadata: Any, groups: Sequence[int], columns: Sequence[str], texts: list[str]
) -> pa.Table:
    prefixed = _prefixed(metadata, groups)
    file = pq.ParquetFile(source, metadata=metadata, read_dictionary=[name for name in texts if name not in prefixed])
    if not prefixed & {*texts}:
        return file.read_row_groups(list(groups), columns=list(columns), use_threads=False)
    # Each value may be the one before it and a little more: their sum is known as they are read, a few at a time.
    longest = max(metadata.row_group(group).total_byte_size for group in groups)
    batches = []
    n_bytes = 0
    for batch in file.iter_batches(
        max(1, min(1 << 16, room() // (_COPIES * max(longest, 1)))),
        row_groups=list(groups),
        columns=list(columns),
        use_threads=False,
    ):
        batches.append(batch)
        n_bytes += sum(batch.column(name).nbytes for name in columns if name in prefixed)
        refuse_beyond_room(url, _COPIES * n_bytes, _what(groups), _REMEDY)
    return pa.Table.from_batches(batches, None if batches else file.schema_arrow).select(list(columns))


def _prefixed(metadata: Any, groups: Sequence[int]) -> set[str]:
    """Return the columns in which a value may begin like the one before; Arrow cannot read them as a dictionary."""
    chunks = [
        metadata.row_group(group).column(place)
        for group in groups
        for place in range(metadata.row_group(group).num_columns)
    ]
    return {chunk.path_in_schema for chunk in chunks if "DELTA_BYTE_ARRAY" in chunk.encodings}


def _written_size(column: pa.ChunkedArray) -> int:
    """Return the bytes of a column once dictionaries are written out."""
    if not pa.types.is_dictionary(column.type):
        return int(column.nbytes)
    size = 0
    for chunk in column.chunks:
        n_of_value = np.bincount(chunk.indices.drop_null().to_numpy(), minlength=len(chunk.dictionary))
        values = chunk.dictionary
        lengths = pc.binary_length(values).fill_null(0) if is_text(values.type) else np.full(len(values), 8)
        size += int(n_of_value @ np.asarray(lengths, np.int64)) + _OFFSET * len(chunk)
    return size


def _write_out(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if not pa.types.is_dictionary(column.type):
        return column if column.type == kind else column.cast(kind)
    pieces = []
    for chunk in column.chunks:
        n_pieces = _written_size(pa.chunked_array([chunk])) // _WIDEST_PIECE + 1
        n_rows = max(-(-len(chunk) // n_pieces), 1)
        pieces += [chunk.slice(start, n_rows).dictionary_decode().cast(kind) for start in range(0, len(chunk), n_rows)]
    return pa.chunked_array(pieces, kind)


def is_text(kind: pa.DataType) -> bool:
    """Whether a column, or a dictionary's values, hold strings or bytes."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    tests = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_binary_view,
    )
    return any(test(kind) for test in tests)


def _what(groups: Sequence[int]) -> str:
    return f"row group {groups[0]}" if len(groups) == 1 else f"row groups {groups[0]} to {groups[-1]}"
