"""The rules by which worker groups grow and shrink, for any groups and any demand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.scaling import Decision, Demand, Group, Limits, Worker, decide, unmet

NOW = 1000.0
RESOURCES = st.dictionaries(st.sampled_from(["GPU", "LICENCE"]), st.sampled_from([0.0, 0.5, 1.0, 2.0]), max_size=2)


@st.composite
def limits(draw: st.DrawFn) -> Limits:
    n_min = draw(st.integers(0, 4))
    quiet_s = draw(st.sampled_from([0.0, 60.0]))
    return Limits(n_min, draw(st.integers(n_min, 12)), quiet_s, draw(st.integers(1, 5)))


@st.composite
def clusters(draw: st.DrawFn) -> list[Group]:
    groups = []
    for g in range(draw(st.integers(1, 3))):
        tasks = draw(st.lists(st.integers(0, 3), max_size=6))
        groups.append(
            Group(
                name=f"g{g}",
                limits=draw(limits()),
                offers=draw(RESOURCES),
                n_threads=draw(st.integers(1, 4)),
                workers=[Worker(f"g{g}-w{w}", n, 0.0 if n else draw(st.floats(0, 99))) for w, n in enumerate(tasks)],
                coming=[f"g{g}-c{c}" for c in range(draw(st.integers(0, 4)))],
                enough_since=draw(st.none() | st.floats(0, NOW)),
            )
        )
    return groups


DEMANDS = st.lists(st.builds(Demand, RESOURCES, st.integers(0, 100), st.floats(0, 1000)), max_size=3)


@given(clusters(), DEMANDS)
def test_a_decision_keeps_to_the_limits_and_spares_whoever_works(groups: list[Group], demands: list[Demand]) -> None:
    for group, decision in zip(groups, decide(groups, demands, NOW), strict=True):
        gone = {*decision.cancel, *decision.retire}
        idle = {worker.name for worker in group.workers if worker.n_tasks == 0}
        assert set(decision.retire) <= idle
        assert set(decision.cancel) <= set(group.coming)
        assert len(gone) == len(decision.cancel) + len(decision.retire)
        assert decision.n == group.n - len(gone) or (not gone and group.n < decision.n <= group.n + group.limits.step)
        assert decision.n >= min(group.limits.n_min, group.n)
        assert decision.n <= max(group.limits.n_max, group.n)
        if decision.retire:
            assert set(decision.cancel) == set(group.coming)  # who has not come yet goes first


@given(clusters(), DEMANDS)
def test_decisions_that_are_carried_out_come_to_rest(groups: list[Group], demands: list[Demand]) -> None:
    now = NOW
    for _ in range(40):
        decisions = decide(groups, demands, now)
        groups = [carried_out(group, decision) for group, decision in zip(groups, decisions, strict=True)]
        now += 61.0
    for group, decision in zip(groups, decide(groups, demands, now), strict=True):
        assert (decision.n, decision.cancel, decision.retire) == (group.n, (), ())
        n_busy = sum(worker.n_tasks > 0 for worker in group.workers)
        assert group.limits.n_min <= group.n <= max(group.limits.n_max, n_busy)


def carried_out(group: Group, decision: Decision) -> Group:
    """Those who were coming are there; who goes is gone; who was asked for is coming."""
    gone = {*decision.cancel, *decision.retire}
    there = [*group.workers, *(Worker(name, 0) for name in group.coming)]
    workers = [worker for worker in there if worker.name not in gone]
    new = [f"{group.name}-n{len(workers)}-{k}" for k in range(decision.n - len(workers))]
    return replace(group, workers=workers, coming=new, enough_since=decision.enough_since)


@given(clusters(), DEMANDS, st.integers(1, 50))
def test_more_demand_never_means_fewer_workers(groups: list[Group], demands: list[Demand], more: int) -> None:
    larger = [replace(demand, n_tasks=demand.n_tasks + more, seconds=demand.seconds + more) for demand in demands]
    before, after = (sum(d.n for d in decide(groups, each, NOW)) for each in (demands, larger))
    assert after >= before


def mixed(n_cpu: int = 1, n_gpu: int = 0) -> list[Group]:
    cpu = [Worker(f"cpu-{k}", 1) for k in range(n_cpu)]
    gpu = [Worker(f"gpu-{k}", 1) for k in range(n_gpu)]
    return [
        Group("gpu", Limits(0, 4), {"GPU": 1}, workers=gpu),
        Group("cpu", Limits(1, 4), n_threads=2, workers=cpu),
    ]


@pytest.mark.parametrize(
    ("demand", "n_gpu", "n_cpu"),
    [
        (Demand({}, 100, 1000), 0, 4),
        (Demand({"GPU": 1}, 100, 1000), 4, 1),
        (Demand({"GPU": 1}, 2, 1000), 2, 1),
        (Demand({}, 6, 1000), 0, 3),  # two threads each
        (Demand({}, 1000, 4), 0, 1),  # done before another worker is there
        (Demand({"GPU": 0}, 100, 1000), 0, 4),
        (Demand({"GPU": 2}, 100, 1000), 0, 1),
        (Demand({}, 0, 0), 0, 1),
    ],
)
def test_tasks_grow_the_group_that_is_for_them(demand: Demand, n_gpu: int, n_cpu: int) -> None:
    gpu, cpu = decide(mixed(), [demand], NOW)
    assert (gpu.n, cpu.n) == (n_gpu, n_cpu)


def test_tasks_that_need_nothing_go_to_gpus_where_there_is_nothing_else() -> None:
    [gpu] = decide(mixed()[:1], [Demand({}, 3, 1000)], NOW)
    assert gpu.n == 3


def test_what_nobody_offers_is_told() -> None:
    impossible = Demand({"GPU": 2}, 1, 10)
    assert unmet(mixed(), [impossible, Demand({"GPU": 1}, 1, 10), Demand({"FPGA": 1}, 0, 0)]) == [impossible]


def test_workers_on_their_way_count() -> None:
    group = Group("cpu", Limits(0, 8), workers=[Worker("a", 1)], coming=["b", "c"])
    [decision] = decide([group], [Demand({}, 4, 1000)], NOW)
    assert decision == Decision("cpu", 4)


def test_a_group_grows_in_steps() -> None:
    [decision] = decide([Group("cpu", Limits(0, 100, step=7))], [Demand({}, 100, 1000)], NOW)
    assert decision.n == 7


def test_it_shrinks_after_a_quiet_time_and_takes_who_has_idled_longest() -> None:
    workers = [Worker("busy", 1), Worker("new", 0, 1.0), Worker("old", 0, 50.0), Worker("older", 0, 90.0)]
    group = Group("cpu", Limits(1, 4, quiet_s=60), workers=workers)
    one = [Demand({}, 2, 1000)]
    [first] = decide([group], one, NOW)
    assert first == Decision("cpu", 4, enough_since=NOW)
    [second] = decide([replace(group, enough_since=first.enough_since)], one, NOW + 59)
    assert second == Decision("cpu", 4, enough_since=NOW)
    [third] = decide([replace(group, enough_since=second.enough_since)], one, NOW + 60)
    assert third == Decision("cpu", 2, retire=("older", "old"), enough_since=NOW)


def test_a_burst_of_work_ends_the_quiet_time() -> None:
    group = Group("cpu", Limits(1, 4), workers=[Worker("a", 0), Worker("b", 0)], enough_since=NOW - 59)
    [decision] = decide([group], [Demand({}, 2, 1000)], NOW)
    assert decision == Decision("cpu", 2)


def test_a_lowered_maximum_is_kept_at_once_by_idle_workers_alone() -> None:
    workers = [Worker("a", 1), Worker("b", 1), Worker("c", 0)]
    [decision] = decide([Group("cpu", Limits(0, 1), workers=workers)], [Demand({}, 9, 1000)], NOW)
    assert decision.retire == ("c",)
    assert decision.n == 2
