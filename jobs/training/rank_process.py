"""What a rank's own process does, from its first message to its end. Forked by rank_server."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import asdict, replace
from multiprocessing.connection import Connection

import cloudpickle
import torch

from jobs.training.collective import pick_device
from jobs.training.control import Led
from jobs.training.meeting import MeetingPlace
from jobs.training.processes import Start
from jobs.training.rank import LeftError, PeerFailedError, Rank


def main(channel: Connection) -> None:
    """Train as one rank, and tell how it ended; returns never."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        start: Start = channel.recv()
    except EOFError:
        os._exit(0)
    control = Led(channel, start.member)
    control.leave_on_sigterm()
    try:
        start.surroundings.take()
        torch.set_num_threads(start.n_threads)
        plan = cloudpickle.loads(start.plan)
        if start.data is not None:
            plan = replace(plan, data=cloudpickle.loads(start.data))
        device = torch.device("cpu") if start.is_on_cpu else pick_device()
        rank = Rank(plan, start.member, device, control, MeetingPlace(start.host))
        result = rank.run()
        facts = {"digest": result.digest, "timings": asdict(result.timings)}
        control.tell("ended", outcome="done", value=cloudpickle.dumps(result), **facts)
    except LeftError:
        control.tell("ended", outcome="left", value=None)
    except PeerFailedError:
        control.tell("ended", outcome="peer failed", value=None)
    except BaseException as error:
        control.tell("ended", outcome="failed", value=_pickled(error))
    os._exit(0)


def _pickled(error: BaseException) -> bytes:
    """Return the error as bytes that can be read again, with where it was raised as a note."""
    error.add_note(_where(error))
    try:
        pickled = cloudpickle.dumps(error)
        cloudpickle.loads(pickled)
    except Exception:  # an error of the user's own may be anything
        return bytes(cloudpickle.dumps(RuntimeError(f"{type(error).__name__}: {error}")))
    return bytes(pickled)


def _where(error: BaseException) -> str:
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None:
        return "in a rank's process"
    return f"in a rank's process, {traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno}"


if __name__ == "__main__":
    main(Connection(int(sys.argv[1])))
