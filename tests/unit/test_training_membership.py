"""Who trains in which generation: each rule by itself."""

from __future__ import annotations

from jobs.training.membership import MAX_TRIES_OF_A_STEP, Membership, NewGeneration


def names(generation: NewGeneration | None) -> list[str] | None:
    return None if generation is None else [peer[0] for peer in generation.peers]


def begun(n: int, n_min: int = 1, n_max: int = 4) -> Membership:
    """Members a, b, … that have kept a step together."""
    membership = Membership(n, n_min, n_max)
    for member in "abcd"[:n]:
        membership.ready(0.0, member, (member,))
    assert names(membership.decide(0.0, False)) == list("abcd"[:n])
    keep_step(membership, 1)
    return membership


def keep_step(membership: Membership, position: int) -> None:
    for member in membership.current:
        membership.formed(1.0, member, membership.generation, position - 1)
    membership.committed(1.0, membership.generation, position, 1.0)


def test_nothing_begins_before_all_that_were_wanted_are_ready() -> None:
    membership = Membership(3, 1, 3)
    membership.ready(0.0, "a", ("a",))
    membership.ready(0.0, "b", ("b",))
    assert membership.decide(0.0, False) is None
    membership.ready(0.0, "c", ("c",))
    assert names(membership.decide(0.0, False)) == ["a", "b", "c"]
    assert membership.decide(0.0, False) is None


def test_when_the_wait_is_over_the_minimum_will_do() -> None:
    membership = Membership(3, 2, 3)
    membership.ready(0.0, "a", ("a",))
    assert membership.decide(9.0, True) is None
    membership.ready(0.0, "b", ("b",))
    assert names(membership.decide(9.0, True)) == ["a", "b"]


def test_those_that_are_left_go_on_at_once_in_the_order_they_had() -> None:
    membership = begun(3)
    membership.gone(2.0, "a", "killed")
    assert names(membership.decide(2.0, False)) == ["b", "c"]
    assert membership.generation == 2


def test_two_losses_before_the_next_decision_are_one_generation() -> None:
    membership = begun(3)
    membership.gone(2.0, "a", "killed")
    membership.gone(2.0, "c", "killed")
    assert names(membership.decide(2.0, False)) == ["b"]
    assert membership.decide(2.0, False) is None


def test_too_few_wait_for_others() -> None:
    membership = begun(3, n_min=3)
    membership.gone(2.0, "a", "killed")
    assert membership.decide(2.0, False) is None
    assert membership.is_short
    membership.ready(3.0, "d", ("d",))
    assert names(membership.decide(3.0, False)) == ["b", "c", "d"]
    assert not membership.is_short


def test_who_joins_waits_until_the_generation_has_kept_a_step() -> None:
    membership = begun(2)
    membership.gone(2.0, "b", "killed")
    assert names(membership.decide(2.0, False)) == ["a"]
    membership.ready(2.1, "c", ("c",))
    assert membership.decide(2.1, False) is None
    keep_step(membership, 2)
    assert names(membership.decide(2.2, False)) == ["a", "c"]


def test_no_more_are_let_in_than_allowed() -> None:
    membership = begun(2, n_max=3)
    for member in "cd":
        membership.ready(2.0, member, (member,))
    assert names(membership.decide(2.0, False)) == ["a", "b", "c"]
    keep_step(membership, 2)
    assert membership.decide(3.0, False) is None


def test_a_break_without_a_loss_is_mended_by_the_same_members_after_a_while() -> None:
    membership = begun(2)
    membership.broken(2.0, 1, "connection reset")
    assert membership.decide(2.5, False) is None
    assert names(membership.decide(3.5, False)) == ["a", "b"]
    assert membership.decide(9.0, False) is None


def test_news_of_an_old_generation_count_for_nothing() -> None:
    membership = begun(3)
    membership.gone(2.0, "a", "killed")
    membership.decide(2.0, False)
    membership.broken(2.1, 1, "connection reset")
    membership.formed(2.1, "b", 1, 1)
    assert membership.decide(9.0, False) is None
    assert not membership.is_formed


def test_a_step_that_loses_ranks_again_and_again_is_hopeless_and_one_that_is_kept_is_not() -> None:
    membership = begun(1)
    for n in range(1, MAX_TRIES_OF_A_STEP + 1):
        assert not membership.is_hopeless
        [member] = membership.current
        membership.gone(float(n), member, "killed")
        membership.ready(float(n), f"n{n}", (f"n{n}",))
        membership.decide(float(n), False)
    assert membership.is_hopeless
    keep_step(membership, 2)
    assert not membership.is_hopeless


def test_leaving_as_told_is_no_failure_of_the_step() -> None:
    membership = begun(2)
    for n in range(2 * MAX_TRIES_OF_A_STEP):
        membership.gone(float(n), membership.current[0], "told to", is_planned=True)
        membership.ready(float(n), f"n{n}", (f"n{n}",))
        membership.decide(float(n), False)
    assert not membership.is_hopeless
    assert {change.kind for change in membership.timeline} <= {"ready", "formed", "committed", "left"}
