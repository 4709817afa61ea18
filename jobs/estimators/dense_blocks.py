"""Rows of a dense table in blocks, whatever container they came in. Called by the estimators of tables."""

from __future__ import annotations

from typing import Any, NamedTuple

import dask.array as da
import numpy as np
from dask.base import is_dask_collection
from numpy.typing import NDArray

from jobs.estimators import sparse_blocks


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
    X, y, sample_weight = (_dask_array(each) for each in (X, y, sample_weight))
    X = X.rechunk({1: -1}) if X.numblocks[1] > 1 else X
    lengths = X.chunks[0]
    columns = []
    for column in (y, sample_weight):
        if column is not None and column.shape[0] != X.shape[0]:
            raise ValueError(f"X has {X.shape[0]} rows, y or sample_weight has {column.shape[0]}")
        columns.append(None if column is None else column.rechunk((lengths,)).to_delayed().ravel().tolist())
    rows = sparse_blocks.as_blocks(X.to_delayed().ravel().tolist())
    futures = [[None] * len(rows) if column is None else sparse_blocks.as_blocks(column) for column in columns]
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(int).tolist()
    return Blocks(rows, futures[0], futures[1], starts, int(X.shape[1]))


def _dask_array(X: Any) -> Any:
    if X is None or not is_dask_collection(X):
        return X if X is None else da.from_array(np.asarray(X), chunks="auto")
    array = X if isinstance(X, da.Array) else X.to_dask_array(lengths=True)
    if np.isnan(array.shape[0]):
        array = array.compute_chunk_sizes()
    return array


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


def map_rows(function: Any, X: Any, n_columns: int | None, dtype: Any) -> Any:
    """Apply ``function(rows (m, p)) -> (m,) or (m, n_columns)`` block by block; the same kind of container comes back.

    Dask collections give a lazy dask.array, anything else an array.
    """
    if not is_dask_collection(X):
        return function(np.ascontiguousarray(_float_array(X)))
    array = _dask_array(X)
    array = array.rechunk({1: -1}) if array.numblocks[1] > 1 else array
    if n_columns is None:
        return array.map_blocks(function, dtype=dtype, drop_axis=1, meta=np.empty(0, dtype=dtype))
    chunks = (array.chunks[0], (n_columns,))
    return array.map_blocks(function, dtype=dtype, chunks=chunks, meta=np.empty((0, n_columns), dtype=dtype))
