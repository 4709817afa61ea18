"""A trial of a search over params: which rows it trains on, and which it is measured on.

Test rows belong to the run that follows the search; a trial never looks at them. Called by the readers and pipelines
that split rows, on the workers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.randomness import uniform

Rows = NDArray[np.bool_]

# Draws of a row's random numbers; splits use 1, the silhouette's sample 2.
_VALIDATION_DRAW = 3
_USED_DRAW = 4


@dataclass(frozen=True)
class Trial:
    """Shares of the rows: of those that are no test rows, to be measured on; of the rest, to train on.

    Attributes
    ----------
    validation_fraction : float
    train_fraction : float
        With a smaller one, the rows are among those of a larger one.
    """

    validation_fraction: float
    train_fraction: float = 1.0


def roles(is_test: Rows, seed: int, rows: NDArray[np.integer], trial: Trial | None) -> tuple[Rows, Rows]:
    """Return which rows (n,) are trained on and which are measured on; in a trial some are neither.

    A row's role is a function of the seed and its global number, whatever the partitions.
    """
    if trial is None:
        return ~is_test, is_test
    is_measured = uniform(seed, _VALIDATION_DRAW, rows) < trial.validation_fraction
    is_used = uniform(seed, _USED_DRAW, rows) < trial.train_fraction
    return ~is_test & ~is_measured & is_used, ~is_test & is_measured
