"""Where a job's tasks run: the cluster that DASK_SCHEDULER_ADDRESS names, else one on this machine."""

from __future__ import annotations

import gc
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import dask
from dask.utils import parse_bytes
from distributed import Client
from distributed.comm.addressing import get_address_host_port, parse_address
from distributed.system import MEMORY_LIMIT

from jobs.errors import DaskyardError, SpecError, WorkersLostError
from jobs.local_cluster import started
from jobs.local_worker import DEBUG
from jobs.settings import seconds_of

SCHEDULER_TIMEOUT_S = 60
WORKERS_TIMEOUT_S = 300
# Settings of Dask, of which DASK_DASKYARD__START_TIMEOUT and DASK_DASKYARD__MIN_WORKERS are the variables.
START_TIMEOUT = "daskyard.start-timeout"
MIN_WORKERS = "daskyard.min-workers"
_TRY_EVERY_S = 0.25
# A try that gets no answer ends after it: by then the name may lead elsewhere.
_LONGEST_TRY_S = 5.0
# A worker that has imported what a job needs, and nothing else, takes about half of it.
LEAST_MEMORY = 384 << 20
# More than any machine has, and what Dask's messages can still name.
_MOST_MEMORY = 1 << 50
MOST_WORKERS = 1024
_LOCAL = {
    # A job whose workers are all gone ends with an error after this time instead of waiting for ever.
    "distributed.scheduler.no-workers-timeout": "60s",
    "distributed.scheduler.allowed-failures": 2,
    # One that hangs, such as one that was stopped, is started anew: within a minute, with the time that this takes.
    "distributed.scheduler.worker-ttl": "45s",
    # A process looks after itself less often: with Dask's 10, 20 and 500 ms, idle ones take 7 % of a core.
    "distributed.worker.profile.interval": "100ms",
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "2s",
}


