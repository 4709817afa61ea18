"""Random numbers belong to rows, not to blocks."""

from __future__ import annotations

import numpy as np
import pytest

from jobs.randomness import uniform


def test_random_numbers_of_rows_do_not_depend_on_where_a_block_begins() -> None:
    rows = np.arange(10_000)
    whole = uniform(5, 1, rows)
    np.testing.assert_array_equal(np.concatenate([uniform(5, 1, rows[:77]), uniform(5, 1, rows[77:])]), whole)
    assert (whole > 0).all()
    assert (whole < 1).all()


def test_random_numbers_are_uniform_and_differ_by_seed_and_draw() -> None:
    rows = np.arange(10_000)
    whole = uniform(5, 1, rows)
    assert whole.mean() == pytest.approx(0.5, abs=0.01)
    assert whole.var() == pytest.approx(1 / 12, rel=0.03)
    assert abs(np.corrcoef(whole[1:], whole[:-1])[0, 1]) < 0.03
    for other in (uniform(5, 2, rows), uniform(6, 1, rows)):
        assert abs(np.corrcoef(whole, other)[0, 1]) < 0.03
