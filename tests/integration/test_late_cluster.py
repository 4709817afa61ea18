"""A job that is started before its cluster waits for the scheduler, for its name, and for the workers that it needs."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import Client

from jobs import cluster
from jobs.errors import SpecError, WorkersLostError
from jobs.workers import workers_of
from tests.processes import Processes


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    processes = Processes(tmp_path)
    yield processes
    processes.stop()


def settings(address: str, **more: Any) -> dask.config.set:
    return dask.config.set({"scheduler-address": address, **{f"daskyard.{key}": more[key] for key in more}})


def test_a_scheduler_that_comes_five_seconds_later_is_waited_for(processes: Processes) -> None:
    timer = threading.Timer(5.0, processes.start_scheduler)
    start = time.monotonic()
    timer.start()
    try:
        with settings(processes.address, start_timeout=60):
            processes.start_worker()
            with cluster.connected() as client:
                assert time.monotonic() - start > 5
                assert client.submit(sum, [1, 2]).result() == 3
    finally:
        timer.join()


def test_a_name_that_is_made_later_is_waited_for(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The resolver does not know the name at first, as that of a Service that is yet to be made."""
    known_at = time.monotonic() + 3
    resolve = socket.getaddrinfo

    def of_the_cluster(host: Any, *arguments: Any, **options: Any) -> Any:
        if host != "late.example":
            return resolve(host, *arguments, **options)
        if time.monotonic() < known_at:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return resolve("127.0.0.1", *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", of_the_cluster)
    processes.start_scheduler()
    processes.start_worker()
    with settings(f"tcp://late.example:{processes.port}", start_timeout=60), cluster.connected() as client:
        assert time.monotonic() >= known_at
        assert client.submit(sum, [1, 2]).result() == 3


@pytest.mark.parametrize("place", ["no-such-name.invalid:8786", "127.0.0.1:9"])
def test_a_scheduler_that_never_comes_is_told_in_time_as_worth_another_try(place: str) -> None:
    start = time.monotonic()
    with (
        settings(f"tcp://{place}", start_timeout=2),
        pytest.raises(WorkersLostError, match=f"tcp://{place}: no scheduler answers within 2 s; start it or mend"),
        cluster.connected(),
    ):
        pass
    assert 1.5 < time.monotonic() - start < 8


def test_an_address_that_is_none_is_told_at_once() -> None:
    start = time.monotonic()
    with settings("nosuch://a:1", start_timeout=60), pytest.raises(WorkersLostError), cluster.connected():
        pass
    assert time.monotonic() - start < 5


def test_as_many_workers_as_the_setting_says_are_waited_for(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DASK_DASKYARD__MIN_WORKERS", "2")
    monkeypatch.setenv("DASK_DASKYARD__START_TIMEOUT", "6")
    told = dask.config.collect_env()["daskyard"]
    processes.start_scheduler()
    processes.start_worker()
    # How long a scheduler takes to start is not what the six seconds are to show.
    with Client(processes.address, timeout=60) as client:
        client.wait_for_workers(1, timeout=60)
    with dask.config.set({"scheduler-address": processes.address, "daskyard": told}):
        start = time.monotonic()
        expected = "fewer than 2 workers within 6 s; start workers, then run the job again"
        with pytest.raises(WorkersLostError, match=expected), cluster.connected():
            pass
        assert 5 < time.monotonic() - start < 20
    with settings(processes.address, start_timeout=60, min_workers=2):
        timer = threading.Timer(1.0, processes.start_worker)
        timer.start()
        with cluster.connected() as client:
            assert len(workers_of(client)) == 2
        timer.join()


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        (
            "start_timeout",
            "soon",
            "daskyard.start-timeout: 'soon' is no number of seconds above 0; write for example",
        ),
        ("start_timeout", 0, "daskyard.start-timeout: 0 is no number"),
        ("min_workers", 0, "daskyard.min-workers: 0 is no whole number of 1 or more; write for example 2"),
        ("min_workers", "two", "daskyard.min-workers: 'two' is no whole number"),
    ],
)
def test_a_setting_that_is_no_number_is_told_before_anything_is_waited_for(
    setting: str, value: Any, message: str
) -> None:
    with (
        settings("tcp://127.0.0.1:9", **{setting: value}),
        pytest.raises(SpecError, match=message),
        cluster.connected(),
    ):
        pass
