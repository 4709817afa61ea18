"""A rank's line to its keeper: what it is told (generations, to leave), what it tells (that it lives, how far it is).

Made in the rank's own process. A thread listens, another tells twice a second that the process lives and what it does:
who hangs is found by that, since everybody else only waits for it.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import IO, Any, Protocol

from jobs.training.collective import Form, Peer

ALIVE_EVERY_S = 0.5
# The driver's deadlines are shorter; this one is for a driver that is lost without its keepers noticing.
_FORM_TIMEOUT_S = 3600.0


class Control(Protocol):
    """Who leads a rank: its keeper, or nobody where it trains alone."""

    def next_form(self, after: int) -> Form:
        """Wait for a generation later than `after`."""
        ...

    def wants_change(self) -> bool:
        """Whether the generation is to end with this step."""
        ...

    @property
    def is_leaving(self) -> bool:
        """Whether this rank was told to go."""
        ...

    def is_over(self) -> bool:
        """Whether the generation lost somebody."""
        ...

    def is_followed(self) -> bool:
        """Whether a later generation has been told of."""
        ...

    def on_news(self, wake: Callable[[], None]) -> None:
        """Call `wake` whenever an answer to the questions above may have changed."""
        ...

    def doing(self, phase: str) -> None:
        """Take note of what the rank does now; `wait` is waiting for others."""
        ...

    def tell(self, kind: str, **facts: Any) -> None:
        """Pass a message on."""
        ...


def thread_name() -> IO[bytes]:
    """Open what `top` and `ps` show as this thread's name, up to 15 letters; elsewhere than on Linux, nothing does."""
    try:
        return open(f"/proc/self/task/{threading.get_native_id()}/comm", "wb", buffering=0)
    except OSError:
        return open(os.devnull, "wb", buffering=0)


class Led:
    """The line to a keeper. Made by the thread that trains, which `top` shows by what it does."""

    def __init__(self, channel: Connection, member: str) -> None:
        self._channel, self._member, self._sending = channel, member, threading.Lock()
        self._news = threading.Condition()
        self._form: Form | None = None
        self._current: Form | None = None
        self._wake: Callable[[], None] = lambda: None
        self._phase, self._since, self._name = "start", time.monotonic(), thread_name()
        self.is_leaving = False
        for target in (self._listen, self._live):
            threading.Thread(target=target, name=f"control-{target.__name__}", daemon=True).start()

    def leave_on_sigterm(self) -> None:
        """Go at the end of the step when told to; main thread only."""
        signal.signal(signal.SIGTERM, lambda *_: self._leave())

    def next_form(self, after: int) -> Form:
        """Wait for a generation later than `after`, and enter it."""
        with self._news:
            if not self._news.wait_for(lambda: self._form and self._form.generation > after, _FORM_TIMEOUT_S):
                raise TimeoutError(f"no generation after {after} in {_FORM_TIMEOUT_S:.0f} s; see the driver's log")
            self._current = self._form
            assert self._current is not None
            return self._current

    def wants_change(self) -> bool:
        """Whether the generation is to end with this step."""
        return self.is_leaving or self.is_followed()

    def is_over(self) -> bool:
        """Whether a later generation has been told of that lacks one of this one's members."""
        form, current = self._form, self._current
        if form is current or form is None or current is None:
            return False
        return not set(current.members) <= set(form.members)

    def is_followed(self) -> bool:
        """Whether a later generation has been told of."""
        return self._form is not self._current

    def on_news(self, wake: Callable[[], None]) -> None:
        """Call `wake` whenever a generation was told of."""
        self._wake = wake

    def doing(self, phase: str) -> None:
        """Take note of what the rank does now."""
        self._phase, self._since = phase, time.monotonic()
        self._name.write(f"rank: {phase}".encode())

    def tell(self, kind: str, **facts: Any) -> None:
        """Send a message to the keeper; without one, this process has no purpose."""
        try:
            with self._sending:
                self._channel.send({"kind": kind, **facts})
        except OSError:
            os._exit(1)

    def _leave(self) -> None:
        self.is_leaving = True

    def _listen(self) -> None:
        while True:
            try:
                generation, peers = self._channel.recv()
            except (EOFError, OSError):
                os._exit(1)  # the worker is gone
            form = Form(generation, tuple(Peer(*peer) for peer in peers))
            if self._member not in form.members:
                continue  # of others, whom this one is to join later
            with self._news:
                if self._form is None or generation > self._form.generation:
                    self._form = form
                    self._news.notify_all()
            self._wake()

    def _live(self) -> None:
        while True:
            self.tell("alive", phase=self._phase, seconds=time.monotonic() - self._since)
            time.sleep(ALIVE_EVERY_S)


class Unled:
    """Nobody: the rank is alone, in the process of whoever asked for the fit."""

    is_leaving = False

    def next_form(self, after: int) -> Form:
        """Return the only generation."""
        return Form(1, (Peer("here", "", 0, None, ""),))

    def wants_change(self) -> bool:
        """Never."""
        return False

    def is_over(self) -> bool:
        """Never."""
        return False

    def is_followed(self) -> bool:
        """Never."""
        return False

    def on_news(self, wake: Callable[[], None]) -> None:
        """Ignore."""

    def doing(self, phase: str) -> None:
        """Ignore."""

    def tell(self, kind: str, **facts: Any) -> None:
        """Ignore."""
