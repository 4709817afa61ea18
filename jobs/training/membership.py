"""Who trains in which generation: a pure state machine that the driver feeds with what happens.

Events in (a member is ready, was lost, left, …), decisions out (the generation that is to follow, or that it is
hopeless). It sends nothing and reads no clock, so each rule can be tried by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# A generation broke and nobody is known to be lost: the network, perhaps. The same members form anew after this while.
_BROKEN_GRACE_S = 1.0
# So many generations may end at the same step: a step that kills its ranks is not tried for ever.
MAX_TRIES_OF_A_STEP = 5

PeerFacts = tuple[Any, ...]


@dataclass(frozen=True)
class Change:
    """An entry of a fit's timeline.

    Attributes
    ----------
    at
        Seconds since the epoch: by the driver's clock, or of what is formed and committed, by a member's.
    kind
        ready, formed, committed (the first step of a generation), lost, left, broken.
    member
        Whom it is about; empty where it is about all.
    generation, world_size
        At that time; 0 before the first.
    position
        Steps kept by then, where it is known.
    why
        For people; of a member that is ready, its process.
    """

    at: float
    kind: str
    member: str
    generation: int
    world_size: int
    position: int | None = None
    why: str = ""


@dataclass(frozen=True)
class NewGeneration:
    """A generation to be told to all its members, and to those of the last one."""

    number: int
    peers: tuple[PeerFacts, ...]


@dataclass
class Membership:
    """The members of a fit.

    Attributes
    ----------
    n_wanted
        Ranks at the start, and the number that is aimed at.
    n_min, n_max
        Fewest ranks to go on with; most that are let in.
    position, n_tries, last_loss
        Steps that are known to be kept, how often the next one lost a generation, and why a member was lost last.
    """

    n_wanted: int
    n_min: int
    n_max: int
    generation: int = 0
    current: tuple[str, ...] = ()
    timeline: list[Change] = field(default_factory=list)
    _ready: dict[str, PeerFacts] = field(default_factory=dict)
    _formed: set[str] = field(default_factory=set)
    _is_committed: bool = False
    _broken_at: float | None = None
    position: int = 0
    n_tries: int = 0
    last_loss: str = ""

    @property
    def n_ready(self) -> int:
        """Members that train or could."""
        return len(self._ready)

    @property
    def is_formed(self) -> bool:
        """Whether all members of the generation said that they met."""
        return self._formed >= set(self.current)

    @property
    def is_short(self) -> bool:
        """Whether members are missing, so that no step can be made."""
        return not self.current or any(member not in self._ready for member in self.current)

    @property
    def is_hopeless(self) -> bool:
        """Whether the same step was tried too often."""
        return self.n_tries >= MAX_TRIES_OF_A_STEP

    def ready(self, now: float, member: str, peer: PeerFacts, why: str = "") -> None:
        """Take in a member whose model and data are ready."""
        self._ready[member] = peer
        self._note(now, "ready", member, why=why)

    def formed(self, at: float, member: str, generation: int, position: int) -> None:
        """Take note that a member met the others, `at` by its own clock."""
        if generation != self.generation:
            return
        self._formed.add(member)
        if self.is_formed:
            self._note(at, "formed", "", position=position)

    def committed(self, now: float, generation: int, position: int, at: float) -> None:
        """Take note that a generation kept its first step, `at` by the clock of the member that tells."""
        if position > self.position:
            self.position, self.n_tries = position, 0
        if generation == self.generation and not self._is_committed:
            self._is_committed = True
            self._note(at, "committed", "", position=position)

    def broken(self, now: float, generation: int, why: str) -> None:
        """Take note that a member lost the others."""
        if generation == self.generation and self._broken_at is None:
            self._broken_at = now
            self._note(now, "broken", "", why=why)

    def gone(self, now: float, member: str, why: str, is_planned: bool = False) -> None:
        """Take a member out, whether it was ready or not."""
        self._note(now, "left" if is_planned else "lost", member, why=why)
        was_ready = self._ready.pop(member, None) is not None
        if not is_planned:
            self.last_loss = why
            if was_ready and member in self.current:
                self.n_tries += 1

    def decide(self, now: float, is_start_over: bool) -> NewGeneration | None:
        """Return the generation that is to follow now, if one is.

        `is_start_over`: no more members are waited for at the start; those that are ready have to do.
        """
        staying = [member for member in self.current if member in self._ready]
        joining = [member for member in self._ready if member not in self.current]
        if not staying:  # the first generation, or all were lost
            if len(joining) >= self.n_wanted or (is_start_over and len(joining) >= self.n_min):
                return self._form(joining[: self.n_wanted])
            return None
        members = (staying + joining)[: max(self.n_max, len(staying))]
        if len(staying) < len(self.current):
            return self._form(members) if len(members) >= self.n_min else None
        # Who joins waits until the present members have kept a step: ranks that come and go never stop the others.
        if len(members) > len(self.current) and self._is_committed:
            return self._form(members)
        if self._broken_at is not None and now - self._broken_at > _BROKEN_GRACE_S:
            self.n_tries += 1
            return self._form(members)
        return None

    def peers(self) -> NewGeneration:
        """Return the present generation, to be told again."""
        return NewGeneration(self.generation, tuple(self._ready[m] for m in self.current if m in self._ready))

    def _form(self, members: list[str]) -> NewGeneration:
        self.generation += 1
        self.current = tuple(members)
        self._formed, self._is_committed, self._broken_at = set(), False, None
        return NewGeneration(self.generation, tuple(self._ready[member] for member in members))

    def _note(self, now: float, kind: str, member: str, position: int | None = None, why: str = "") -> None:
        entry = Change(now, kind, member, self.generation, len(self.current), position, why)
        self.timeline.append(entry)
