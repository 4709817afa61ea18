"""Keys are handed out once at a time, and none is lost."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.queue import Queue


def test_a_key_that_is_added_while_it_is_worked_on_comes_again_afterwards() -> None:
    queue: Queue[str] = Queue()
    queue.add("a")
    queue.add("a")
    assert queue.take() == "a"
    queue.add("a")
    queue.add("b")
    assert queue.take() == "b"
    assert len(queue) == 0  # a is in work
    queue.done("a")
    assert queue.take() == "a"


def test_a_later_time_does_not_put_off_an_earlier_one_and_a_look_makes_both_void() -> None:
    now = [0.0]
    queue: Queue[str] = Queue(lambda: now[0])
    queue.add_after("a", 5)
    queue.add_after("a", 50)
    now[0] = 6.0
    assert queue.take() == "a"
    queue.done("a")
    now[0] = 60.0
    queue.add("b")
    assert queue.take() == "b"
    assert len(queue) == 0


@pytest.mark.parametrize("pauses", [[50.0, 5.0], [5.0, 50.0]])
def test_a_look_makes_all_void_that_was_to_come(pauses: list[float]) -> None:
    now = [0.0]
    queue: Queue[str] = Queue(lambda: now[0])
    for pause in pauses:
        queue.add_after("a", pause)
    queue.add("a")
    assert queue.take() == "a"
    queue.done("a")
    queue.add_after("a", 70)
    now[0] = 60.0
    queue.add("b")
    assert queue.take() == "b"
    assert len(queue) == 0


def test_waiting_ends_when_the_queue_is_closed() -> None:
    queue: Queue[str] = Queue()
    taken: list[str | None] = []
    thread = threading.Thread(target=lambda: taken.append(queue.take()))
    thread.start()
    queue.close()
    thread.join(5)
    assert taken == [None]


@given(st.lists(st.sampled_from("abc"), max_size=60), st.integers(1, 4))
def test_no_two_threads_work_on_a_key_and_every_change_is_seen(added: list[str], n_threads: int) -> None:
    queue: Queue[str] = Queue()
    version, seen = dict.fromkeys("abc", 0), dict.fromkeys("abc", 0)
    in_work: set[str] = set()

    def work() -> None:
        while (key := queue.take()) is not None:
            assert key not in in_work
            in_work.add(key)
            seen[key] = version[key]
            in_work.discard(key)
            queue.done(key)

    threads = [threading.Thread(target=work) for _ in range(n_threads)]
    for thread in threads:
        thread.start()
    for key in added:
        version[key] += 1
        queue.add(key)
    while seen != version:
        pass
    queue.close()
    for thread in threads:
        thread.join(5)
