"""kmeans's tasks: each works on one partition's rows, on a worker."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.estimators.kmeans_kernels import near, nearest
from jobs.randomness import uniform

Floats = NDArray[np.float64]

_SILHOUETTE_DRAW = 2


def counts_and_sample(
    X: Floats, rows: NDArray[np.int64], centres: Floats, seed: int, share: float
) -> tuple[NDArray[np.int64], Floats]:
    """Return the rows of each cluster (k,), and a share of the rows that depends on their numbers alone."""
    counts = np.bincount(nearest(X, centres), minlength=len(centres))
    return counts, X[uniform(seed, _SILHOUETTE_DRAW, rows) < share]


def assignments(X: Floats, y: Floats, centres: Floats) -> dict[str, Any]:
    """Columns of each row's cluster and its distance from the centre."""
    found = near(X, centres)
    return {"cluster": found.labels, "distance": np.sqrt(found.squares)}
