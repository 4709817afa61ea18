"""A preload of the local workers: Ctrl-C is for the runner, which ends them in order and without their tracebacks."""

import signal


def dask_setup(worker: object) -> None:
    """Ignore the interrupt that a terminal sends to every process of the group."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
