"""Who leads: one at a time, the next one soon after the first has gone."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from kubernetes.client import ApiClient, Configuration

from controller.api import Api
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


def test_a_leader_that_cannot_renew_stops_before_another_may_lead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.lease.RETRY_S", 0.01)
    clock = Clock()
    # Nobody listens there.
    first = candidate(Api(ApiClient(Configuration(host="http://127.0.0.1:1"))), "a", clock)
    stopped: list[bool] = []
    thread = threading.Thread(target=lambda: stopped.append(first.keep(threading.Event())))
    thread.start()
    thread.join(0.3)
    assert thread.is_alive()
    clock.now += RENEW_S
    thread.join(20)
    assert stopped == [False]
    assert RENEW_S < DURATION_S
