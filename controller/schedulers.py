"""Asking schedulers over HTTP what they know of their work (`jobs.pods.state` serves it)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import urllib3

PATH = "/daskyard/state"
PORT = 8787
ASK_S = 3.0
MAX_BYTES = 4 << 20

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
            state = json.loads(content)
        except ValueError as error:
            raise Unreachable(f"{url}: not JSON") from error
        if not isinstance(state, dict) or not {"demands", "workers"} <= state.keys():
            raise Unreachable(f"{url}: an answer without demands and workers")
        return state
