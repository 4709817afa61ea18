"""The hot loops of alternating least squares: one call solves all rows of one block.

Every kernel releases the GIL and runs on one thread, so blocks are the unit of parallelism. The result of a row
depends on nothing but that row and the other side's factors: it is the same in whatever block the row lies.
Kernels are compiled on first use, which takes seconds a process where `compiled.IS_CACHED` is false.
Called by `jobs.estimators.als` alone.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from jobs.estimators.compiled import IS_CACHED

Floats = NDArray[np.float64]
Ints = NDArray[np.int32] | NDArray[np.int64]

# Rows of factors gathered at a time for one matrix product: bounds the memory of an item that everybody rated.
_N_GATHERED = 512

# Sums may be reordered into SIMD lanes; NaN and infinity keep their meaning.
_compiled = numba.njit(
    nogil=True,
    error_model="numpy",
    fastmath={"reassoc", "contract"},
    cache=IS_CACHED,
)


@_compiled
def _solve_in_place(matrix: Floats, vector: Floats) -> None:
    """Solve ``matrix @ x = vector`` by Cholesky; `vector` becomes x, the lower triangle of `matrix` is overwritten."""
    n = len(vector)
    for i in range(n):
        for j in range(i + 1):
            dot = 0.0
            for m in range(j):
                dot += matrix[i, m] * matrix[j, m]
            if i == j:
                matrix[i, i] = np.sqrt(matrix[i, i] - dot)
            else:
                matrix[i, j] = (matrix[i, j] - dot) / matrix[j, j]
    for i in range(n):
        dot = 0.0
        for m in range(i):
            dot += matrix[i, m] * vector[m]
        vector[i] = (vector[i] - dot) / matrix[i, i]
    for i in range(n - 1, -1, -1):
        vector[i] /= matrix[i, i]
        for m in range(i):
            vector[m] -= matrix[i, m] * vector[i]


@_compiled
def explicit_rows(
    indptr: Ints, indices: Ints, ratings: Floats, other: Floats, mean: float, penalty: float, bias_penalty: float
) -> tuple[Floats, float, float]:
    """Solve every row's ridge regression on the factors and biases of the other side.

    Parameters
    ----------
    indptr, indices, ratings
        CSR arrays of the block, (n_rows, n_others).
    other : ndarray of shape (n_others, rank + 1)
        Factors of the other side; the last column is the bias.
    mean : float
        Global mean of the ratings.
    penalty, bias_penalty : float
        L2 weight of the factors and of the bias.

    Returns
    -------
    rows : ndarray of shape (n_rows, rank + 1)
        Factors and bias; zeros for a row without ratings.
    squared_error, penalty_sum : float
        The two parts of the objective that belong to these rows.
    """
    n_rows, width = len(indptr) - 1, other.shape[1]
    rank = width - 1
    rows = np.zeros((n_rows, width))
    design = np.empty((_N_GATHERED, width))
    target = np.empty(_N_GATHERED)
    normal = np.empty((width, width))
    squared_error, penalty_sum = 0.0, 0.0
    for row in range(n_rows):
        start, stop = indptr[row], indptr[row + 1]
        if start == stop:
            continue
        normal[:] = 0.0
        solution = rows[row]
        square = 0.0
        for chunk in range(start, stop, _N_GATHERED):
            n = min(_N_GATHERED, stop - chunk)
            for m in range(n):
                column = indices[chunk + m]
                design[m] = other[column]
                design[m, rank] = 1.0
                target[m] = ratings[chunk + m] - mean - other[column, rank]
                square += target[m] * target[m]
            normal += np.dot(design[:n].T, design[:n])
            solution += np.dot(target[:n], design[:n])
        right = solution.copy()
        for m in range(rank):
            normal[m, m] += penalty
        normal[rank, rank] += bias_penalty
        _solve_in_place(normal, solution)
        # At the minimum |t - Gx|² + x'Px = t't - x'G't, so the residuals need no second pass.
        row_penalty, fitted = 0.0, 0.0
        for m in range(width):
            row_penalty += (penalty if m < rank else bias_penalty) * solution[m] * solution[m]
            fitted += solution[m] * right[m]
        squared_error += square - fitted - row_penalty
        penalty_sum += row_penalty
    return rows, squared_error, penalty_sum


@_compiled
def implicit_rows(
    indptr: Ints,
    indices: Ints,
    weights: Floats,
    other: Floats,
    gram: Floats,
    penalty: float,
    rows: Floats,
    n_cg_steps: int,
) -> tuple[Floats, float, float]:
    """Solve every row's weighted ridge regression against *all* columns (Hu, Koren & Volinsky 2008, eq. 4).

    Parameters
    ----------
    indptr, indices, weights
        CSR arrays of the block; a weight is the confidence beyond 1 of an observed pair, ``alpha * value``.
    other : ndarray of shape (n_others, rank)
        Factors of the other side.
    gram : ndarray of shape (rank, rank)
        ``other.T @ other``.
    penalty : float
        L2 weight of the factors.
    rows : ndarray of shape (n_rows, rank)
        This side's factors of the iteration before; not written to.
    n_cg_steps : int
        Conjugate-gradient steps from `rows` (Takács, Pilászy & Tikk 2011); 0 solves exactly, by Cholesky.

    Returns
    -------
    rows : ndarray of shape (n_rows, rank)
        The new factors; zeros for a row without interactions.
    squared_error, penalty_sum : float
        The two parts of the objective that belong to these rows.
    """
    n_rows, rank = rows.shape
    result = np.zeros((n_rows, rank))
    normal = np.empty((rank, rank))
    residual, direction, image = np.empty(rank), np.empty(rank), np.empty(rank)
    squared_error, penalty_sum = 0.0, 0.0
    for row in range(n_rows):
        start, stop = indptr[row], indptr[row + 1]
        if start == stop:
            continue
        solution = result[row]
        if n_cg_steps == 0:
            _exact_row(indices[start:stop], weights[start:stop], other, gram, penalty, normal, solution)
        else:
            solution[:] = rows[row]
            _cg_row(
                indices[start:stop],
                weights[start:stop],
                other,
                gram,
                penalty,
                solution,
                n_cg_steps,
                residual,
                direction,
                image,
            )
        error, square = 0.0, 0.0
        for i in range(rank):
            product = 0.0
            for j in range(rank):
                product += gram[i, j] * solution[j]
            error += product * solution[i]
            square += solution[i] * solution[i]
        for m in range(start, stop):
            score = 0.0
            for i in range(rank):
                score += other[indices[m], i] * solution[i]
            error += (1.0 + weights[m]) * (1.0 - score) ** 2 - score * score
        squared_error += error
        penalty_sum += penalty * square
    return result, squared_error, penalty_sum


@_compiled
def _exact_row(
    columns: Ints, weights: Floats, other: Floats, gram: Floats, penalty: float, normal: Floats, solution: Floats
) -> None:
    rank = len(solution)
    normal[:] = gram
    for i in range(rank):
        normal[i, i] += penalty
    for chunk in range(0, len(columns), _N_GATHERED):
        n = min(_N_GATHERED, len(columns) - chunk)
        design, weighted = np.empty((n, rank)), np.empty((n, rank))
        for m in range(n):
            weight = weights[chunk + m]
            for i in range(rank):
                value = other[columns[chunk + m], i]
                design[m, i] = value
                weighted[m, i] = weight * value
                solution[i] += (1.0 + weight) * value
        normal += np.dot(weighted.T, design)
    _solve_in_place(normal, solution)


@_compiled
def _apply(
    columns: Ints, weights: Floats, other: Floats, gram: Floats, penalty: float, vector: Floats, image: Floats
) -> None:
    """``image = (Y'Y + Y'(C - I)Y + penalty I) vector``, without the matrix: O(n_columns · rank + rank²)."""
    rank = len(vector)
    for i in range(rank):
        total = penalty * vector[i]
        for j in range(rank):
            total += gram[i, j] * vector[j]
        image[i] = total
    for m in range(len(columns)):
        factors = other[columns[m]]
        score = 0.0
        for i in range(rank):
            score += factors[i] * vector[i]
        score *= weights[m]
        for i in range(rank):
            image[i] += score * factors[i]


@_compiled
def _cg_row(
    columns: Ints,
    weights: Floats,
    other: Floats,
    gram: Floats,
    penalty: float,
    solution: Floats,
    n_steps: int,
    residual: Floats,
    direction: Floats,
    image: Floats,
) -> None:
    rank = len(solution)
    _apply(columns, weights, other, gram, penalty, solution, image)
    for i in range(rank):
        residual[i] = -image[i]
    for m in range(len(columns)):
        for i in range(rank):
            residual[i] += (1.0 + weights[m]) * other[columns[m], i]
    direction[:] = residual
    square = np.dot(residual, residual)
    for _ in range(n_steps):
        if square < 1e-20:
            break
        _apply(columns, weights, other, gram, penalty, direction, image)
        step = square / np.dot(direction, image)
        before = square
        square = 0.0
        for i in range(rank):
            solution[i] += step * direction[i]
            residual[i] -= step * image[i]
            square += residual[i] * residual[i]
        for i in range(rank):
            direction[i] = residual[i] + square / before * direction[i]
