"""Who leads: one at a time, the next one soon after the first has gone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from controller.api import Api, Object, Unavailable
from controller.lease import DURATION_S, RENEW_S, Lease
from tests.api_server import Store, api_server


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def server() -> Iterator[tuple[Store, Api]]:
    with api_server() as (store, client):
        yield store, Api(client)


def candidate(api: Api, name: str, clock: Clock) -> Lease:
    return Lease(api, "system", "controller", name, clock)


def holder(store: Store) -> str:
    return str((store.get("Lease", "controller", "system") or {})["spec"]["holderIdentity"])


def test_the_second_waits_until_the_first_has_not_renewed_for_long(server: tuple[Store, Api]) -> None:
    (store, api), clock = server, Clock()
    first, second = candidate(api, "a", clock), candidate(api, "b", clock)
    assert first.try_once()
    assert not second.try_once()
    for _ in range(10):
        clock.now += DURATION_S / 2
        assert first.try_once()
        assert not second.try_once()
    clock.now += DURATION_S - 0.1
    assert not second.try_once()
    clock.now += 0.1
    assert second.try_once()
    assert holder(store) == "b"
    assert not first.try_once()


def test_a_holder_that_ends_well_lets_the_next_one_in_at_once(server: tuple[Store, Api]) -> None:
    (_, api), clock = server, Clock()
    first, second = candidate(api, "a", clock), candidate(api, "b", clock)
    assert first.try_once()
    assert not second.try_once()
    first.release()
    assert second.try_once()
    first.release()  # no longer its own
    assert not candidate(api, "c", clock).try_once()


def test_of_many_at_once_one_leads(server: tuple[Store, Api]) -> None:
    (store, api), clock = server, Clock()
    held: list[str] = []

    def run(name: str) -> None:
        if candidate(api, name, clock).try_once():
            held.append(name)

    threads = [threading.Thread(target=run, args=(f"c{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert held == [holder(store)]


class OvertakenApi(Api):
    """Somebody else takes the Lease between a look at it and its change."""

    rival: Lease

    def patch(self, *place: Any, **how: Any) -> Object:
        assert self.rival.try_once()
        return super().patch(*place, **how)


def test_of_two_that_find_it_free_the_slower_does_not_lead() -> None:
    clock = Clock()
    with api_server() as (store, client):
        api, overtaken = Api(client), OvertakenApi(client)
        quicker, slower = candidate(api, "quicker", clock), candidate(overtaken, "slower", clock)
        overtaken.rival = quicker
        assert candidate(api, "old", clock).try_once()
        assert not quicker.try_once()
        assert not slower.try_once()
        clock.now += DURATION_S
        assert not slower.try_once()
        assert holder(store) == "quicker"


class SlowApi(Api):
    """Each call takes as long as it may; from some time on, the API server takes no more changes."""

    def __init__(self, clock: Clock, silent_from: float) -> None:
        self.clock, self.silent_from = clock, silent_from
        self.written_at = 0.0

    def get(self, *place: str, timeout_s: float = 0) -> Object:
        self.clock.now += timeout_s
        return {"metadata": {"resourceVersion": "1"}, "spec": {"holderIdentity": "a"}}

    def patch(self, *place: Any, part: str = "", timeout_s: float = 0) -> Object:
        if self.clock.now < self.silent_from:
            self.written_at = self.clock.now
        self.clock.now += timeout_s
        if self.written_at + timeout_s < self.clock.now:
            raise Unavailable("Lease: no answer")
        return {}


class Never(threading.Event):
    """What is waited for goes by on the clock, and never comes."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def wait(self, timeout: float | None = None) -> bool:
        self.clock.now += timeout or 0
        return False


@pytest.mark.parametrize("silent_s", range(4, 16))
def test_a_leader_that_cannot_renew_stops_before_another_may_lead(silent_s: float) -> None:
    clock = Clock()
    api = SlowApi(clock, clock.now + silent_s)
    first = candidate(api, "a", clock)
    assert first.try_once()
    assert not first.keep(Never(clock))
    assert RENEW_S <= clock.now - api.written_at < DURATION_S
