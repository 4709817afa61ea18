"""A stop may strike at any call of the command line, also before and behind a command: it ends as a stop does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from jobs.cli import stops

STOPS = [(signal.SIGTERM, 75), (signal.SIGINT, 130), (signal.SIGHUP, 75)]


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


COMMAND = """
import os, signal, sys, time
from jobs.cli import app, stops

@app.app.command()
@app._command
def cleaned() -> None:
{body}

stops.heeded(lambda: app.app(["cleaned"]), app._error)
"""
CLEANS = """
    try:
        print("begun", flush=True)
        time.sleep(30)
    finally:
        time.sleep(1.5)
        print("clean", flush=True)
"""
IMPORTS = """
    import swallows
    print("imported", flush=True)
    time.sleep(30)
"""
SWALLOWS = """
import os, signal, sys, time
try:
    os.kill(os.getpid(), int(sys.argv[1]))
    time.sleep(0.1)
except BaseException:
    pass
"""


@pytest.mark.parametrize(("sent", "code"), STOPS)
def test_what_is_told_twice_in_a_second_is_one_stop(sent: signal.Signals, code: int) -> None:
    """As a terminal tells the whole group, and whoever started the command passes it on: it may clean up."""
    command = [sys.executable, "-c", COMMAND.format(body=CLEANS), str(int(sent))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        for _ in range(3):
            process.send_signal(sent)
            time.sleep(0.2)
        out, said = process.communicate(timeout=30)
    assert (process.returncode, out) == (code, "clean\n")
    assert said.count("\n") == 1


@pytest.mark.parametrize(("sent", "code"), STOPS)
def test_a_stop_within_an_import_is_told_at_its_end(sent: signal.Signals, code: int, tmp_path: Path) -> None:
    """Libraries take what is raised there for a failure of what they import, and go on without."""
    (tmp_path / "swallows.py").write_text(SWALLOWS)
    begin = time.monotonic()
    command = [sys.executable, "-c", COMMAND.format(body=IMPORTS), str(int(sent))]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (code, "imported\n"), done.stderr
    assert done.stderr.count("\n") == 1
    # One that is lost is told again only then.
    assert time.monotonic() - begin < stops.TELL_AGAIN_S


def test_a_hangup_that_is_ignored_stays_so() -> None:
    """As `nohup` has it."""
    script = COMMAND.format(body="    os.kill(os.getpid(), signal.SIGHUP)\n    print('on', flush=True)\n")
    command = ["sh", "-c", 'trap "" HUP; exec "$0" -c "$1"', sys.executable, script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "on\n")


def test_libraries_are_silent_once_the_command_was_told_to_stop() -> None:
    body = """
    import logging
    from distributed.utils import logger
    try:
        logging.getLogger("tornado.application").error("before")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
    finally:
        for name in ("tornado.application", "asyncio", "distributed.client", "distributed.of.late"):
            logging.getLogger(name).error("behind")
        logging.getLogger("daskyard.own").warning("ours")
"""
    command = [sys.executable, "-c", COMMAND.format(body=body)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 75
    assert "before" in done.stderr
    assert "ours" in done.stderr
    assert "behind" not in done.stderr
