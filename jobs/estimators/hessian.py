"""The whole second derivative of a linear model's loss, as sums over blocks of dense rows.

Where a model has few weights, one pass that adds up the Hessian replaces the ten or twenty passes in which conjugate
gradients would feel their way to the same Newton step. Called by `linear_classifier`.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

# Up to so many weights the Hessian is added up: 512² float64 are 2 MiB that travel from each worker in a step.
MOST_WEIGHTS = 512
# Rows taken at a time: 2,048 × 100 float64 stay in the second-level cache.
_CHUNK = 2048

Floats = NDArray[np.float64]


def hessian(xs: list[Floats], curvatures: list[Floats], has_intercept: bool, is_one_vs_rest: bool) -> Floats:
    """Return the second derivative of the loss, summed over a group of blocks.

    Parameters
    ----------
    xs : list of ndarray of shape (n, p)
        Blocks of rows.
    curvatures : list of ndarray of shape (n, k, k)
        Of each row, the second derivative of its loss by its k scores, times the row's weight.
    has_intercept : bool
        Whether a constant 1 stands behind the p columns.
    is_one_vs_rest : bool
        Whether mixed derivatives by two scores are all zero.

    Returns
    -------
    ndarray of shape (k, k, q, q)
        q is p, or p + 1 with the constant; part [i, j] is that of the weights of score i and of score j.
    """
    k, q = curvatures[0].shape[1], xs[0].shape[1] + has_intercept
    total = np.zeros((k, k, q, q))
    for x, curvature in zip(xs, curvatures, strict=True):
        for start in range(0, len(x), _CHUNK):
            rows = np.asarray(x[start : start + _CHUNK], dtype=np.float64)
            if has_intercept:
                rows = np.hstack([rows, np.ones((len(rows), 1))])
            weights = curvature[start : start + _CHUNK]
            for i in range(k):
                # The diagonal parts are positive: a product of a matrix with itself is half the work.
                root = rows * np.sqrt(np.maximum(weights[:, i, i], 0))[:, None]
                total[i, i] += root.T @ root
                for j in range(0 if is_one_vs_rest else i):
                    total[i, j] += (rows * weights[:, i, j, None]).T @ rows
    for i in range(k):
        for j in range(i):
            total[j, i] = total[i, j].T
    return total


def solved(hessian: Floats, penalty: Floats, slope: Floats) -> Floats:
    """Return the step s (q, k) for which (Hessian + diag penalty) s = −slope.

    Parameters
    ----------
    hessian : ndarray of shape (k, k, q, q)
        Of the loss, as `hessian` returns it.
    penalty : ndarray of shape (q, 1)
        Of each weight of a score.
    slope : ndarray of shape (q, k)
        Gradient of loss and penalty.
    """
    k, q = len(hessian), hessian.shape[-1]
    matrix = hessian.transpose(0, 2, 1, 3).reshape(k * q, k * q) + np.diag(np.tile(penalty[:, 0], k))
    # Without a penalty, a constant added to all intercepts changes nothing: of all solutions, take the shortest.
    values, vectors = scipy.linalg.eigh(matrix)
    is_sound = values > 10 * len(values) * np.finfo(float).eps * values[-1]
    inverse = np.where(is_sound, 1 / np.where(is_sound, values, 1.0), 0.0)
    step: Floats = vectors @ (inverse * (vectors.T @ -slope.T.ravel()))
    return step.reshape(k, q).T