def _memory_settings(limit: int) -> dict[str, int | str]:
    """Return how workers of so many bytes keep memory that is freed, and how often they and their nannies look at it.

    Dask has glibc return all of 128 KiB or more to the system each time, and for the next array each page is cleared
    anew: a fifth of the work on text. glibc's own bounds end at 32 and 64 MiB; where memory is little, less is kept.
    Dask looks every 100 ms, which is a third of what idle processes take. At 2 GiB a second a worker gets through the
    quarter of its memory between Dask's bounds, at which it spills and at which it is ended, in twice this interval.
    """
    reused = min(max(limit // 64, 4 << 20), 32 << 20)
    environ = "distributed.nanny.pre-spawn-environ."
    return {
        f"{environ}MALLOC_MMAP_THRESHOLD_": reused,
        f"{environ}MALLOC_TRIM_THRESHOLD_": 2 * reused,
        # A thread's memory is cut into pieces of 64 MiB, of which an empty one is kept where this much is to spare.
        f"{environ}MALLOC_TOP_PAD_": reused,
        "distributed.worker.memory.monitor-interval": f"{min(max(limit // (16 << 20), 100), 400)}ms",
    }


@contextmanager
def connected(n_workers: int | None = None, memory: str | None = None) -> Iterator[Client]:
    """Yield a client of a cluster that has at least one worker, or as many as `MIN_WORKERS` says.

    Parameters
    ----------
    n_workers : int, optional
        Worker processes of the local cluster, of one thread each; by default one a core, if as many fit.
    memory : str, optional
        What each of them may take, such as ``512MiB``; by default they share the machine's. What does not fit goes to
        the disk.

    Raises
    ------
    SpecError
        When `n_workers` or `memory` is given although a running cluster is named, or `memory` is no size,
        or `START_TIMEOUT` or `MIN_WORKERS` no number; or when so many workers do not fit into this machine's memory.
    WorkersLostError
        When the scheduler or its workers cannot be reached in time.
    """
    address = dask.config.get("scheduler-address", None)
    if address:
        for option, value in (("--workers", n_workers), ("--memory", memory)):
            if value is not None:
                raise SpecError(
                    f"{option}: the cluster that DASK_SCHEDULER_ADDRESS names has its own; leave one of them out"
                )
        with _client(address) as client:
            yield client
        return
    # They warn of what is harmless on one machine: a worker that takes its time to end, a message without a size, a
    # connection that was begun as the other side ended.
    for name in ("distributed.nanny", "distributed.sizeof", "distributed.comm.tcp"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if not dask.config.get(DEBUG, False):
        # It shows the traceback of what a caller has asked in vain, who is told as well.
        logging.getLogger("distributed.core").setLevel(logging.CRITICAL)
    n_workers = _n_workers(n_workers)
    limit = MEMORY_LIMIT // n_workers if memory is None else _bytes(memory)
    with (
        started(n_workers, limit, _LOCAL | _memory_settings(limit)) as cluster,
        Client(cluster, direct_to_workers=True) as client,
        _frozen(),
    ):
        yield client


@contextmanager
def _frozen() -> Iterator[None]:
    """Keep what there is out of the garbage collector's sight: to go through it all stops the scheduler for 0.2 s."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _n_workers(wanted: int | None) -> int:
    """Return how many workers to start; SpecError where the machine has no memory for what `wanted` ones are.

    `--memory` does not change that: it bounds what a worker may take, not what it takes before its first task.
    """
    most = min(max(int(MEMORY_LIMIT) // LEAST_MEMORY, 1), MOST_WORKERS)
    if wanted is None:
        return min(len(os.sched_getaffinity(0)), most)
    if not 1 <= wanted <= most:
        raise SpecError(
            f"--workers {wanted}: this machine has room for 1 to {most}, of {LEAST_MEMORY >> 20} MiB or more each; "
            "start fewer"
        )
    return wanted


def _bytes(memory: str) -> int:
    try:
        n_bytes = int(parse_bytes(memory))
    except (ValueError, OverflowError):
        n_bytes = 0
    if not LEAST_MEMORY <= n_bytes <= _MOST_MEMORY:
        raise SpecError(
            f"--memory {memory}: not a size of {LEAST_MEMORY >> 20} MiB or more, up to 1 PiB; write for example 2GiB"
        )
    return n_bytes


@contextmanager
def _client(address: str) -> Iterator[Client]:
    timeout_s, n_workers = seconds_of(START_TIMEOUT), _min_workers()
    start = time.monotonic()
    client = _reached(address, SCHEDULER_TIMEOUT_S if timeout_s is None else timeout_s)
    left_s = WORKERS_TIMEOUT_S if timeout_s is None else max(timeout_s - (time.monotonic() - start), _TRY_EVERY_S)
    with client, _scheduler_held(client, address):
        try:
            client.wait_for_workers(n_workers, timeout=left_s)
        except TimeoutError as error:
            missing = "no worker" if n_workers == 1 else f"fewer than {n_workers} workers"
            waited_s = WORKERS_TIMEOUT_S if timeout_s is None else timeout_s
            raise WorkersLostError(
                f"{address}: {missing} within {waited_s:g} s; start workers, then run the job again"
            ) from error
        yield client


def _reached(address: str, timeout_s: float) -> Client:
    """Return a client of a scheduler that may be started later than the job, and get its name later than that."""
    deadline = time.monotonic() + timeout_s
    try:
        _wait_until_it_listens(address, deadline)
        return Client(address, timeout=max(min(deadline - time.monotonic(), SCHEDULER_TIMEOUT_S), _TRY_EVERY_S))
    except (OSError, ValueError) as error:
        raise WorkersLostError(
            f"{address}: no scheduler answers within {timeout_s:g} s; start it or mend DASK_SCHEDULER_ADDRESS"
        ) from error


def _wait_until_it_listens(address: str, deadline: float) -> None:
    """Try to connect every moment: Dask's own pauses double, and end up as long as it has waited."""
    if parse_address(address)[0] not in ("tcp", "tls"):
        return
    place = get_address_host_port(address)
    while True:
        try:
            left_s = max(deadline - time.monotonic(), _TRY_EVERY_S)
            socket.create_connection(place, timeout=min(left_s, _LONGEST_TRY_S)).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_TRY_EVERY_S)


def _min_workers() -> int:
    value = dask.config.get(MIN_WORKERS, 1)
    if not isinstance(value, int) or value < 1:
        raise SpecError(f"{MIN_WORKERS}: {value!r} is no whole number of 1 or more; write for example 2")
    return value


@contextmanager
def _scheduler_held(client: Client, address: str) -> Iterator[None]:
    """Raise errors met inside as WorkersLostError where the scheduler is gone: a client then fails in many ways."""
    try:
        yield
    except DaskyardError:
        raise
    except Exception as error:
        # One that has found a new scheduler at the address runs, but not without an error that names the address.
        if client.status == "running" and address not in str(error):
            raise
        raise WorkersLostError(f"{address}: connection to the scheduler lost; run the job again") from error
    finally:
        if client.status != "running":
            _close_quietly(client)


def _close_quietly(client: Client) -> None:
    """Close a client that looks for its scheduler, without the traceback that it logs about being interrupted."""
    logger = logging.getLogger("distributed.client")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        client.close()
    finally:
        logger.setLevel(before)
