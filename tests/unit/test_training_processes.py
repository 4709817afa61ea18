"""Processes of ranks: what they are given, how they end, and that none is left."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time
from importlib.machinery import PathFinder
from pathlib import Path

import dask
import pytest

import jobs
from benchmarks.faults import ranks
from jobs.training import processes
from jobs.training.processes import Surroundings, fork_rank, modules_in
from tests.unit import test_training_membership


def test_how_a_process_ended_is_told() -> None:
    killed, crashed = fork_rank(), fork_rank()
    assert {killed.pid, crashed.pid} <= set(ranks([os.getpid()]))
    os.kill(killed.pid, signal.SIGKILL)
    os.kill(crashed.pid, signal.SIGSEGV)
    assert killed.channel.poll(10)  # its end is seen at once
    with pytest.raises(EOFError):
        killed.channel.recv()
    assert killed.end() == "its process was killed by SIGKILL (out of memory?)"
    assert crashed.channel.poll(10)
    assert crashed.end() == "its process was killed by SIGSEGV"
    assert not {killed.pid, crashed.pid} & set(ranks([os.getpid()]))


def test_a_process_whose_keeper_goes_ends_by_itself() -> None:
    process = fork_rank()
    process.channel.close()
    deadline = time.monotonic() + 10
    # It stays a zombie until its server, which nobody asked, looks.
    while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_server_that_was_killed_is_started_again() -> None:
    first = fork_rank()
    server = int(Path(f"/proc/{first.pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(server, signal.SIGKILL)
    assert first.channel.poll(10)  # its ranks die with it
    assert first.end() == "its process is gone"
    second = fork_rank()
    assert second.pid in ranks([os.getpid()])
    second.end()


def test_modules_that_a_pickle_needs_are_found() -> None:
    assert modules_in(pickle.dumps([test_training_membership.begun, 1])) == (test_training_membership.__name__,)
    assert modules_in(pickle.dumps({"a": 1})) == ()


def test_surroundings_are_those_of_now(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DASKYARD_TEST_OF_NOW", "secret")
    monkeypatch.syspath_prepend(str(tmp_path))
    with dask.config.set({"temporary-directory": str(tmp_path)}):
        here = Surroundings.here()
    assert here.environment["DASKYARD_TEST_OF_NOW"] == "secret"
    assert here.search_path == tuple(sys.path)
    assert here.temporary_directory == str(tmp_path)


def test_a_rank_keeps_what_it_compiles_in_the_folder_of_its_server_unless_the_worker_names_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name, other = processes.CACHES
    monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(other, "/of the worker")
    here = Surroundings.here()
    monkeypatch.setenv(name, "/of the server")
    monkeypatch.setenv(other, "/of the server")
    monkeypatch.setattr("sys.path", list(sys.path))
    with dask.config.set({"temporary-directory": here.temporary_directory}):
        here.take()
        assert [os.environ[each] for each in (name, other)] == ["/of the server", "/of the worker"]


def test_a_server_finds_our_package_where_the_working_folder_has_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "__init__.py").write_text("raise RuntimeError('somebody else')")
    monkeypatch.setattr("sys.path", ["", *sys.path])  # as in a notebook, which changes its folder
    monkeypatch.chdir(tmp_path)
    path = processes._path_to_ours()
    found = PathFinder.find_spec("jobs", path)
    assert found is not None
    assert found.origin == jobs.__file__
    assert path[1:] == processes._search_path()
