"""This project's settings among those of Dask: a file of Dask's, or a variable such as DASK_DASKYARD__START_TIMEOUT."""

from __future__ import annotations

import dask
from dask.utils import parse_timedelta

from jobs.errors import SpecError


def seconds_of(name: str) -> float | None:
    """Return a setting in seconds; None where it is not set.

    Raises
    ------
    SpecError
        When it is no time above 0.
    """
    value = dask.config.get(name, None)
    if value is None:
        return None
    try:
        seconds = float(parse_timedelta(value, default="seconds"))
    except (TypeError, ValueError, KeyError):
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise SpecError(f"{name}: {value!r} is no number of seconds above 0; write for example 60")
    return seconds
