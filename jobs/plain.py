"""Numbers as JSON can hold them. Called wherever something measured is written: manifest, outcome, progress, status."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any


def plain(value: Any) -> Any:
    """Return a number as Python's own, None for NaN and infinity, which JSON does not have; the rest as it is."""
    if isinstance(value, (bool, str)) or not isinstance(value, Real):
        return value
    if isinstance(value, Integral):
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else None


def plain_tree(value: Any) -> Any:
    """Return `plain` of all that is in mappings, lists and tuples."""
    if isinstance(value, Mapping):
        return {key: plain_tree(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_tree(each) for each in value]
    return plain(value)
