"""What is tried again, how often and after how long."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest

from jobs.errors import InputError, SpecError, StoppedError, StorageError, StorageMissingError, WorkersLostError
from jobs.listener import Listener
from jobs.retries import MAX_RETRIES, pause_s, with_retries


class Recorder(Listener):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


def failing(*errors: BaseException) -> Callable[[], int]:
    """Raise these errors, one a call; then return how many calls there were."""
    left = list(errors)

    def attempt() -> int:
        if left:
            raise left.pop(0)
        return len(errors) + 1

    return attempt


def test_lost_storage_and_workers_are_tried_again_and_told_of() -> None:
    recorder, pauses = Recorder(), []
    errors = StorageError("s3://b: no answer"), WorkersLostError("workers: none left")
    assert with_retries(failing(*errors), 3, recorder, pauses.append) == 3
    assert [message.partition("; again in ")[0] for message in recorder.messages] == [
        "try 1 of 4 failed: s3://b: no answer",
        "try 2 of 4 failed: workers: none left",
    ]
    assert [message.partition("; again in ")[2] for message in recorder.messages] == [f"{p:.0f} s" for p in pauses]


def test_the_last_error_is_raised_as_it_is() -> None:
    recorder, last = Recorder(), WorkersLostError("c")
    with pytest.raises(WorkersLostError) as caught:
        with_retries(failing(StorageError("a"), StorageError("b"), last), 2, recorder, lambda seconds: None)
    assert caught.value is last
    assert caught.value.__context__ is None
    assert len(recorder.messages) == 2


@pytest.mark.parametrize(
    "error",
    [
        SpecError("a"),
        InputError("a"),
        StorageMissingError("a"),
        StoppedError("a"),
        KeyboardInterrupt(),
        ValueError("a bug"),
    ],
)
def test_nothing_else_is_tried_again(error: BaseException) -> None:
    recorder = Recorder()
    with pytest.raises(type(error)) as caught:
        with_retries(failing(error), 5, recorder, lambda seconds: None)
    assert caught.value is error
    assert recorder.messages == []


@pytest.mark.parametrize("stop", [StoppedError("told to stop"), KeyboardInterrupt()])
def test_a_stop_that_was_taken_for_a_failure_is_a_stop(stop: BaseException) -> None:
    def attempt() -> None:
        try:
            raise stop
        except BaseException as error:
            try:
                raise OSError("closed") from None
            except OSError:
                raise WorkersLostError("connection lost") from error

    with pytest.raises(WorkersLostError):
        with_retries(attempt, 5, Recorder(), lambda seconds: pytest.fail("tried again"))


def test_a_stop_is_not_lost_where_a_failure_is_made_do_with() -> None:
    with pytest.raises(StoppedError), contextlib.suppress(Exception):
        raise StoppedError("told to stop")


def test_pauses_double_up_to_a_minute_and_differ() -> None:
    for number in range(1, MAX_RETRIES + 1):
        longest = min(5 * 2 ** (number - 1), 60)
        found = [pause_s(number) for _ in range(50)]
        assert all(0.8 * longest <= seconds <= longest for seconds in found)
        assert len(set(found)) > 1
