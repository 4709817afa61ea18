"""Random numbers that belong to rows: a function of seed and global row number, whatever the blocks or the workers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def uniform(seed: int, draw: int, rows: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return numbers in (0, 1) for global row numbers (n,): a function of seed, draw and row alone.

    SplitMix64 (Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators, 2014) of a counter.
    """
    base = np.random.SeedSequence([seed, draw]).generate_state(1, np.uint64)[0]
    with np.errstate(over="ignore"):
        state = (rows.astype(np.uint64) + base) * np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return ((state >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53
