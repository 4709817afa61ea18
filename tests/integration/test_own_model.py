"""The example with a model of one's own, as its reader runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_the_example_with_a_model_of_ones_own_reads_digits() -> None:
    example = Path(__file__).parents[2] / "examples" / "own_model.py"
    told = subprocess.run([sys.executable, example], capture_output=True, text=True, check=True, timeout=300)
    assert float(told.stdout.splitlines()[-1].split()[-1]) > 0.95
