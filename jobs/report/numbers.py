"""How figures are written for people. Called by html and charts."""

from __future__ import annotations

from typing import Any


def number(value: Any) -> str:
    """Write a figure for people: thousands apart, four significant digits."""
    if value is None:
        return "not a number"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e15):
        return f"{int(value):,}"
    return f"{value:,.1f}" if abs(value) >= 1e4 else f"{value:.4g}"
