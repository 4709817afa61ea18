"""Where a job's tasks run: the cluster that DASK_SCHEDULER_ADDRESS names, else one on this machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import dask
from distributed import Client, LocalCluster

from jobs.errors import DaskyardError, SpecError, WorkersLostError

SCHEDULER_TIMEOUT_S = 60
WORKERS_TIMEOUT_S = 300
# A job whose workers are all gone ends with an error after this time instead of waiting for ever.
_LOCAL = {"distributed.scheduler.no-workers-timeout": "60s", "distributed.scheduler.allowed-failures": 2}


@contextmanager
def connected(n_workers: int | None = None) -> Iterator[Client]:
    """Yield a client of a cluster that has at least one worker.

    Parameters
    ----------
    n_workers : int, optional
        Worker processes of the local cluster, of one thread each; by default one a core.

    Raises
    ------
    SpecError
        When `n_workers` is given although a running cluster is named.
    WorkersLostError
        When the scheduler or its workers cannot be reached in time.
    """
    address = dask.config.get("scheduler-address", None)
    if address:
        if n_workers is not None:
            raise SpecError(
                "--workers: the cluster that DASK_SCHEDULER_ADDRESS names has its own; leave one of them out"
            )
        with _client(address) as client:
            yield client
        return
    # They warn of what is harmless on one machine: a worker that takes its time to end, a message without a size.
    for name in ("distributed.nanny", "distributed.sizeof"):
        logging.getLogger(name).setLevel(logging.ERROR)
    n_workers = n_workers or len(os.sched_getaffinity(0))
    with (
        dask.config.set(_LOCAL),
        LocalCluster(
            n_workers=n_workers, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@contextmanager
def _client(address: str) -> Iterator[Client]:
    try:
        client = Client(address, timeout=SCHEDULER_TIMEOUT_S)
    except (OSError, ValueError) as error:
        raise WorkersLostError(
            f"{address}: no scheduler answers within {SCHEDULER_TIMEOUT_S} s; start it or mend DASK_SCHEDULER_ADDRESS"
        ) from error
    with client, _scheduler_held(client, address):
        try:
            client.wait_for_workers(1, timeout=WORKERS_TIMEOUT_S)
        except TimeoutError as error:
            raise WorkersLostError(
                f"{address}: no worker within {WORKERS_TIMEOUT_S} s; start workers, then run the job again"
            ) from error
        yield client


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
