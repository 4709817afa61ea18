"""Tells Dask how many bytes a task's result takes where Dask does not know: SciPy's sparse arrays, and dataclasses.

Dask counts 56 bytes for either, however large, and then neither spills them in time nor sees that moving them costs
more than waiting. Loaded by dask.sizeof in every process, by the entry point in pyproject.toml.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any


def register(sizeof: Any) -> None:
    """Add the sizes to Dask's dispatch."""

    @sizeof.register(object)
    def _of_object(value: Any) -> int:
        """Return a dataclass with its fields; of anything else what Dask returns, the value alone."""
        size = sys.getsizeof(value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            size += sum(sizeof(getattr(value, field.name)) for field in dataclasses.fields(value))
        return int(size)

    @sizeof.register_lazy("scipy")
    def _register_scipy() -> None:
        from scipy import sparse

        def of_sparse(value: Any) -> int:
            return int(sys.getsizeof(value) + sum(sizeof(part) for part in vars(value).values()))

        # Dask's own function for matrices, which this one takes the place of, comes with the same lazy registration.
        for kind in (sparse.spmatrix, sparse.sparray):
            sizeof.register(kind, of_sparse)
