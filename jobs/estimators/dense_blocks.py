"""Rows of a dense table in blocks, whatever container they came in. Called by the estimators of tables."""

from __future__ import annotations

from typing import Any, NamedTuple

import dask.array as da
import numpy as np
from dask.base import is_dask_collection
from numpy.typing import NDArray

from jobs.estimators import blocks


class Blocks(NamedTuple):
    """Blocks of rows, as arrays or futures of arrays, and the global index of each block's first row."""

    rows: list[Any]
    targets: list[Any]
    weights: list[Any]
    starts: list[int]
    n_features: int


def dense_blocks(X: Any, y: Any = None, sample_weight: Any = None) -> Blocks:
    """Cut a table into the blocks that it has.

    Parameters
    ----------
    X : array-like, dask.array or dask.dataframe of shape (n, p)
        Dask collections stay on their workers; anything else is one block here.
    y, sample_weight : array-like or dask.array of shape (n,), optional
        Cut as X is.

    Raises
    ------
    ValueError
        When the shapes do not fit each other.
    """
    if is_dask_collection(X):
        return _dask_blocks(X, y, sample_weight)
    rows = np.ascontiguousarray(_float_array(X))
    if rows.ndim != 2:
        raise ValueError(f"Expected 2D array, got {rows.ndim}D array instead; reshape your data.")
    columns = [[None] if column is None else [_column(column, len(rows))] for column in (y, sample_weight)]
    return Blocks([rows], columns[0], columns[1], [0], rows.shape[1])


def _dask_blocks(X: Any, y: Any, sample_weight: Any) -> Blocks:
    X = _dask_rows(X)
    lengths = X.chunks[0]
    # Tables come column by column, and are gone through row by row, many times.
    X = X.map_blocks(np.ascontiguousarray, dtype=X.dtype)
    rows = blocks.as_blocks(X.to_delayed().ravel().tolist())
    columns = []
    for column in (y, sample_weight):
        if column is None:
            columns.append([None] * len(rows))
            continue
        column = _dask_column(column, X.shape[0]).rechunk((lengths,))
        columns.append(blocks.as_blocks(column.to_delayed().ravel().tolist()))
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(int).tolist()
    return Blocks(rows, columns[0], columns[1], starts, int(X.shape[1]))


def _dask_array(values: Any) -> Any:
    """Return a dask.array of known chunks; where they have to be counted, what was read for it is kept."""
    if not is_dask_collection(values):
        return da.from_array(np.asarray(values), chunks="auto")
    array = values if isinstance(values, da.Array) else values.to_dask_array()
    return array.persist().compute_chunk_sizes() if np.isnan(array.shape[0]) else array


def _dask_rows(X: Any) -> Any:
    """Return a dask.array (n, p) of floats whose blocks are whole rows."""
    array = _dask_array(X)
    if array.ndim != 2:
        raise ValueError(f"Expected 2D array, got {array.ndim}D array instead; reshape your data.")
    array = array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)
    return array.rechunk({1: -1}) if array.numblocks[1] > 1 else array


def _dask_column(values: Any, n: int) -> Any:
    column = _dask_array(values)
    if column.ndim == 2 and column.shape[1] == 1:
        column = column[:, 0]
    if column.shape != (n,):
        raise ValueError(f"X has {n} rows, y or sample_weight has the shape {column.shape}")
    return column


def _column(values: Any, n: int) -> NDArray[Any]:
    column = np.asarray(values)
    if column.ndim == 2 and column.shape[1] == 1:
        column = column.ravel()
    if column.shape != (n,):
        raise ValueError(f"X has {n} rows, y or sample_weight has the shape {column.shape}")
    return column


def _float_array(X: Any) -> NDArray[Any]:
    array = np.asarray(X)
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)


def map_rows(function: Any, X: Any, n_features: int, dtype: Any, n_columns: int | None = None) -> Any:
    """Apply ``function(rows (m, n_features)) -> (m,) or (m, n_columns)`` block by block.

    Dask collections give a lazy dask.array, anything else an array.

    Raises
    ------
    ValueError
        When X has another number of columns.
    """
    if is_dask_collection(X):
        rows = _dask_rows(X)
    else:
        rows = np.ascontiguousarray(_float_array(X))
        if rows.ndim != 2:
            raise ValueError(f"Expected 2D array, got {rows.ndim}D array instead; reshape your data.")
    if rows.shape[1] != n_features:
        raise ValueError(f"X has {rows.shape[1]} features, but the model was fitted to {n_features}.")
    if not isinstance(rows, da.Array):
        return function(rows)
    if n_columns is None:
        return rows.map_blocks(function, dtype=dtype, drop_axis=1, meta=np.empty(0, dtype=dtype))
    chunks = (rows.chunks[0], (n_columns,))
    return rows.map_blocks(function, dtype=dtype, chunks=chunks, meta=np.empty((0, n_columns), dtype=dtype))
