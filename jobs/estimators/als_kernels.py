"""The hot loops of alternating least squares: one call solves all rows of one block.

Every kernel releases the GIL and runs on one thread, so blocks are the unit of parallelism. The result of a row
depends on nothing but that row and the other side's factors: it is the same in whatever block the row lies.
Kernels are compiled on first use, which takes seconds a process where `compiled.IS_CACHED` is false.
Called by `jobs.estimators.als` alone.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from jobs.estimators.compiled import IS_CACHED

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int32] | NDArray[np.int64]

# Rows of factors gathered at a time for one matrix product: bounds the memory of an item that everybody rated.
_N_GATHERED = 512
# Rows that take a conjugate-gradient step together: four matrices of 64 × 64 float64 are 128 KiB.
_N_TOGETHER = 64

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
    if n_cg_steps:
        return _cg_rows(indptr, indices, weights, other, gram, penalty, rows, n_cg_steps)
    return _exact_rows(indptr, indices, weights, other, gram, penalty, rows.shape[0])


@_compiled
def _exact_rows(
    indptr: Ints, indices: Ints, weights: Floats, other: Floats, gram: Floats, penalty: float, n_rows: int
) -> tuple[Floats, float, float]:
    rank = len(gram)
    result = np.zeros((n_rows, rank))
    normal = np.empty((rank, rank))
    squared_error, penalty_sum = 0.0, 0.0
    for row in range(n_rows):
        start, stop = indptr[row], indptr[row + 1]
        if start == stop:
            continue
        solution = result[row]
        _exact_row(indices[start:stop], weights[start:stop], other, gram, penalty, normal, solution)
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
def _cg_rows(
    indptr: Ints,
    indices: Ints,
    weights: Floats,
    other: Floats,
    gram: Floats,
    penalty: float,
    rows: Floats,
    n_steps: int,
) -> tuple[Floats, float, float]:
    """Take `n_steps` conjugate-gradient steps with each row: A x = b, A = Y'Y + penalty I + Y'(C - I)Y, b = Y'C 1.

    What all rows share, Y'Y + penalty I, is multiplied with many rows at a time, which costs a fraction of one by one.
    All is done in the type of `rows`, float64 or float32; only the objective is always a float64.
    """
    n_rows, rank = rows.shape
    zero, one = rows.dtype.type(0), rows.dtype.type(1)
    result = rows.copy()
    shared = gram.copy()
    for i in range(rank):
        shared[i, i] += rows.dtype.type(penalty)
    images, rights = np.empty((_N_TOGETHER, rank), rows.dtype), np.empty((_N_TOGETHER, rank), rows.dtype)
    residuals, directions = np.empty((_N_TOGETHER, rank), rows.dtype), np.empty((_N_TOGETHER, rank), rows.dtype)
    squares = np.empty(_N_TOGETHER, rows.dtype)
    squared_error, penalty_sum = 0.0, 0.0
    for first in range(0, n_rows, _N_TOGETHER):
        n = min(_N_TOGETHER, n_rows - first)
        np.dot(result[first : first + n], shared, images[:n])
        for row in range(n):
            start, stop = indptr[first + row], indptr[first + row + 1]
            solution, residual, right, image = result[first + row], residuals[row], rights[row], images[row]
            if start == stop:
                solution[:] = zero
                image[:] = zero
            for i in range(rank):
                residual[i] = -image[i]
                right[i] = zero
            for m in range(start, stop):
                factors, confidence = other[indices[m]], one + weights[m]
                rest = confidence - weights[m] * _product(factors, solution)
                for i in range(rank):
                    residual[i] += rest * factors[i]
                    right[i] += confidence * factors[i]
            directions[row] = residual
            squares[row] = _product(residual, residual)
        for _ in range(n_steps):
            np.dot(directions[:n], shared, images[:n])
            for row in range(n):
                if squares[row] < 1e-20:
                    continue
                solution, residual, direction, image = result[first + row], residuals[row], directions[row], images[row]
                _apply(indices, weights, indptr[first + row], indptr[first + row + 1], other, direction, image)
                step = squares[row] / _product(direction, image)
                for i in range(rank):
                    solution[i] += step * direction[i]
                    residual[i] -= step * image[i]
                square = _product(residual, residual)
                growth = square / squares[row]
                for i in range(rank):
                    direction[i] = residual[i] + growth * direction[i]
                squares[row] = square
        for row in range(n):
            # Σ c (1 - y·x)² over all columns is Σ c - 2 x·b + x·(A - penalty I) x, and A x is b less the residual.
            solution = result[first + row]
            for m in range(indptr[first + row], indptr[first + row + 1]):
                squared_error += 1.0 + weights[m]
            square = penalty * np.float64(_product(solution, solution))
            squared_error -= np.float64(_product(solution, rights[row]) + _product(solution, residuals[row])) + square
            penalty_sum += square
    return result, squared_error, penalty_sum


@_compiled
def _apply(indices: Ints, weights: Floats, start: int, stop: int, other: Floats, vector: Floats, image: Floats) -> None:
    """``image += Y'(C - I)Y vector`` of one row: by four columns, so that the vectors are read a fourth as often."""
    rank, zero = len(vector), vector.dtype.type(0)
    for m in range(start, stop - 3, 4):
        a, b, c, d = other[indices[m]], other[indices[m + 1]], other[indices[m + 2]], other[indices[m + 3]]
        first, second, third, fourth = zero, zero, zero, zero
        for i in range(rank):
            first += a[i] * vector[i]
            second += b[i] * vector[i]
            third += c[i] * vector[i]
            fourth += d[i] * vector[i]
        first *= weights[m]
        second *= weights[m + 1]
        third *= weights[m + 2]
        fourth *= weights[m + 3]
        for i in range(rank):
            image[i] += first * a[i] + second * b[i] + third * c[i] + fourth * d[i]
    for m in range(stop - (stop - start) % 4, stop):
        factors = other[indices[m]]
        score = weights[m] * _product(factors, vector)
        for i in range(rank):
            image[i] += score * factors[i]


@_compiled
def _product(a: Floats, b: Floats) -> np.floating[Any]:
    total = a.dtype.type(0)
    for i in range(len(a)):
        total += a[i] * b[i]
    return total
