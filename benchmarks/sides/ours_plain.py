"""The cases as Daskyard does them, on a cluster without TLS: what encryption costs is the difference to `ours`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import dask
from distributed import Client, LocalCluster
from distributed.system import MEMORY_LIMIT

from benchmarks.sides import ours
from jobs import cluster
from jobs.environment import restored


@contextmanager
def connected(n_workers: int) -> Iterator[Client]:
    """Yield a client of the same cluster as `jobs.cluster.connected` makes, but for TLS."""
    limit = MEMORY_LIMIT // n_workers
    with (
        dask.config.set(cluster._LOCAL | cluster._memory_settings(limit)),
        restored(dask.config.get("distributed.nanny.pre-spawn-environ")),
        LocalCluster(
            n_workers=n_workers,
            threads_per_worker=1,
            memory_limit=limit,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
        ) as local,
        Client(local, direct_to_workers=True) as client,
        cluster._frozen(),
    ):
        yield client


if __name__ == "__main__":
    ours.connected = connected
    ours.main()
