"""Asking schedulers over HTTP what they know of their work (`jobs.pods.state` serves it)."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import urllib3

from jobs.plain import plain_tree

PATH = "/daskyard/state"
PORT = 8787
ASK_S = 3.0
MAX_BYTES = 4 << 20
# Schedulers that do not answer hold up these threads, not the rounds of jobs.
N_THREADS = 32

State = dict[str, Any]
Ask = Callable[[str, str], State]


class Unreachable(Exception):
    """The scheduler did not answer, or not what was asked; the message says which and why."""


class Schedulers:
    """Schedulers by the names of their Services.

    Parameters
    ----------
    url
        Where a Service's port 8787 is, with `{namespace}` and `{service}` in it.
    """

    URL = f"http://{{service}}.{{namespace}}.svc:{PORT}"

    def __init__(self, url: str = URL) -> None:
        self._url = url
        # A pool keeps connections to a few schedulers; those of clusters that have gone are closed as others come.
        self._pool = urllib3.PoolManager(num_pools=64, retries=False, timeout=ASK_S)

    def __call__(self, namespace: str, service: str) -> State:
        """Return the scheduler's state.

        Raises
        ------
        Unreachable
            When there is no such answer.
        """
        url = self._url.format(namespace=namespace, service=service) + PATH
        try:
            answer = self._pool.request("GET", url, preload_content=False)
            try:
                content = answer.read(MAX_BYTES)
            finally:
                answer.release_conn()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Unreachable(f"{url}: no answer ({type(error).__name__})") from error
        if answer.status != 200:
            raise Unreachable(f"{url}: status {answer.status}")
        try:
            state = plain_tree(json.loads(content))
        except (ValueError, RecursionError) as error:
            raise Unreachable(f"{url}: not JSON") from error
        if not isinstance(state, dict) or not {"demands", "workers"} <= state.keys():
            raise Unreachable(f"{url}: an answer without demands and workers")
        return state


class Poll:
    """Answers of schedulers, asked for in threads of their own; each is handed out once.

    Parameters
    ----------
    ask
        Asks one scheduler.
    """

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._pool = ThreadPoolExecutor(N_THREADS, thread_name_prefix="ask")
        self._lock = threading.Lock()
        self._answers: dict[tuple[str, str], State | Unreachable | None] = {}

    def take(self, namespace: str, service: str, then: Callable[[], None]) -> State | None:
        """Return a scheduler's answer; None where it is only being asked: `then` is called when it has answered.

        Raises
        ------
        Unreachable
            When there was no answer.
        """
        key = (namespace, service)
        with self._lock:
            if key not in self._answers:
                self._answers[key] = None  # under way
                self._pool.submit(self._put, key, then)
                return None
            answer = self._answers[key]
            if answer is None:
                return None
            del self._answers[key]
        if isinstance(answer, Unreachable):
            raise answer
        return answer

    def forget(self, namespace: str, service: str) -> None:
        """Forget a scheduler that has gone."""
        with self._lock:
            if self._answers.get((namespace, service)) is not None:
                del self._answers[namespace, service]

    def close(self) -> None:
        """Ask nobody any more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _put(self, key: tuple[str, str], then: Callable[[], None]) -> None:
        try:
            answer: State | Unreachable = self._ask(*key)
        except Unreachable as error:
            answer = error
        except Exception as error:
            answer = Unreachable(f"{'/'.join(key)}: {type(error).__name__}: {error}")
        with self._lock:
            self._answers[key] = answer
        then()
