"""The half-steps of alternating least squares and what goes round between them, here or on workers.

A half-step solves the rows of one block, or is those of a whole side joined. Called by `jobs.estimators.als` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from jobs.estimators.als_blocks import Submit
from jobs.estimators.als_kernels import explicit_rows, implicit_rows

Floats = NDArray[np.floating[Any]]
Listener = Callable[[int, int, float], None]


class HalfStep(NamedTuple):
    """The new rows of a block or of a whole side, their Gram matrix, and their part of the objective."""

    rows: Floats
    gram: Floats
    squared_error: float
    penalty: float


class Start(NamedTuple):
    """What the iterations start from, and how many there are."""

    n_users: int
    n_items: int
    rank: int
    n_biases: int
    seed: int
    n_iterations: int
    dtype: Any


class Alternated(NamedTuple):
    """The last half-steps of all users and of all items, a copy for each worker, and the objectives of iterations."""

    users: list[Any]
    items: list[Any]
    objectives: list[float]


Step = Callable[[Any, HalfStep | None, HalfStep], HalfStep]


def alternated(
    submit: Submit,
    user_blocks: Sequence[Any],
    item_blocks: Sequence[Any],
    step: Step,
    start: Start,
    listen: Listener | None = None,
) -> Alternated:
    """Solve users, then items, as often as `start` says."""
    items = submit.copies(first_step, start.n_items, start.rank, start.n_biases, start.seed, start.dtype)
    users: list[Any] = []
    objectives: list[float] = []
    for iteration in range(start.n_iterations):
        users = _half(submit, user_blocks, step, users, items, start.n_users)
        items = _half(submit, item_blocks, step, items if iteration else [], users, start.n_items)
        objectives += submit.results([submit(_objective, users[0], items[0])])
        if listen is not None:
            listen(iteration + 1, start.n_iterations, objectives[-1])
    return Alternated(users, items, objectives)


def only_copy(found: Alternated, side: str) -> HalfStep:
    """The half-step of a side, "users" or "items", where everything was done in one place."""
    (copy,) = getattr(found, side)
    return copy


def _half(
    submit: Submit, blocks: Sequence[Any], step: Step, before: list[Any], others: list[Any], n_rows: int
) -> list[Any]:
    """Solve one side's blocks, and have each worker join them: what it has of them besides can go."""
    solved = [
        submit(
            _block_step,
            step,
            block,
            submit.nearest(before, block) if before else None,
            (b, len(blocks)),
            submit.nearest(others, block),
            near=block,
        )
        for b, block in enumerate(blocks)
    ]
    return submit.copies(joined, solved, n_rows)


def _block_step(step: Step, block: Any, before: HalfStep | None, place: tuple[int, int], other: HalfStep) -> HalfStep:
    return step(block, None if before is None else before._replace(rows=_of_block(before, place)), other)


def _of_block(side: HalfStep, place: tuple[int, int]) -> Floats:
    """The rows of block b of n in those of a whole side."""
    b, n_blocks = place
    return side.rows[b::n_blocks]


def first_step(n_rows: int, rank: int, n_biases: int, seed: int, dtype: Any = np.float64) -> HalfStep:
    """Normal starting factors of size 0.1, each a function of seed, row and column (counter-based, Box–Muller)."""
    counters = (np.arange(n_rows, dtype=np.uint64)[:, None] << np.uint64(20)) + np.arange(2 * rank, dtype=np.uint64)
    salt = pd.util.hash_array(np.array([seed], dtype=np.uint64) + np.uint64(1))[0]
    uniforms = (pd.util.hash_array(counters.ravel() ^ salt) >> np.uint64(11)).reshape(counters.shape) * 2.0**-53
    normals = np.sqrt(-2.0 * np.log1p(-uniforms[:, :rank])) * np.cos(2.0 * np.pi * uniforms[:, rank:])
    rows = np.hstack([0.1 * normals, np.zeros((n_rows, n_biases))]).astype(dtype, copy=False)
    return HalfStep(rows, rows.T @ rows, 0.0, 0.0)


def explicit_step(
    block: Any, old: HalfStep | None, other: HalfStep, *, mean: float, penalty: float, bias_penalty: float
) -> HalfStep:
    """Solve one block of ratings; `old` plays no part, the solution is exact."""
    rows, squared_error, penalty_sum = explicit_rows(
        *_csr(block, np.float64), _fixed(other.rows), mean, penalty, bias_penalty
    )
    return HalfStep(rows, np.zeros((0, 0)), squared_error, penalty_sum)


def implicit_step(
    block: Any, old: HalfStep | None, other: HalfStep, *, alpha: float, penalty: float, n_cg_steps: int
) -> HalfStep:
    """Solve one block of counts, from its rows of the iteration before, in the type of the factors.

    Cholesky is always of float64: float32 is good enough for steps that the next iteration corrects.
    """
    dtype = other.rows.dtype if n_cg_steps else np.dtype(np.float64)
    start = np.zeros((block.shape[0], other.rows.shape[1])) if old is None else old.rows
    indptr, indices, values = _csr(block, dtype)
    with np.errstate(over="ignore"):  # the fit reports an objective that is not finite
        weights = alpha * values
    rows, squared_error, penalty_sum = implicit_rows(
        indptr,
        indices,
        _fixed(weights),
        _fixed(other.rows.astype(dtype, copy=False)),
        _fixed(other.gram.astype(dtype, copy=False)),
        penalty,
        _fixed(start.astype(dtype, copy=False)),
        n_cg_steps,
    )
    with np.errstate(over="ignore", invalid="ignore"):
        rows = rows.astype(other.rows.dtype, copy=False)
        return HalfStep(rows, rows.T @ rows, squared_error, penalty_sum)


def joined(steps: Sequence[HalfStep], n_rows: int) -> HalfStep:
    """Join the blocks of one side; this is what the other side's blocks get."""
    return HalfStep(
        interleaved([step.rows for step in steps], n_rows),
        sum((step.gram for step in steps[1:]), steps[0].gram),
        sum(step.squared_error for step in steps),
        sum(step.penalty for step in steps),
    )


def interleaved(blocks: Sequence[Floats], n_rows: int) -> Floats:
    """Put the rows of a side's blocks in their order."""
    whole = np.empty((n_rows, blocks[0].shape[1]), blocks[0].dtype)
    for b, block in enumerate(blocks):
        whole[b :: len(blocks)] = block
    return whole


def _objective(users: HalfStep, items: HalfStep) -> float:
    """The objective after the items' half-step, whose squared error is that of the whole."""
    return items.squared_error + items.penalty + users.penalty


def user_vectors(step: HalfStep, rank: int, place: tuple[int, int] = (0, 1)) -> Floats:
    """Factors of block b of n; with biases, (p, b, 1) against the items' (q, 1, b)."""
    rows = _of_block(step, place)
    biases = rows[:, rank:]
    return np.hstack([rows[:, :rank], biases, np.ones_like(biases)])


def item_vectors(step: HalfStep, rank: int) -> Floats:
    """Factors; with biases, (q, 1, b) against the users' (p, b, 1)."""
    biases = step.rows[:, rank:]
    return np.hstack([step.rows[:, :rank], np.ones_like(biases), biases])


def _csr(block: Any, dtype: Any) -> tuple[Any, Any, Any]:
    return (
        _fixed(block.indptr.astype(np.int64, copy=False)),
        _fixed(block.indices.astype(np.int32, copy=False)),
        _fixed(block.data.astype(dtype, copy=False)),
    )


def _fixed(array: Any) -> Any:
    """Return a read-only view: what came over the network is one already, and numba compiles each kind anew."""
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view
