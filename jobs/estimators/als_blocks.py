"""A sparse user × item matrix in blocks, here or on Dask workers, and how functions are sent to the blocks.

Of n blocks, block b holds rows b, b + n, b + 2n, …: balanced without knowing the rows. Called by `jobs.estimators.als`
and by the recommender pipeline.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse

from jobs import sharing


def block_size(n_rows: int, block: int, n_blocks: int) -> int:
    """Return how many of `n_rows` rows lie in block `block` of `n_blocks`."""
    return len(range(block, n_rows, n_blocks))


@dataclass(frozen=True)
class InteractionBlocks:
    """A sparse user × item matrix in both orientations, cut into blocks of rows.

    Attributes
    ----------
    by_user : sequence of csr_matrix or Future
        Block b has the rows of users b, b + n, …: (n_users of the block, n_items).
    by_item : sequence of csr_matrix or Future
        The same of the transpose: (n_items of the block, n_users).
    n_users, n_items : int
        Shape of the whole matrix.
    """

    by_user: Sequence[Any]
    by_item: Sequence[Any]
    n_users: int
    n_items: int

    @classmethod
    def of(cls, matrix: Any, n_blocks: int = 1) -> InteractionBlocks:
        """Cut a SciPy sparse matrix in memory."""
        matrix = scipy.sparse.csr_matrix(matrix)
        by_user = [matrix[block::n_blocks] for block in range(n_blocks)]
        return cls.from_user_blocks(by_user, *matrix.shape)

    @classmethod
    @sharing.release_on_error()
    def from_user_blocks(
        cls, by_user: Sequence[Any], n_users: int, n_items: int, client: Any = None
    ) -> InteractionBlocks:
        """Make the transpose by one shuffle of n_blocks² pieces; with a `client`, blocks are futures and stay there."""
        submit = Submit(client)
        n_blocks = len(by_user)
        pieces = [submit(_column_pieces, block, b, n_blocks, near=block) for b, block in enumerate(by_user)]
        by_item = [
            submit(_stacked, [submit(operator.getitem, piece, c) for piece in pieces], c, n_users, n_items)
            for c in range(n_blocks)
        ]
        return cls(by_user, by_item, n_users, n_items)


class Summary(NamedTuple):
    """What a block's stored values tell: how many, their sum and bounds, whether all are finite, and their type."""

    n: int
    total: float
    low: float
    high: float
    is_finite: bool
    dtype: Any


class Submit:
    """Calls functions here, or on the workers of a client: near the block that they are about."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self._where: dict[str, Sequence[str]] = {}
        self._places: list[str | None] = [None]

    def __call__(self, function: Callable[..., Any], *args: Any, near: Any = None) -> Any:
        """Call ``function(*args)``, or submit it to the worker that has the future `near`."""
        if self.client is None:
            return function(*args)
        return self._submitted(self._where.get(near.key) if near is not None else None, function, args)

    def copies(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Have each worker that has blocks call ``function(*args)`` for itself: one value a worker, all the same.

        Parts that all need are quicker to fetch for each of them than to join on one and send from there.
        """
        if self.client is None:
            return [function(*args)]
        return [self._submitted([place] if place else None, function, args) for place in self._places]

    def nearest(self, copies: Sequence[Any], near: Any) -> Any:
        """Return that one of the copies which lies where the future `near` does."""
        where = self._where.get(near.key) if self.client is not None else None
        return copies[self._places.index(where[0]) if where else 0]

    def locate(self, blocks: Sequence[Any]) -> None:
        """Remember where the blocks are."""
        if self.client is not None:
            self._where = dict(self.client.who_has(list(blocks)))
            self._places = [*sorted({where[0] for where in self._where.values() if where})] or [None]

    def _submitted(self, where: Sequence[str] | None, function: Callable[..., Any], args: Sequence[Any]) -> Any:
        # Only a wish: when that worker is gone, another one makes the block again.
        options = {"workers": where, "allow_other_workers": True} if where else {}
        future = self.client.submit(function, *args, pure=False, **options)
        sharing.note([future])
        return future

    def results(self, values: Sequence[Any]) -> list[Any]:
        """Return values, fetched if they are futures."""
        return list(values) if self.client is None else list(self.client.gather(list(values)))


def summary(block: Any) -> Summary:
    """Summarise the stored values of a sparse block."""
    values = block.data
    if not len(values):
        return Summary(0, 0.0, np.inf, -np.inf, True, values.dtype)
    return Summary(
        len(values),
        float(values.sum(dtype=np.float64)),
        float(values.min()),
        float(values.max()),
        bool(np.isfinite(values).all()),
        values.dtype,
    )


def _column_pieces(block: Any, b: int, n_blocks: int) -> list[tuple[Any, Any, Any]]:
    """Cut a block of users by the block of the item: (row in the item's block, user, value) of each."""
    block = scipy.sparse.coo_matrix(block)
    users, items = block.row * n_blocks + b, block.col
    cut = [np.flatnonzero(items % n_blocks == c) for c in range(n_blocks)]
    return [(items[at] // n_blocks, users[at], block.data[at]) for at in cut]


def _stacked(pieces: list[tuple[Any, Any, Any]], c: int, n_users: int, n_items: int) -> Any:
    """Put the pieces of one block of items together: csr_matrix (n_items of the block, n_users), columns sorted."""
    rows, columns, values = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    shape = (block_size(n_items, c, len(pieces)), n_users)
    matrix = scipy.sparse.csr_matrix((values, (rows, columns)), shape=shape)
    matrix.sort_indices()
    return matrix
