"""Weights of a block's rows, checked where the block is. Called by estimators whose `fit` takes `sample_weight`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.estimators.blocks import Runner


def checked_weights(weights: Any, rows: Any) -> NDArray[np.float64]:
    """Return the weights of a block's rows as float64.

    Parameters
    ----------
    weights : array-like of shape (n,)
        As given to `fit`.
    rows : ndarray or sparse matrix of shape (n, p)
        The block that they belong to.

    Raises
    ------
    ValueError
        When there is not one weight a row, or one is negative, missing or infinite.
    """
    # A copy: compiled code then meets one kind of array, and is not compiled again for those that are read-only.
    found = np.array(weights, dtype=np.float64)
    if found.shape != (rows.shape[0],):
        raise ValueError(f"sample_weight has the shape {found.shape} for {rows.shape[0]} rows; give one weight a row.")
    if not np.isfinite(found).all():
        raise ValueError("sample_weight contains NaN or infinity; weights are finite and at least 0.")
    if (found < 0).any():
        raise ValueError(f"sample_weight has a negative value, {found.min():g}; weights are at least 0.")
    return found


def weights_of_blocks(run: Runner, weights: list[Any], rows: list[Any]) -> list[Any]:
    """Return the checked weights of each block, beside its rows; None for each where there are no weights."""
    return weights if all(each is None for each in weights) else run.map(checked_weights, weights, rows)
