"""Values that cannot work are refused when a chart is rendered; the message names the key and says what would do."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from bad_values import BAD, GOOD, Bad
from render import ROOT, helm_template


def message(bad: Bad, folder: Path) -> str:
    """Render a chart with bad values and return what helm says, on one line."""
    file = folder / "values.yaml"
    file.write_text(json.dumps(GOOD[bad.chart] | (yaml.safe_load(bad.values) or {})))
    result = helm_template(bad.chart, bad.release, "team", f"--values={file}")
    assert result.returncode != 0, "is accepted"
    # The schema writes a place with slashes, and escapes those of a key.
    dotted = re.sub(r"at '/?([^']*)'", lambda at: at[1].replace("/", ".").replace("~1", "/"), result.stderr)
    return " ".join(dotted.split())


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_bad_values_are_refused(bad: Bad, tmp_path: Path) -> None:
    said = message(bad, tmp_path)
    assert re.search(rf"(?<![\w.]){re.escape(bad.key)}: .*{bad.remedy}", said), said


@pytest.mark.parametrize("chart", GOOD)
def test_the_good_values_are_accepted(chart: str, tmp_path: Path) -> None:
    file = tmp_path / "values.yaml"
    file.write_text(json.dumps(GOOD[chart]))
    result = helm_template(chart, "demo", "team", f"--values={file}")
    assert result.returncode == 0, result.stderr


def test_there_are_many_and_no_two_alike() -> None:
    assert len({(bad.chart, bad.values, bad.release) for bad in BAD}) == len(BAD) >= 100
    assert {bad.chart for bad in BAD} == set(GOOD)


def test_the_charts_that_are_tested_are_those_that_are_there() -> None:
    there = {path.parent.name for path in (ROOT / "charts").glob("*/Chart.yaml")}
    assert there == {*GOOD, "common"}
