"""How many workers each group of a cluster should have, and which ones go: a pure function of what is the case.

It reads no clock and asks nobody. Each group scales by the demand for what its workers offer: a task that needs a GPU
grows a group with GPUs, and a task that needs nothing in particular grows a group that offers nothing in particular,
where there is one. Growing is at once and in bounded steps; shrinking waits until fewer workers were enough for a
while, takes those that have not come yet before those that idle, and never one that has tasks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Resources = Mapping[str, float]

# One more worker is worth it for so many seconds of work.
WORTH_S = 5.0
# Sums of shares are not exact.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Limits:
    """How a group may change.

    Attributes
    ----------
    n_min, n_max
        Fewest and most workers, 0 ≤ n_min ≤ n_max.
    quiet_s
        Fewer workers must have been enough for so long before any goes.
    step
        Most workers that are added at a time.
    """

    n_min: int
    n_max: int
    quiet_s: float = 60.0
    step: int = 10


@dataclass(frozen=True)
class Worker:
    """A worker that the scheduler knows: its tasks, running and queued, and since how many seconds it has had none."""

    name: str
    n_tasks: int
    idle_s: float = 0.0


@dataclass(frozen=True)
class Group:
    """A group as it is.

    Attributes
    ----------
    name, limits
        Its own.
    offers
        Dask resources of each worker; empty where they offer nothing in particular.
    n_threads
        Of each worker.
    workers
        Those that the scheduler knows.
    coming
        Names of those that were asked for and that it does not know yet: their pods wait, pull images, or start.
    enough_since
        The last decision's; None at first.
    """

    name: str
    limits: Limits
    offers: Resources = field(default_factory=dict)
    n_threads: int = 1
    workers: Sequence[Worker] = ()
    coming: Sequence[str] = ()
    enough_since: float | None = None

    @property
    def n(self) -> int:
        """Workers that there are or will be."""
        return len(self.workers) + len(self.coming)


@dataclass(frozen=True)
class Demand:
    """Tasks that need the same of a worker and are running, or could run if there were one.

    Attributes
    ----------
    needs
        Dask resources that each takes while it runs; empty for most tasks.
    n_tasks
        How many there are.
    seconds
        How long they take one after another, by the scheduler's estimate.
    """

    needs: Resources
    n_tasks: int
    seconds: float


@dataclass(frozen=True)
class Decision:
    """What is to be done with a group.

    Attributes
    ----------
    group, n
        The group, and how many workers it is to have.
    cancel, retire
        Which of those that are coming are not needed; which workers go once they have handed over their results.
    enough_since
        Since when fewer workers than there are have been enough; None where they are not. For the next question.
    """

    group: str
    n: int
    cancel: tuple[str, ...] = ()
    retire: tuple[str, ...] = ()
    enough_since: float | None = None


def decide(groups: Sequence[Group], demands: Sequence[Demand], now: float) -> list[Decision]:
    """Return a decision for each group, in their order.

    Parameters
    ----------
    groups
        All groups of the cluster; their names differ.
    demands
        What its scheduler has to do. Where it cannot be asked, this is not to be called: no demand is an answer too.
    now
        Seconds, by the clock of `Group.enough_since`.
    """
    wanted = _wanted(groups, demands)
    return [_decided(group, max(wanted[group.name], group.limits.n_min), now) for group in groups]


def unmet(groups: Sequence[Group], demands: Sequence[Demand]) -> list[Demand]:
    """Return the demands that no group meets however large it is: none of its workers offers what a task needs."""
    return [demand for demand in demands if demand.n_tasks and not _takers(groups, demand.needs)]


def _wanted(groups: Sequence[Group], demands: Sequence[Demand]) -> dict[str, int]:
    """Return how many workers each group has work for, up to its maximum; what needs most is dealt out first."""
    wanted = {group.name: 0.0 for group in groups}
    for demand in sorted(demands, key=lambda demand: -len(_positive(demand.needs))):
        # A slot for each task; but many that are done in a moment need no worker that first has to start.
        n_slots = min(float(demand.n_tasks), max(demand.seconds / WORTH_S, 1.0))
        for group in _takers(groups, demand.needs):
            n = min(n_slots / _slots(group, demand.needs), group.limits.n_max - wanted[group.name])
            wanted[group.name] += n
            n_slots -= n * _slots(group, demand.needs)
    return {name: math.ceil(n - _ROUNDING) for name, n in wanted.items()}


def _takers(groups: Sequence[Group], needs: Resources) -> list[Group]:
    """Return the groups whose workers can do such tasks, less those that offer more for it than others do."""
    able = [group for group in groups if _slots(group, needs) > 0]
    extra = {group.name: len(_positive(group.offers).keys() - _positive(needs).keys()) for group in able}
    return [group for group in able if extra[group.name] == min(extra.values())]


def _slots(group: Group, needs: Resources) -> int:
    """Return how many such tasks a worker of the group does at a time."""
    at_once = [group.offers.get(name, 0.0) / amount for name, amount in _positive(needs).items()]
    return math.floor(min([group.n_threads, *at_once]) + _ROUNDING)


def _positive(resources: Resources) -> dict[str, float]:
    return {name: amount for name, amount in resources.items() if amount > 0}


def _decided(group: Group, wanted: int, now: float) -> Decision:
    if wanted >= group.n:
        return Decision(group.name, min(wanted, group.n + group.limits.step))
    since = now if group.enough_since is None else group.enough_since
    if group.n <= group.limits.n_max and now - since < group.limits.quiet_s:
        return Decision(group.name, group.n, enough_since=since)
    surplus = group.n - wanted
    cancel = tuple(group.coming)[::-1][:surplus]  # the first that were asked for are nearest to be there
    idle = sorted((w for w in group.workers if w.n_tasks == 0), key=lambda w: (-w.idle_s, w.name))
    retire = tuple(worker.name for worker in idle[: surplus - len(cancel)])
    return Decision(group.name, group.n - len(cancel) - len(retire), cancel, retire, since)
