"""Draws candidates from a space of params: the same ones for the same seed, no two alike."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jobs.spec import Params
from jobs.spec.job import takes_whole_numbers
from jobs.spec.tune import Choices, Range

_DRAW = 0x74756E65  # "tune": candidates are another stream than the rows' numbers
# Tries to find one more candidate before the space counts as used up.
_MOST_TRIES = 1000


def candidates(space: Mapping[str, Range | Choices], model: type[Params], seed: int, n: int) -> list[dict[str, Any]]:
    """Return n different candidates, or all there are.

    Parameters
    ----------
    space : mapping of str to Range or Choices
        Param → its values.
    model : type of Params
        Of the pipeline: says which params are whole numbers.
    seed : int
        Of the draws.
    n : int
        How many.

    Returns
    -------
    list of dict
        Param → value. A longer list begins with the shorter one.
    """
    random = np.random.default_rng(np.random.SeedSequence([seed, _DRAW]))
    found: dict[str, dict[str, Any]] = {}
    n_tries = 0
    while len(found) < n and n_tries < _MOST_TRIES:
        drawn = {name: _drawn(each, takes_whole_numbers(model, name), random) for name, each in sorted(space.items())}
        key = json.dumps(drawn, sort_keys=True)
        n_tries = n_tries + 1 if key in found else 0
        found.setdefault(key, drawn)
    return list(found.values())


def _drawn(each: Range | Choices, whole: bool, random: np.random.Generator) -> Any:
    if isinstance(each, Choices):
        return each.choices[int(random.integers(len(each.choices)))]
    # Whole numbers take their share of the line from half a step below to half a step above.
    low, high = (each.low - 0.5, each.high + 0.5) if whole else (each.low, each.high)
    if each.scale == "log":
        low, high = (max(low, each.low / 2), high) if whole else (low, high)
        value = math.exp(random.uniform(math.log(low), math.log(high)))
    else:
        value = float(random.uniform(low, high))
    return int(min(max(round(value), each.low), each.high)) if whole else min(max(value, each.low), each.high)
