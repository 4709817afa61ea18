"""A stop may strike at any call of the command line, also before and behind a command: it ends as a stop does."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

STOPS = [(signal.SIGTERM, 75), (signal.SIGINT, 130)]


def strike(sent: signal.Signals, step: int, edge: int, *arguments: str) -> tuple[int, dict[str, tuple[Any, ...]]]:
    """Return how many calls there are, and exit code, standard error, calls and whether committed of those struck."""
    command = [sys.executable, "-m", "tests.strikes", *map(str, (int(sent), step, edge)), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=True)
    found = json.loads(done.stdout)
    return found["n"], found["ends"]


@pytest.mark.parametrize(("sent", "code"), STOPS)
def test_a_stop_at_any_call_ends_as_a_stop(sent: signal.Signals, code: int) -> None:
    n, ends = strike(sent, 1000, 15, "pipelines")
    assert n > 5_000
    assert {at: end for at, end in ends.items() if end[0] != code or "Traceback" in end[1]} == {}


@pytest.mark.parametrize(("sent", "code"), STOPS)
def test_a_stop_at_any_call_from_the_commit_on_ends_as_what_became_of_it(sent: signal.Signals, code: int) -> None:
    n, ends = strike(sent, 10, 50, "run")
    assert n > 300
    assert {end[3] for end in ends.values()} == {True, False}
    for at, (ended, said, _, is_committed) in ends.items():
        assert ended == (0 if is_committed else code), (at, said)
        assert "Traceback" not in said, at


LOST = """
import gc, os, signal, sys, time
from jobs.cli import app, stops

def struck(phase: str, info: object) -> None:
    gc.callbacks.clear()
    os.kill(os.getpid(), int(sys.argv[1]))
    time.sleep(0.01)

@app.app.command()
@app._command
def lost() -> None:
    gc.callbacks.append(struck)
    gc.collect()
    time.sleep(30)

stops.heeded(lambda: app.app(["lost"]), app._error)
"""


@pytest.mark.parametrize(("sent", "code"), STOPS)
def test_a_stop_that_python_ignores_is_told_again_at_once(sent: signal.Signals, code: int) -> None:
    """As Dask's own callback does, which counts what collecting garbage takes: it took one interrupt of ten."""
    begin = time.monotonic()
    command = [sys.executable, "-c", LOST, str(int(sent))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == 1
    assert time.monotonic() - begin < 25
