"""The Dask task behind a rank: starts its process, passes messages between it and the driver, and ends it.

The task runs as long as the rank does, so the scheduler knows that the worker is busy, and cancelling the task ends the
rank. Messages to the driver are events of a topic; the driver's come by `Client.run`, which finds the keepers.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import cloudpickle
from distributed import get_worker
from distributed.comm import get_address_host
from distributed.core import Status

from jobs.errors import WorkersLostError
from jobs.training.metrics import Metrics
from jobs.training.processes import RankProcess, Start, Surroundings, fork_rank

_POLL_S = 0.05
# A rank's process may have to import torch first.
_FIRST_WORD_TIMEOUT_S = 60.0
_CLOSING = (Status.closing_gracefully, Status.closing, Status.closed)

_keepers: dict[str, Keeper] = {}


class RankLostError(WorkersLostError):
    """A rank's process ended before its fit did."""


@dataclass(frozen=True)
class Orders:
    """What a keeper is to do.

    Attributes
    ----------
    member, topic
        The rank's name, and where its messages go.
    plan
        Pickled: the worker's own process has no use for torch.
    data
        A pickled `DataOnWorkers`, where the data has to be fetched by this process.
    modules
        What the plan needs; see `fork_rank`.
    n_threads
        torch's; None is as many as the worker has.
    is_on_cpu
        Whether it keeps off CUDA.
    hang_timeout_s, work_timeout_s
        Longest silence of the process, and longest time for anything but waiting for others, before it is killed.
    """

    member: str
    topic: str
    plan: bytes = field(repr=False)
    data: bytes | None = field(repr=False)
    modules: tuple[str, ...]
    n_threads: int | None
    is_on_cpu: bool
    hang_timeout_s: float
    work_timeout_s: float


def keep(orders: Orders) -> bytes | None:
    """Run a rank; return its pickled result, or None where it left or another one failed.

    Raises
    ------
    RankLostError
        When its process died or was killed because it hung.
    Exception
        What the model, the data or the loss raised.
    """
    return Keeper(orders).run()


def deliver(topic: str, generation: int, peers: list[tuple[Any, ...]]) -> None:
    """Tell all ranks of a fit that this process keeps of a generation; runs on each worker."""
    for keeper in list(_keepers.values()):
        if keeper.orders.topic == topic:
            keeper.pass_on((generation, peers))


class Keeper:
    """One rank's keeper."""

    def __init__(self, orders: Orders) -> None:
        self.orders = orders
        self._worker = get_worker()
        self._key = self._worker.get_current_task()
        self._process: RankProcess | None = None
        self._sending = threading.Lock()
        self._is_told_to_leave = False
        self._metrics = Metrics()

    def run(self) -> bytes | None:
        """See `keep`."""
        self._tell({"kind": "started"})
        with self._fetched() as data:
            self._process = fork_rank(self.orders.modules)
            _keepers[self.orders.member] = self
            try:
                self._send(self._start(data))
                return self._followed(self._process)
            except RankLostError as error:
                self._tell({"kind": "lost", "why": str(error)})
                raise
            finally:
                del _keepers[self.orders.member]
                self._metrics.end()
                with self._sending:
                    self._process.end()

    def leave(self) -> None:
        """Have the rank leave at the end of its step."""
        if not self._is_told_to_leave and self._process is not None:
            self._is_told_to_leave = True
            self._process.leave()

    def pass_on(self, message: Any) -> None:
        """Send to the rank; one that is gone is found by who reads."""
        with contextlib.suppress(OSError):
            self._send(message)

    def _send(self, message: Any) -> None:
        with self._sending:
            assert self._process is not None
            self._process.channel.send(message)

    @contextlib.contextmanager
    def _fetched(self) -> Iterator[bytes | None]:
        if self.orders.data is None:
            yield None
            return
        with cloudpickle.loads(self.orders.data).fetched() as data:
            yield cloudpickle.dumps(data)

    def _start(self, data: bytes | None) -> Start:
        # Where all workers are threads of one process, so are the keepers: no rank is elsewhere.
        is_alone = self._worker.address.startswith("inproc://")
        host = "127.0.0.1" if is_alone else str(get_address_host(self._worker.address))
        n_threads = self.orders.n_threads or self._worker.state.nthreads
        return Start(
            self.orders.member, host, self.orders.plan, data, n_threads, self.orders.is_on_cpu, Surroundings.here()
        )

    def _followed(self, process: RankProcess) -> bytes | None:
        # From here on: starting the server that forks can take longer than a rank may be silent.
        phase, heard, limit_s = "start", time.monotonic(), max(self.orders.hang_timeout_s, _FIRST_WORD_TIMEOUT_S)
        while True:
            if process.channel.poll(_POLL_S):
                try:
                    message = process.channel.recv()
                except (EOFError, OSError):
                    raise self._lost(process.end()) from None
                heard, limit_s = time.monotonic(), self.orders.hang_timeout_s
                if message["kind"] == "ended":
                    return self._ended(**message)
                if message["kind"] == "alive":
                    phase = message["phase"]
                    self._check_work(process, phase, message["seconds"])
                else:
                    self._metrics.take(message)
                    self._tell(message)
            if time.monotonic() - heard > limit_s:
                process.end()
                raise self._lost(f"it hung for {limit_s:.0f} s ({phase})")
            if self._is_cancelled():
                return None
            if self._worker.status in _CLOSING:
                self.leave()

    def _check_work(self, process: RankProcess, phase: str, seconds: float) -> None:
        if phase != "wait" and seconds > self.orders.work_timeout_s:
            process.end()
            raise self._lost(f"it did not finish to {phase} in {self.orders.work_timeout_s:.0f} s")

    def _ended(self, kind: str, outcome: str, value: bytes | None, **facts: Any) -> bytes | None:
        self._tell({"kind": outcome, **facts})
        if outcome == "failed":
            raise cloudpickle.loads(value)
        return value

    def _lost(self, why: str) -> RankLostError:
        return RankLostError(f"{self.orders.member}: {why}")

    def _is_cancelled(self) -> bool:
        task = self._worker.state.tasks.get(self._key)
        return task is None or task.state == "cancelled"

    def _tell(self, message: dict[str, Any]) -> None:
        self._worker.log_event(self.orders.topic, {**message, "member": self.orders.member})
