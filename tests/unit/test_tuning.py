"""A search asks for the right trials in the right order, whatever interrupts it; a trial's rows are no test rows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.errors import SpecError
from jobs.spec import JobSpec, parse
from jobs.spec.neural_network import NeuralNetworkParams
from jobs.spec.tune import Choices, Range
from jobs.trial import Trial, roles
from jobs.tuning.search import Found, Place, Plan, best_trial, next_trial, rungs
from jobs.tuning.space import candidates


def reached(seed: int) -> list[float | None]:
    """What trials reach: numbers, some of them equal, some failures, some not finite."""
    random = np.random.default_rng(seed)
    kinds = random.choice(4, 400, p=[0.6, 0.2, 0.15, 0.05])
    return [
        [float(number), float(round(number)), None, math.nan][kind]
        for kind, number in zip(kinds, random.normal(size=400), strict=True)
    ]


def searched(plan: Plan, value_of: Any, n_before: int | None = None) -> dict[Place, float | None]:
    """Make the trials that are asked for; stop after so many."""
    found: dict[Place, float | None] = {}
    while (n_before is None or len(found) < n_before) and (place := next_trial(plan, found)) is not None:
        assert place not in found
        found[place] = value_of(place)
    return found


@given(
    n=st.integers(1, 40),
    factor=st.integers(2, 4),
    is_more_better=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_halving_makes_the_trials_of_each_rung_once_and_the_best_go_on(
    n: int, factor: int, is_more_better: bool, seed: int
) -> None:
    values = reached(seed)
    plan = Plan(n, rungs(n, 81, None, factor), factor, is_more_better)
    found = searched(plan, lambda place: values[place.number + 40 * place.rung])
    assert len(found) == plan.n_trials
    assert plan.n_of_rung(len(plan.resources) - 1) < factor
    assert plan.resources[-1] == 81
    sign = -1 if is_more_better else 1
    for rung in range(len(plan.resources) - 1):
        scores = {
            place.number: math.inf if value is None or math.isnan(value) else sign * value
            for place, value in found.items()
            if place.rung == rung
        }
        chosen = {place.number for place in found if place.rung == rung + 1}
        assert len(chosen) == plan.n_of_rung(rung + 1)
        rejected = scores.keys() - chosen
        assert not rejected or max(scores[number] for number in chosen) <= min(scores[number] for number in rejected)


@given(seed=st.integers(0, 1000), n_before=st.integers(0, 40), patience=st.integers(1, 5))
def test_an_interrupted_search_goes_on_as_if_nothing_had_been(seed: int, n_before: int, patience: int) -> None:
    values = reached(seed)
    for plan in (Plan(27, rungs(27, 1.0, None, 3), 3, True), Plan(20, (1.0,), 3, True, patience=patience)):

        def value(place: Place) -> float | None:
            return values[place.number + 40 * place.rung]

        whole = searched(plan, value)
        half: Found = searched(plan, value, n_before)
        again = dict(half)
        while (place := next_trial(plan, again)) is not None:
            again[place] = value(place)
        assert again.keys() == whole.keys()
        assert best_trial(plan, again) == best_trial(plan, whole)


def test_a_random_search_ends_when_nothing_gets_better_or_enough_is_reached() -> None:
    values = [0.1, 0.5, 0.4, None, 0.3, 0.6, 0.9]
    plan = Plan(7, (1.0,), 3, True, patience=3)
    assert len(searched(plan, lambda place: values[place.number])) == 5
    plan = Plan(7, (1.0,), 3, True, stop_at=0.6)
    found = searched(plan, lambda place: values[place.number])
    assert len(found) == 6
    assert best_trial(plan, found) == Place(0, 5)
    assert len(searched(Plan(7, (1.0,), 3, False, stop_at=0.4), lambda place: values[place.number])) == 1


def test_only_a_trial_with_the_full_resource_ends_a_halving_search() -> None:
    plan = Plan(9, rungs(9, 9, None, 3), 3, True, stop_at=0.5)
    found = searched(plan, lambda place: 0.9 if place.rung < 2 else 0.6)
    assert len(found) == 9 + 3 + 1


def test_the_best_is_of_the_highest_rung_in_which_any_trial_succeeded() -> None:
    plan = Plan(4, (1.0, 2.0), 2, True)
    found = {Place(0, 0): 0.9, Place(0, 1): 0.8, Place(0, 2): None, Place(0, 3): 0.1}
    assert best_trial(plan, found | {Place(1, 0): 0.2, Place(1, 1): 0.3}) == Place(1, 1)
    assert best_trial(plan, found | {Place(1, 0): None, Place(1, 1): None}) == Place(0, 0)
    assert best_trial(plan, dict.fromkeys(found)) is None


@pytest.mark.parametrize(
    ("n", "full", "least", "factor", "expected"),
    [
        (27, 27, None, 3, (1, 3, 9, 27)),
        (20, 81, None, 3, (9, 27, 81)),
        (27, 27, 4, 3, (9, 27)),
        (27, 27, 100, 3, (27,)),
        (1000, 10**6, 1000, 10, (1000, 10**4, 10**5, 10**6)),
    ],
)
def test_resources_grow_to_all_there_is(n: int, full: float, least: float, factor: int, expected: Any) -> None:
    assert rungs(n, full, least, factor) == pytest.approx(expected)


def test_candidates_are_the_same_for_the_same_seed_and_no_two_are_alike() -> None:
    space = {
        "learning_rate": Range(low=1e-4, high=1e-1, scale="log"),
        "epochs": Range(low=1, high=64, scale="log"),
        "hidden": Choices(choices=([8], [16, 8])),
    }
    found = candidates(space, NeuralNetworkParams, 3, 200)
    assert found == candidates(space, NeuralNetworkParams, 3, 200)
    assert found[:50] == candidates(space, NeuralNetworkParams, 3, 50)
    assert found[:5] != candidates(space, NeuralNetworkParams, 4, 5)
    assert all(isinstance(each["epochs"], int) and 1 <= each["epochs"] <= 64 for each in found)
    assert all(1e-4 <= each["learning_rate"] <= 1e-1 for each in found)
    logarithms = np.log10([each["learning_rate"] for each in found])
    assert abs(logarithms.mean() + 2.5) < 0.2
    assert {str(each["hidden"]) for each in found} == {"[8]", "[16, 8]"}


def test_a_small_space_has_no_more_candidates_than_it_has() -> None:
    space = {"epochs": Range(low=1, high=3), "hidden": Choices(choices=([8], [16]))}
    assert len(candidates(space, NeuralNetworkParams, 0, 50)) == 6


def test_a_trial_has_no_test_rows_and_nested_training_rows() -> None:
    rows = np.arange(100_000)
    is_test = rows % 5 == 0
    train, test = roles(is_test, 1, rows, None)
    assert (train == ~is_test).all()
    assert (test == is_test).all()
    before: Any = None
    for share in (1.0, 0.3, 0.1):
        train, measured = roles(is_test, 1, rows, Trial(0.25, share))
        assert not (train & is_test).any()
        assert not (measured & is_test).any()
        assert not (train & measured).any()
        assert measured.sum() / 80_000 == pytest.approx(0.25, abs=0.01)
        assert train.sum() / 80_000 == pytest.approx(0.75 * share, abs=0.01)
        if before is not None:
            assert not (train & ~before[0]).any()
            assert (measured == before[1]).all()
        before = train, measured


def spec_of(tune: Any, pipeline: str = "neural_network", **params: Any) -> JobSpec:
    params = {"target": "t", **params} if pipeline == "neural_network" else params
    return parse({"pipeline": pipeline, "params": params, "input": "x", "output": "y", "tune": tune})


RATE = {"low": 1e-4, "high": 0.1, "scale": "log"}


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        ({}, "tune.space: missing"),
        ({"space": {}}, "tune.space: {} should have at least 1"),
        ({"spase": {}}, "tune: unknown key 'spase' .did you mean 'space'"),
        ({"space": {"learning_rat": RATE}}, "tune.space: no param 'learning_rat' .did you mean 'learning_rate'"),
        ({"space": {"learning_rate": {"low": 1}}}, "tune.space.learning_rate.high: missing"),
        ({"space": {"learning_rate": {"low": 1, "hi": 2}}}, "tune.space.learning_rate: unknown key 'hi'.* low, high"),
        ({"space": {"learning_rate": {"low": -1, "high": 2}}}, "tune.space.learning_rate: -1: .*greater than 0"),
        ({"space": {"learning_rate": {"low": 3, "high": 2}}}, "low 3 is not below high 2"),
        ({"space": {"weight_decay": {"low": 0, "high": 2, "scale": "log"}}}, "low 0 has no logarithm"),
        ({"space": {"hidden": {"choices": [[3], ["x"]]}}}, r"tune.space.hidden: \[.x.\]: .*integer"),
        ({"space": {"hidden": {"choices": [[3]]}}}, "tune.space.hidden.choices"),
        ({"space": {"seed": {"low": 1, "high": 9}}}, "seed is no param to choose by its luck"),
        ({"space": {"test_fraction": {"low": 0.1, "high": 0.9}}}, "test_fraction says which rows are set aside"),
        ({"space": {"learning_rate": RATE}, "resource": "epochs"}, "resource: belongs to strategy successive_halving"),
        ({"space": {"learning_rate": RATE}, "n_trials": 1}, "tune.n_trials: 1"),
        ({"space": {"learning_rate": RATE}, "metric": "speed"}, "tune.mode: whether more of 'speed' is better"),
        (
            {"space": {"learning_rate": RATE}, "strategy": "successive_halving", "resource": "weight_decay"},
            "tune.resource: 'weight_decay' is no whole number; choose one of seed, .*epochs",
        ),
        (
            {"space": {"learning_rate": RATE}, "strategy": "successive_halving", "patience": 2},
            "patience: belongs to strategy random",
        ),
        (
            {"space": {"epochs": {"low": 1, "high": 9}}, "strategy": "successive_halving", "resource": "epochs"},
            "resource: 'epochs' is in the space as well",
        ),
    ],
)
def test_a_wrong_search_is_named_with_what_to_do(tune: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        spec_of(tune)


def test_inertia_cannot_choose_a_number_of_clusters_and_group_by_has_nothing_to_tune() -> None:
    space = {"n_clusters": {"low": 2, "high": 9}}
    with pytest.raises(SpecError, match=r"inertia favours many clusters.*set it to silhouette"):
        spec_of({"space": space}, "kmeans")
    assert spec_of({"space": space, "metric": "silhouette"}, "kmeans").tune
    with pytest.raises(SpecError, match=r"tune: group_by has no metric"):
        spec_of({"space": {"missing": {"choices": ["group", "drop"]}}}, "group_by", by=["a"])


def test_a_spec_without_a_search_is_the_same_run_as_before_and_one_with_it_is_another() -> None:
    plain, searching = spec_of(None), spec_of({"space": {"learning_rate": RATE}})
    assert plain.name == parse({k: v for k, v in plain.model_dump(mode="json").items() if k != "tune"}).name
    assert plain.name != searching.name
    assert searching.with_params({"learning_rate": 0.5}).params.model_dump()["learning_rate"] == 0.5
    assert searching.with_params({"learning_rate": 0.5}).tune is None
