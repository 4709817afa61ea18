"""A preload of the local workers: what goes wrong on them is told by the job, once, not by each with its traceback.

`daskyard run --debug` shows both.
"""

from __future__ import annotations

import errno
import logging
from typing import Any

import dask

from jobs import local_comm

# Before the worker listens and connects.
local_comm.install()

DEBUG = "daskyard.debug"
# Workers tell here of a folder for what they spill that is full.
NO_ROOM_TOPIC = "daskyard-no-room"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
# What this machine lacks, which is no matter of the other end of a connection.
_LACKING = (*NO_ROOM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
# Who tells of lost connections: a filter is of one logger, not of those below it.
_TALKERS = ("worker", "worker.state_machine", "core", "batched", "utils", "comm", "comm.core", "comm.tcp", "comm.utils")
_OF_A_TASK, _OF_SPILLING = "Compute Failed", "Spill to disk failed"
# Of a task that ran as the cluster was closed.
_OF_THE_END = "Async instruction for"


def dask_setup(worker: Any) -> None:
    """Keep Dask's report of a failed task out of the worker's log, which is the terminal of whoever started the job.

    With it go reports of lost connections to a worker that hung or died, whose tasks others do, and warnings of what is
    harmless: connections that were begun and not taken as a cluster ends, and messages without a size.
    """

    def is_shown(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if not str(record.msg).startswith(_OF_SPILLING) or getattr(error, "errno", None) not in NO_ROOM:
            return True
        worker.log_event(NO_ROOM_TOPIC, {"folder": worker.local_directory})
        return bool(dask.config.get(DEBUG, False))

    logging.getLogger("distributed.spill").addFilter(is_shown)
    quiet_removals()
    if not dask.config.get(DEBUG, False):
        for name in _TALKERS:
            logging.getLogger(f"distributed.{name}").addFilter(_is_not_told_elsewhere)
        for name in ("distributed.comm.tcp", "distributed.sizeof"):
            logging.getLogger(name).setLevel(logging.ERROR)


def quiet_removals() -> None:
    """Keep out of the log that Dask does not find its folder any more: `held_folder` has removed it with all in it."""
    if not dask.config.get(DEBUG, False):
        logging.getLogger("distributed.diskutils").setLevel(logging.CRITICAL)


def _is_not_told_elsewhere(record: logging.LogRecord) -> bool:
    if str(record.msg).startswith((_OF_A_TASK, _OF_THE_END)):
        return False
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, OSError) or error.errno in _LACKING
