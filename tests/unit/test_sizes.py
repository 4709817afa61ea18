"""Does Dask know what results weigh, in this process and on workers?"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from dask.sizeof import sizeof
from scipy import sparse

from jobs.estimators.tfidf import TermCounts

BYTES = 8 * 10_000


@dataclasses.dataclass
class _Pair:
    left: Any
    right: Any


@pytest.mark.parametrize("kind", [sparse.csr_array, sparse.csc_array, sparse.coo_array, sparse.csr_matrix])
def test_sparse_rows_weigh_what_their_arrays_weigh(kind: Any) -> None:
    rows = kind(np.ones((100, 100)))
    assert BYTES < sizeof(rows) < 3.5 * BYTES


def test_dataclasses_weigh_what_they_hold_however_deep() -> None:
    inner = _Pair(np.zeros(10_000), [np.zeros(10_000)])
    assert 3 * BYTES < sizeof(_Pair(inner, np.zeros(10_000))) < 3.1 * BYTES
    assert sizeof(TermCounts(sparse.csr_array(np.ones((100, 100))), None)) > BYTES
    assert sizeof(_Pair) < 2_000


def test_other_values_weigh_what_dask_says() -> None:
    assert sizeof(np.zeros(10_000)) == BYTES
    assert sizeof(object()) < 100
