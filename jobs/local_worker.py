"""A preload of the local workers: what a task raised is told by the job, once, not by each worker with its traceback.

`daskyard run --debug` shows both.
"""

from __future__ import annotations

import logging

import dask

DEBUG = "daskyard.debug"
_OF_A_TASK = "Compute Failed"


def dask_setup(worker: object) -> None:
    """Keep Dask's report of a failed task out of the worker's log, which is the terminal of whoever started the job.

    With it go warnings of what is harmless as a cluster ends: connections that were begun and not taken.
    """
    if not dask.config.get(DEBUG, False):
        logging.getLogger("distributed.worker").addFilter(_is_not_of_a_task)
        logging.getLogger("distributed.comm.tcp").setLevel(logging.ERROR)


def _is_not_of_a_task(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_OF_A_TASK)
