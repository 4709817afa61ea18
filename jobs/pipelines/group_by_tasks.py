"""group_by's tasks: each works on one partition, or merges a few partial results, on a worker.

A partial result is an Arrow table with a row for each group: the columns of `by`, `n_rows`, and for each aggregated
column what can be merged: count, sum, sum of squares about the mean, least and greatest. Values are seen from one of
the column's own: sums of numbers far from zero keep the digits in which those differ, and the way rows are cut shows in
no digit that counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jobs.artifacts import put_table
from jobs.errors import InputError
from jobs.readers.table_profile import numbers
from jobs.readers.tables import Part, read_arrow

_N = "n_rows"
_SUMS = ("sum", "squares")
# How large a value may be: what follows for a group from many such values is still a number.
_LARGEST = {"std": 1e150, "mean": 1e300, "sum": 1e300}
# Values of which the origin is the median, which no outlier is.
_N_FOR_ORIGIN = 1_000


class Size(NamedTuple):
    """What the runner needs to know of a partial result: groups, bytes, rows in it, rows left out, infinite values."""

    n_groups: int
    n_bytes: int
    n_rows: int
    n_dropped: int
    n_infinite: int
    # Of each column of `by`: whether its texts are whole numbers, written as such.
    is_whole: tuple[bool, ...]


def origins(part: Part, aggregates: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Return the median of the first finite values of each column of values in a part; 0 where there is none."""
    valued = _valued(aggregates)
    table = read_arrow(part, valued, valued)
    firsts = {name: pc.drop_null(_finite(part, name, table.column(name))[0])[:_N_FOR_ORIGIN] for name in valued}
    return {name: sorted(first.to_pylist())[len(first) // 2] if len(first) else 0.0 for name, first in firsts.items()}


def partial(
    part: Part, by: Sequence[str], aggregates: Mapping[str, Sequence[str]], missing: str, origin: Mapping[str, float]
) -> tuple[pa.Table, Size]:
    """Group the rows of one part."""
    valued = _valued(aggregates)
    table = read_arrow(part, [*by, *aggregates], valued)
    keys = {name: _key(table.column(name)) for name in by}
    n_read, n_infinite = table.num_rows, 0
    columns: dict[str, Any] = dict(keys)
    for name in aggregates:
        if name in valued:
            values, n = _finite(part, name, table.column(name))
            n_infinite += n
            _check_sizes(part, name, values, aggregates[name])
            columns[_seen(name)] = pc.subtract(values, origin[name])
        else:
            values = pc.if_else(pc.is_valid(_joined(table.column(name))), 1.0, None)
        columns[name] = values
    rows = pa.table(columns)
    if missing == "drop":
        for name in by:
            rows = rows.filter(pc.is_valid(rows.column(name)))
    of = [(name, "count") for name in aggregates]
    of += [(name, function) for name in valued for function in ("min", "max")]
    of += [(_seen(name), function) for name in valued for function in ("sum", "variance")]
    grouped = rows.group_by(list(by), use_threads=False).aggregate([([], "count_all"), *of])
    found = {name: grouped.column(name) for name in by} | {_N: grouped.column("count_all")}
    for name in aggregates:
        found[_state(name, "count")] = grouped.column(f"{name}_count")
    for name in valued:
        found |= {_state(name, each): grouped.column(f"{name}_{each}") for each in ("min", "max")}
        sums, variances = (pc.fill_null(grouped.column(f"{_seen(name)}_{each}"), 0.0) for each in ("sum", "variance"))
        found[_state(name, "sum")] = sums
        found[_state(name, "squares")] = pc.multiply(variances, found[_state(name, "count")])
    table = pa.table(found).combine_chunks()
    return table, _size(table, by, n_read - rows.num_rows, n_infinite, [_is_whole(keys[name]) for name in by])


def merged(parts: Sequence[tuple[pa.Table, Size]], by: Sequence[str]) -> tuple[pa.Table, Size]:
    """Merge partial results."""
    sizes = [size for _, size in parts]
    try:
        table = pa.concat_tables([table for table, _ in parts], promote_options="permissive").combine_chunks()
    except pa.ArrowException as error:
        raise InputError(
            f"params.by: a column is of one type here and of another there ({error}); leave it out"
        ) from error
    codes, firsts = _codes(table, by)
    n = len(firsts)
    found: dict[str, Any] = {name: _joined(table.column(name)).take(pa.array(firsts)) for name in by}
    found[_N] = pa.array(_sums(codes, table.column(_N), n).astype(np.int64))
    for name in _having(table, "count"):
        found[_state(name, "count")] = pa.array(_sums(codes, table.column(_state(name, "count")), n).astype(np.int64))
    for name in _having(table, "sum"):
        counts, sums = (table.column(_state(name, each)).to_numpy() for each in ("count", "sum"))
        n_all, sum_all = (np.bincount(codes, weights=each, minlength=n) for each in (counts, sums))
        # Chan, Golub and LeVeque 1979: what the parts' means differ by from the mean of all of them.
        gaps = sums / np.maximum(counts, 1) - (sum_all / np.maximum(n_all, 1))[codes]
        squares = table.column(_state(name, "squares")).to_numpy() + counts * gaps * gaps
        found[_state(name, "sum")] = pa.array(sum_all)
        found[_state(name, "min")] = _extremes(codes, table.column(_state(name, "min")), n, np.minimum, np.inf)
        found[_state(name, "max")] = _extremes(codes, table.column(_state(name, "max")), n, np.maximum, -np.inf)
        found[_state(name, "squares")] = pa.array(np.bincount(codes, weights=squares, minlength=n))
    whole = [all(flags) for flags in zip(*(size.is_whole for size in sizes), strict=True)]
    result = pa.table(found)
    return result, _size(
        result, by, sum(size.n_dropped for size in sizes), sum(size.n_infinite for size in sizes), whole
    )


def cut(part: tuple[pa.Table, Size], by: Sequence[str], n: int) -> list[tuple[pa.Table, Size]]:
    """Cut a partial result into n by a hash of the group: the same group always goes to the same place."""
    table, size = part
    hashed = np.zeros(table.num_rows, dtype=np.uint64)
    for name in by:
        distinct = _joined(table.column(name)).dictionary_encode()
        values = pd.util.hash_array(np.asarray(distinct.dictionary.to_pylist(), dtype=object))
        known = np.append(values, np.uint64(0))
        with np.errstate(over="ignore"):
            hashed = hashed * np.uint64(0x9E3779B97F4A7C15) + known[_indices(distinct)]
    places = (hashed % np.uint64(n)).astype(np.int64)
    order = np.argsort(places, kind="stable")
    ends = np.cumsum(np.bincount(places, minlength=n))
    ordered = table.take(pa.array(order))
    pieces = []
    for place, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        # Rows that were left out are in none of them; they are counted once.
        n_dropped, n_infinite = (size.n_dropped, size.n_infinite) if place == 0 else (0, 0)
        # A slice would take all of the table with it when it travels.
        piece = pa.concat_tables([ordered.slice(start, end - start)]).take(pa.array(np.arange(end - start)))
        pieces.append((piece, _size(piece, by, n_dropped, n_infinite, size.is_whole)))
    return pieces


def size_of(part: tuple[pa.Table, Size]) -> Size:
    """Return what the runner needs to know."""
    return part[1]


def finished(
    part: tuple[pa.Table, Size],
    by: Sequence[str],
    aggregates: Mapping[str, Sequence[str]],
    origin: Mapping[str, float],
    is_whole: Sequence[bool],
) -> pa.Table:
    """Return the groups as users read them, sorted by their values."""
    table = part[0]
    found: dict[str, Any] = {}
    for name, whole in zip(by, is_whole, strict=True):
        column = _joined(table.column(name))
        found[name] = column.cast(pa.int64()) if whole else column
    found[_N] = table.column(_N)
    for name, functions in aggregates.items():
        found |= {f"{name}_{function}": _value(table, name, function, origin) for function in functions}
    return pa.table(found).sort_by([(name, "ascending") for name in by])


def _value(table: pa.Table, name: str, function: str, origin: Mapping[str, float]) -> Any:
    counts = table.column(_state(name, "count"))
    if function in ("count", "min", "max"):
        return table.column(_state(name, function))
    n, sums, squares = (column.to_numpy() for column in (counts, *(table.column(_state(name, each)) for each in _SUMS)))
    if function == "sum":
        return pa.array(sums + n * origin[name])
    if function == "mean":
        return _where(n > 0, origin[name] + sums / np.maximum(n, 1))
    return _where(n > 1, np.sqrt(squares / np.maximum(n - 1, 1)))


def largest(table: pa.Table, n: int) -> list[list[Any]]:
    """Return the n groups of most rows, as lists of values."""
    order = np.lexsort((np.arange(table.num_rows), -table.column(_N).to_numpy()))[:n]
    return [list(row.values()) for row in table.take(pa.array(order)).to_pylist()]


def write(table: pa.Table, url: str) -> tuple[int, str]:
    """Write groups as Parquet; return the file's size and SHA-256."""
    return put_table(url, table)


def _valued(aggregates: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the columns of which more than a count is asked."""
    return [name for name, functions in aggregates.items() if set(functions) != {"count"}]


# Names of columns of a partial result; those in files do not begin with a NUL.
def _state(name: str, of: str) -> str:
    return f"\0{of}\0{name}"


def _seen(name: str) -> str:
    return f"\0seen\0{name}"


def _having(table: pa.Table, of: str) -> list[str]:
    prefix = _state("", of)
    return [name.removeprefix(prefix) for name in table.column_names if name.startswith(prefix)]


def _size(table: pa.Table, by: Sequence[str], n_dropped: int, n_infinite: int, is_whole: Sequence[bool]) -> Size:
    n_rows = int(pc.sum(table.column(_N)).as_py() or 0)
    return Size(table.num_rows, table.nbytes, n_rows, n_dropped, n_infinite, tuple(is_whole))


def _key(column: Any) -> pa.Array:
    """Return a column as values of groups: what is no number is missing."""
    joined = _joined(column)
    return pc.if_else(pc.is_nan(joined), None, joined) if pa.types.is_floating(joined.type) else joined


def _is_whole(keys: pa.Array) -> bool:
    """Whether the column is of text in which every value is a whole number, written as Python writes it."""
    if not pa.types.is_string(keys.type):
        return False
    return all(_reads_whole(value) for value in pc.unique(keys).to_pylist() if value is not None)


def _reads_whole(text: str) -> bool:
    return len(text) <= 18 and text.lstrip("-").isdecimal() and str(int(text)) == text


def _finite(part: Part, name: str, column: Any) -> tuple[pa.Array, int]:
    """Return values as float64, missing where they are not finite, and how many are infinite."""
    joined = _joined(column)
    if pa.types.is_string(joined.type):
        values = numbers(pd.Series(joined.to_pandas(), dtype="str"))
        wrong = np.flatnonzero(np.isnan(values) & np.asarray(pc.is_valid(joined)))
        if len(wrong):
            raise InputError(
                f"{part.file.url}: column {name!r} holds text such as {joined[int(wrong[0])].as_py()!r}; "
                "params.aggregates can only count it"
            )
    else:
        values = np.asarray(joined.cast(pa.float64()).to_numpy(zero_copy_only=False))
    return pa.array(values, mask=~np.isfinite(values)), int(np.isinf(values).sum())


def _check_sizes(part: Part, name: str, values: pa.Array, functions: Sequence[str]) -> None:
    """Refuse values of which the sum or the squares would be infinite."""
    most = min((_LARGEST[function] for function in functions if function in _LARGEST), default=np.inf)
    bounds = pc.min_max(values).as_py().values()
    for value in bounds:
        if value is not None and abs(value) > most:
            raise InputError(
                f"{part.file.url}: column {name!r} has {value:g}, too large for {' and '.join(functions)}; "
                "remove such rows or divide the column by a constant"
            )


def _joined(column: Any) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _codes(table: pa.Table, by: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the number of each row's group, and the first row of each group."""
    codes = np.zeros(table.num_rows, dtype=np.int64)
    for name in by:
        distinct = _joined(table.column(name)).dictionary_encode()
        codes = codes * (len(distinct.dictionary) + 1) + _indices(distinct)
        # Numbered anew after each column, codes stay below the square of the rows.
        _, firsts, codes = np.unique(codes, return_index=True, return_inverse=True)
    return codes, firsts


def _indices(distinct: pa.DictionaryArray) -> NDArray[np.int64]:
    """Return the places in the dictionary (n,); one behind its end where there is no value."""
    return np.asarray(distinct.indices.fill_null(len(distinct.dictionary)).to_numpy(), dtype=np.int64)


def _sums(codes: NDArray[np.int64], column: Any, n: int) -> NDArray[np.float64]:
    return np.asarray(np.bincount(codes, weights=column.to_numpy(), minlength=n), dtype=np.float64)


def _extremes(codes: NDArray[np.int64], column: Any, n: int, function: Any, start: float) -> pa.Array:
    values = np.full(n, start)
    given = column.to_numpy()
    known = ~np.isnan(given)
    function.at(values, codes[known], given[known])
    return _where(np.isfinite(values), values)


def _where(is_known: NDArray[np.bool_], values: NDArray[np.float64]) -> pa.Array:
    return pa.array(values, mask=~is_known)
