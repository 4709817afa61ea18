"""Do the benchmarks' arithmetic and their page say what was measured?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.agreement import Agreement
from benchmarks.cases import CASES
from benchmarks.results import PAGE, RESULTS, page, result

BY_NAME = {case.name: case for case in CASES}
MORE: dict[str, Any] = {
    "command": "make bench",
    "machine": "2 × a machine",
    "versions": {"numpy": "2"},
    "date": "2026-11-24",
}


def test_the_ratio_is_that_of_the_medians_and_the_spread_that_of_neighbouring_runs() -> None:
    found = result(BY_NAME["kmeans"], [1.0, 2.0, 9.0], [4.0, 4.0, 6.0], Agreement(True, "the same"), MORE)
    assert (found["ours"], found["theirs"], found["ratio"]) == (2.0, 4.0, 0.5)
    assert found["spread"] == [0.25, 1.5]
    assert found["n"] == 3


@pytest.mark.parametrize(
    ("name", "ours", "theirs", "agrees", "holds"),
    [
        ("kmeans", 1.3, 1.0, True, True),
        ("kmeans", 1.31, 1.0, True, False),
        ("kmeans", 0.5, 1.0, False, False),
        ("text_one_process", 30.0, 10.0, True, True),
        ("text_one_process", 29.0, 10.0, True, False),
        ("als_explicit_rmse", 0.917, 0.9, True, True),
        ("als_explicit_rmse", 0.918, 2.0, True, False),
    ],
)
def test_a_case_holds_where_its_bar_is_cleared_and_both_found_the_same(
    name: str, ours: float, theirs: float, agrees: bool, holds: bool
) -> None:
    assert result(BY_NAME[name], [ours], [theirs], Agreement(agrees, "seen"), MORE)["holds"] is holds


def test_the_page_is_made_of_the_results_that_are_kept() -> None:
    results = json.loads(RESULTS.read_text())
    findings = (Path(RESULTS).parent / "findings.md").read_text()
    assert PAGE.read_text() == page(results, findings)
    assert {each["case"] for each in results} <= set(BY_NAME)
    for each in results:  # what is kept was judged by the bar that stands now
        case = BY_NAME[each["case"]]
        assert each["bar"] == case.bar
        assert not each["holds"] or case.clears(each["ours"], each["ratio"])
