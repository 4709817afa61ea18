"""What a scheduler is told of a run, how often, and that no scheduler holds up a run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client

from jobs.cluster import _close_quietly
from jobs.listener import Listener
from jobs.telling import TOPIC, Telling
from tests.processes import Processes


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Recorder(Listener):
    def __init__(self) -> None:
        self.calls: list[Any] = []

    def stage_started(self, name: str, index: int, n_stages: int) -> None:
        self.calls.append((name, index, n_stages))

    def stage_ended(self, name: str, seconds: float) -> None:
        self.calls.append((name, seconds))

    def progress(self, stage: str, done: float, total: float, unit: str) -> None:
        self.calls.append((stage, done, total, unit))

    def metrics(self, values: Any) -> None:
        self.calls.append(values)

    def message(self, text: str) -> None:
        self.calls.append(text)


class Told:
    """A listener of a real client, which waits after each call until what was told is there."""

    def __init__(self, client: Client) -> None:
        self.clock = Clock()
        self.telling = Telling(Listener(), client, self.clock)
        self._client = client
        self._n_before = len(self._events())

    def documents(self) -> list[dict[str, Any]]:
        deadline = time.monotonic() + 10
        while self.telling._events._is_under_way:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return [message for _, message in self._events()[self._n_before :]]

    def _events(self) -> Any:
        return self._client.get_events(TOPIC)


@pytest.fixture
def told(client: Client) -> Told:
    return Told(client)


def test_everything_is_passed_on(client: Client) -> None:
    recorder = Recorder()
    telling = Telling(recorder, client)
    telling.stage_started("fit", 2, 5)
    telling.progress("fit", 1, 2, "rows")
    telling.progress("download", 1, 2, "MB")
    telling.stage_ended("fit", 1.5)
    telling.metrics({"r2": 0.5})
    telling.message("a line")
    expected = [("fit", 2, 5), ("fit", 1, 2, "rows"), ("download", 1, 2, "MB"), ("fit", 1.5), {"r2": 0.5}, "a line"]
    assert recorder.calls == expected


def test_share_and_time_left_are_told_once_a_second_and_the_ends_of_a_stage_always(told: Told) -> None:
    told.telling.stage_started("fit", 2, 5)
    assert told.documents() == [
        {"stage": "fit", "index": 2, "n_stages": 5, "percent": None, "seconds_left": None, "metrics": {}}
    ]
    for done in range(251):
        told.clock.now = done / 100
        told.telling.progress("fit", done, 1000, "rows")
        told.documents()
    told.telling.stage_ended("fit", 2.5)
    _, first, second, last = told.documents()
    assert (first["percent"], first["seconds_left"]) == (10, pytest.approx(9.0))
    assert (second["percent"], second["seconds_left"]) == (20, pytest.approx(8.0))
    assert last == {"stage": "fit", "index": 2, "n_stages": 5, "percent": 100, "seconds_left": 0.0, "metrics": {}}


def test_what_is_not_known_is_null(told: Told) -> None:
    told.telling.stage_started("load", 0, 5)
    told.documents()
    told.clock.now = 1.0
    told.telling.progress("load", 0, 0, "partitions")
    told.clock.now = 2.0
    told.telling.progress("download", 1, 2, "MB")
    assert [(each["percent"], each["seconds_left"]) for each in told.documents()] == [(None, None), (None, None)]


def test_metrics_are_told_once_they_are_known_as_json_can_say_them(told: Told) -> None:
    told.telling.metrics({"r2": np.float64(0.5), "n": 3, "start": "k-means‖", "nan": float("nan"), "of": np.int64(2)})
    told.telling.stage_started("write", 4, 5)
    (document,) = told.documents()
    assert document["metrics"] == {"r2": 0.5, "n": 3, "start": "k-means‖", "nan": None, "of": 2}


def test_behind_a_message_under_way_only_the_newest_waits(told: Told) -> None:
    stages = 1000
    for number in range(stages):
        told.telling.stage_started("fit", number, stages)
    documents = told.documents()
    assert len(documents) < stages
    assert documents[-1]["index"] == stages - 1


def test_a_scheduler_that_is_gone_or_hangs_holds_nothing_up(tmp_path: Path) -> None:
    processes = Processes(tmp_path)
    try:
        processes.start_scheduler()
        client = Client(processes.address, timeout=30)
        telling = Telling(Listener(), client)
        telling.stage_started("load", 0, 5)
        processes.pause_scheduler()
        assert seconds_of_many(telling) < 2
        processes.kill_scheduler()
        assert seconds_of_many(telling) < 2
        _close_quietly(client)
        assert seconds_of_many(telling) < 2
    finally:
        processes.stop()


def seconds_of_many(telling: Telling) -> float:
    start = time.monotonic()
    for number in range(200):
        telling.stage_started("fit", number, 200)
    return time.monotonic() - start
