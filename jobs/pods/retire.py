"""Retires the worker of this pod before it is stopped: ``python -P -m jobs.pods.retire``, the pod's preStop hook.

Without -P, Python would look for `jobs` in the pod's working folder first.

The worker begins nothing more; what it is computing ends; its results move to other workers; then the scheduler
forgets it. So nothing is computed twice, and the next pod may take the name.

Exit code 0 also where there is nothing to save (no scheduler, or one that does not know the worker), 1 when the time
was too short, 2 when the environment does not say which worker.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

_POLL_S = 0.05
_AGAIN_S = 1.0
_CONNECT_S = 5.0
# For the last word to the scheduler after the deadline.
_FAREWELL_S = 5.0


class _NothingToSaveError(Exception):
    """There is no scheduler, or it does not know the worker."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Retire the worker that the environment names; print one line about it and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -P -m jobs.pods.retire", description="Retire this pod's worker.")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="deadline; by default 60")
    deadline = time.monotonic() + parser.parse_args(arguments).timeout
    address, name = os.environ.get("DASK_SCHEDULER_ADDRESS"), os.environ.get("DASK_WORKER_NAME")
    if not address or not name:
        _say("DASK_SCHEDULER_ADDRESS and DASK_WORKER_NAME must say which worker, and whose")
        return 2
    try:
        _find(address, deadline)
        _say(f"{name}: {asyncio.run(_retire(address, name, deadline))}")
    except _NothingToSaveError as error:
        _say(f"{name}: nothing to save, {error}")
    except TimeoutError as error:
        _say(f"{name}: not retired in time, {error}")
        return 1
    return 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _find(address: str, deadline: float) -> None:
    """Return if somebody listens at the address; Dask itself would go on trying where nobody does."""
    place = urlsplit(address)
    seconds = max(deadline - time.monotonic(), _POLL_S)
    try:
        socket.create_connection((place.hostname or "", place.port or 8786), timeout=seconds).close()
    except TimeoutError:
        raise TimeoutError(f"{address} does not answer") from None
    except OSError as error:
        raise _NothingToSaveError(f"no scheduler at {address} ({error.strerror or error})") from None


async def _retire(address: str, name: str, deadline: float) -> str:
    """Retire the worker; return what to say about it."""
    from distributed.core import rpc  # takes a second: not before somebody listens

    async with rpc(address, timeout=_CONNECT_S) as scheduler:
        worker = _Worker(scheduler, name)
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await worker.retire()
        except TimeoutError:
            pass
        if worker.is_leaving:
            # What still runs is about to be killed. Unless the scheduler expects that it takes tasks for the culprits.
            with suppress(OSError, _NothingToSaveError):
                async with asyncio.timeout(_FAREWELL_S):
                    await worker.flush(is_last=True)
        raise TimeoutError(worker.waits_for)


class _Worker:
    """A worker as its scheduler sees it.

    Attributes
    ----------
    is_leaving
        Whether it begins no tasks any more.
    waits_for
        What keeps it from being retired.
    """

    def __init__(self, scheduler: Any, name: str) -> None:
        self._scheduler = scheduler
        self._name = name
        self.is_leaving = False
        self.waits_for = "the scheduler has not moved its results, or does not answer"

    async def retire(self) -> str:
        """Return when all that the worker computed lies elsewhere, and the scheduler has forgotten it."""
        try:
            # Forgetting it at once would have the scheduler begin elsewhere what is running here.
            while (address := await self.flush()) is None or await self._n_begun(address):
                pass
            while await self.flush(is_last=True) is None:
                pass
        except OSError:
            raise _NothingToSaveError("the scheduler went away") from None
        return "retired"

    async def flush(self, is_last: bool = False) -> str | None:
        """Let the worker begin nothing more, and copy its results elsewhere.

        Returns its address, or None after a while where that could not be done. If `is_last` the scheduler forgets it.
        """
        self.is_leaving = True
        retired = await self._scheduler.retire_workers(names=[self._name], close_workers=False, remove=is_last)
        if retired:
            return str(next(iter(retired)))
        self.is_leaving = False
        identity = await self._scheduler.identity(n_workers=-1)
        if self._name not in {str(worker["name"]) for worker in identity["workers"].values()}:
            raise _NothingToSaveError("the scheduler does not know the worker")
        self.waits_for = "no other worker can take its results"
        await asyncio.sleep(_AGAIN_S)
        return None

    async def _n_begun(self, address: str) -> int:
        """Wait until the next of the worker's tasks ends; return how many it had begun, 0 when all were through."""
        from distributed.protocol.pickle import dumps

        try:
            unfinished = await self._scheduler.processing(workers=[address])
        except KeyError:
            raise _NothingToSaveError("the worker went away") from None
        keys = list(unfinished[address])
        self.waits_for = f"{len(keys)} tasks unfinished; they begin again elsewhere"
        request = {"op": "run", "function": dumps(_begun), "args": dumps((keys,)), "wait": True}
        answers = await self._scheduler.broadcast(msg=request, workers=[address], on_error="ignore")
        answer = answers.get(address, {"status": "gone"})
        if answer["status"] != "OK":
            await asyncio.sleep(_AGAIN_S)
            return 1
        return int(answer["result"])


async def _begun(keys: Sequence[Any], dask_worker: Any) -> int:
    """Wait until the next of the tasks `keys` ends, and return how many of them were begun. Runs on the worker.

    The scheduler takes all of them for unfinished; one that this worker has in memory has ended without its knowledge.
    """
    tasks = dask_worker.state.tasks

    def in_state(*states: str) -> set[Any]:
        return {key for key in keys if key in tasks and tasks[key].state in states}

    while dask_worker.status.name != "closing_gracefully":  # it has not heard yet, and may still begin some
        await asyncio.sleep(_POLL_S)
    running = in_state("executing", "long-running")
    n_begun = len(running | in_state("memory", "error", "rescheduled"))
    if n_begun:
        await asyncio.sleep(_POLL_S)
    while running and running == in_state("executing", "long-running"):
        await asyncio.sleep(_POLL_S)
    return n_begun


if __name__ == "__main__":
    sys.exit(main())
