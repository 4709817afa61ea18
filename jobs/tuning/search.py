"""Which trial comes next: a function of the plan and of what trials have found so far.

No clock, no storage, no randomness: a search that was interrupted goes on from its records as if nothing had been.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple


class Place(NamedTuple):
    """A trial: its rung, from 0, and its candidate's number."""

    rung: int
    number: int


# What a trial reached; None where it failed.
Found = Mapping[Place, float | None]


@dataclass(frozen=True)
class Plan:
    """What a search does.

    Attributes
    ----------
    n_candidates : int
    resources : tuple of float
        What a trial of each rung gets, least first; a random search has one rung.
    reduction_factor : int
        One in so many goes on to the next rung.
    is_more_better : bool
    patience : int, optional
    stop_at : float, optional
    """

    n_candidates: int
    resources: tuple[float, ...]
    reduction_factor: int
    is_more_better: bool
    patience: int | None = None
    stop_at: float | None = None

    def n_of_rung(self, rung: int) -> int:
        """Candidates of a rung: all, then one in `reduction_factor` of those before, at least one."""
        return max(1, self.n_candidates // self.reduction_factor**rung)

    @property
    def n_trials(self) -> int:
        """Trials of a search that nothing ends early."""
        return sum(map(self.n_of_rung, range(len(self.resources))))


def rungs(n_candidates: int, full: float, least: float | None, factor: int) -> tuple[float, ...]:
    """Return the resources of successive halving's rungs; the last has it all.

    Parameters
    ----------
    n_candidates : int
        Of the first rung.
    full : float
        The most that a trial gets.
    least : float, optional
        Of the first rung at least; without it, there are as many rungs as it takes to leave one candidate.
    factor : int
        One in so many goes on to the next rung, with so many times the resource.

    References
    ----------
    Jamieson and Talwalkar, Non-stochastic Best Arm Identification and Hyperparameter Optimization, 2016.
    """
    n = 1 + _log(n_candidates, factor)
    if least is not None:
        n = min(n, 1 + _log(full / least, factor)) if least < full else 1
    return tuple(full / factor ** (n - 1 - rung) for rung in range(n))


def next_trial(plan: Plan, found: Found) -> Place | None:
    """Return the trial to make now, or None where the search is at its end."""
    last = len(plan.resources) - 1
    members = list(range(plan.n_candidates))
    for rung in range(len(plan.resources)):
        since_better, best = 0, None
        for number in members[: plan.n_of_rung(rung)]:
            place = Place(rung, number)
            if place not in found:
                return place
            value = found[place]
            if rung == last and value is not None and plan.stop_at is not None and _reaches(plan, value):
                return None
            is_better = value is not None and (best is None or _order(plan, value) < _order(plan, best))
            since_better, best = (0, value) if is_better else (since_better + 1, best)
            if plan.patience is not None and since_better >= plan.patience:
                return None
        members = _ranked(plan, rung, found)
    return None


def best_trial(plan: Plan, found: Found) -> Place | None:
    """Return the trial to trust: the best of the highest rung in which any succeeded; None where all failed."""
    for rung in reversed(range(len(plan.resources))):
        ranked = [number for number in _ranked(plan, rung, found) if found[Place(rung, number)] is not None]
        if ranked:
            return Place(rung, ranked[0])
    return None


def _ranked(plan: Plan, rung: int, found: Found) -> list[int]:
    """Return the numbers of the candidates that a rung has tried, the best first; of equal ones the first."""
    tried = sorted(place.number for place in found if place.rung == rung)
    return sorted(tried, key=lambda number: _order(plan, found[Place(rung, number)]))


def _order(plan: Plan, value: float | None) -> float:
    if value is None or not math.isfinite(value):
        return math.inf
    return -value if plan.is_more_better else value


def _reaches(plan: Plan, value: float) -> bool:
    return plan.stop_at is not None and _order(plan, value) <= _order(plan, plan.stop_at)


def _log(value: float, base: int) -> int:
    """Return the whole part of the logarithm; exact, where floating point would take 3 for 2.9999."""
    n = 0
    while base ** (n + 1) <= value * (1 + 1e-12):
        n += 1
    return n
