"""Tables as estimators are given them: checked, and cut into blocks, whatever container they came in.

Arrays, data frames and sparse matrices go through scikit-learn's own checks, with its messages; Dask collections stay
on their workers. Called by the estimators of tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import dask.array as da
import numpy as np
from dask.base import is_dask_collection
from distributed import futures_of
from numpy.typing import NDArray
from scipy import sparse
from sklearn.utils import get_tags
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, validate_data

from jobs import sharing
from jobs.estimators import blocks

_FLOATS = (np.float64, np.float32)


class Blocks(NamedTuple):
    """Blocks of rows, as arrays or futures of arrays, and the global index of each block's first row."""

    rows: list[Any]
    targets: list[Any]
    weights: list[Any]
    starts: list[int]
    n_features: int


def checked_blocks(estimator: Any, X: Any, y: Any = None, sample_weight: Any = None) -> Blocks:
    """Check a table, keep its columns' number and names in the estimator, and cut it into the blocks that it has.

    Parameters
    ----------
    estimator : BaseEstimator
        What is fitted; its tags say what it takes.
    X : array-like, data frame, sparse matrix, dask.array or dask.dataframe of shape (n, p), or a list of blocks
        Dask collections stay on their workers, and so do blocks that are futures; anything else is one block here.
    y, sample_weight : array-like, dask.array or dask.dataframe.Series of shape (n,), or lists, optional
        Cut as X is.

    Raises
    ------
    ValueError
        When the shapes do not fit each other, or values are of a kind that the estimator does not take.
    """
    tags = get_tags(estimator)
    if tags.target_tags.required and y is None:
        raise ValueError(f"{type(estimator).__name__} requires y to be passed, but the target y is None.")
    if is_dask_collection(X) or blocks.is_cut(X):
        cut = (_dask_blocks if is_dask_collection(X) else _listed_blocks)(X, y, sample_weight)
        keep_columns(estimator, X, cut.n_features)
        return cut
    settings: dict[str, Any] = {"dtype": _FLOATS, "accept_sparse": "csr" if tags.input_tags.sparse else False}
    if y is None:
        rows = validate_data(estimator, X, **settings)
    else:
        rows, y = validate_data(estimator, X, y, y_numeric=tags.estimator_type == "regressor", **settings)
    if tags.estimator_type == "classifier":
        check_classification_targets(y)
    if sample_weight is not None:
        sample_weight = _check_sample_weight(sample_weight, rows, dtype=np.float64)
    return Blocks([_by_row(rows)], [y], [sample_weight], [0], rows.shape[1])


def _listed_blocks(X: Any, y: Any, sample_weight: Any) -> Blocks:
    rows = blocks.as_blocks(X)
    run = blocks.runner(rows)
    shapes = run.gather(run.map(np.shape, rows))
    lengths, widths = [shape[0] for shape in shapes], {shape[1] for shape in shapes}
    if len(widths) != 1:
        raise ValueError(f"X: blocks of {', '.join(map(str, sorted(widths)))} columns; all must have the same")
    columns = []
    for name, column in (("y", y), ("sample_weight", sample_weight)):
        parts = [None] * len(rows) if column is None else blocks.as_blocks(column)
        if column is not None and [n for (n,) in run.gather(run.map(np.shape, parts))] != lengths:
            raise ValueError(f"{name}: its blocks are not as long as those of X; cut both alike")
        columns.append(parts)
    return Blocks(rows, columns[0], columns[1], _starts(lengths), widths.pop())


def _starts(lengths: Sequence[int]) -> list[int]:
    return np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(int).tolist()


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
    return Blocks(rows, columns[0], columns[1], _starts(lengths), int(X.shape[1]))


def _dask_array(values: Any) -> Any:
    """Return a dask.array of known chunks; where they have to be counted, what was read for it is kept."""
    if not is_dask_collection(values):
        return da.from_array(np.asarray(values), chunks="auto")
    array = values if isinstance(values, da.Array) else values.to_dask_array()
    if not np.isnan(array.shape[0]):
        return array
    array = array.persist()
    sharing.note(futures_of(array))
    return array.compute_chunk_sizes()


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


def _by_row(rows: Any) -> Any:
    return rows if sparse.issparse(rows) else np.ascontiguousarray(rows)


def _names(X: Any) -> NDArray[Any] | None:
    """Return the names of a Dask data frame's columns where all are text, as scikit-learn does."""
    names = list(getattr(X, "columns", ()))
    return np.asarray(names, dtype=object) if names and all(isinstance(name, str) for name in names) else None


def keep_columns(estimator: Any, X: Any, n_features: int) -> None:
    """Keep the number of columns in the estimator, and their names where X has any; those of an earlier fit go."""
    estimator.n_features_in_ = n_features
    names = _names(X)
    if names is not None:
        estimator.feature_names_in_ = names
    elif hasattr(estimator, "feature_names_in_"):
        del estimator.feature_names_in_


def _check_columns(estimator: Any, X: Any, n_features: int) -> None:
    """Raise what scikit-learn raises where columns are others than those of the fit."""
    name = type(estimator).__name__
    if n_features != estimator.n_features_in_:
        raise ValueError(
            f"X has {n_features} features, but {name} is expecting {estimator.n_features_in_} features as input."
        )
    names, fitted = _names(X), getattr(estimator, "feature_names_in_", None)
    if names is not None and fitted is not None and names.tolist() != fitted.tolist():
        found, known = next(pair for pair in zip(names, fitted, strict=True) if pair[0] != pair[1])
        raise ValueError(
            f"The feature names should match those that were passed during fit: {found!r} is not {known!r}."
        )


def map_rows(estimator: Any, function: Any, X: Any, dtype: Any, n_columns: int | None = None) -> Any:
    """Apply ``function(rows (m, p)) -> (m,) or (m, n_columns)`` of a fitted estimator block by block.

    Dask collections give a lazy dask.array, a list of blocks a list, anything else an array.

    Raises
    ------
    ValueError
        When X has other columns than those of the fit, or values that the estimator does not take.
    """
    if blocks.is_cut(X):
        rows = blocks.as_blocks(X)
        return blocks.runner(rows).map(function, rows)
    if not is_dask_collection(X):
        accepted = "csr" if get_tags(estimator).input_tags.sparse else False
        return function(_by_row(validate_data(estimator, X, dtype=_FLOATS, accept_sparse=accepted, reset=False)))
    rows = _dask_rows(X)
    _check_columns(estimator, X, int(rows.shape[1]))
    if n_columns is None:
        return rows.map_blocks(function, dtype=dtype, drop_axis=1, meta=np.empty(0, dtype=dtype))
    chunks = (rows.chunks[0], (n_columns,))
    return rows.map_blocks(function, dtype=dtype, chunks=chunks, meta=np.empty((0, n_columns), dtype=dtype))
