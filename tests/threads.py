"""A Dask cluster whose workers are threads of the test's own process: quick to start, and sees what a test changes."""

from __future__ import annotations

from typing import Any

from distributed import Client


def threads(n_workers: int, **more: Any) -> Client:
    """Start workers of one thread each; they end when the client is closed."""
    return Client(processes=False, n_workers=n_workers, threads_per_worker=1, dashboard_address="127.0.0.1:0", **more)
