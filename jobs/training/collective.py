"""One generation's process group: the ranks meet, sum float64 buffers, and hand their state to those that lack it.

Ranks come and go, a group does not change: whenever they do, those that are there form the next generation. Its
meeting place is a key-value store in the process of its first member (`meeting`), so that a store is lost only with a
member, and then the generation is over anyway. The process group is built straight on the store, never as
torch.distributed's global default.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore  # torch.distributed hides its type

from jobs.training.meeting import MeetingPlace, MeetingStore

T = TypeVar("T")

_MEETING_POLL_S = 0.005
# A sum over GPUs takes about as long; waiting for it in torch could not be interrupted.
_GPU_POLL_S = 0.0001
# Everyone has arrived when the connections are made: who is not there in this time has died since.
_CONNECT_TIMEOUT_S = 10.0
_CHUNK_BYTES = 256 << 20
# A group with a peer that hangs cannot be taken down before it answers; it stays until the process ends.
_abandoned: list[Any] = []


class CollectiveError(RuntimeError):
    """The other ranks cannot be reached (any more), or did not answer in time, or form a new generation."""


@dataclass(frozen=True)
class Peer:
    """A member as others see it: who, where they meet it and with which key, and its GPU (None: it has none)."""

    member: str
    host: str
    port: int
    gpu: str | None
    key: str = field(repr=False)

    @classmethod
    def of(cls, member: str, place: MeetingPlace, device: torch.device) -> Peer:
        """Return what others need to know of the member that is this process."""
        return cls(member, place.host, place.port, _gpu(device), place.key)


@dataclass(frozen=True)
class Form:
    """A generation: its number and its members in order of their ranks."""

    generation: int
    peers: tuple[Peer, ...]

    @property
    def members(self) -> tuple[str, ...]:
        """Who they are."""
        return tuple(peer.member for peer in self.peers)


class Group:
    """The members of one generation.

    Parameters
    ----------
    form
        Who they are.
    member
        Which of them this process is.
    timeout_s
        Longest wait for the others, when meeting and in each sum.
    is_over
        Whether the generation has lost somebody: looked at while waiting, so that a wait for one who hangs ends.
    is_followed
        Whether there is a later generation, whoever is in it. No more members are let in before one has kept a step,
        so a generation that has not met by then never will.
    """

    def __init__(
        self,
        form: Form,
        member: str,
        timeout_s: float,
        is_over: Callable[[], bool],
        is_followed: Callable[[], bool],
    ) -> None:
        self.generation = form.generation
        self.rank, self.world_size = form.members.index(member), len(form.peers)
        gpus = [peer.gpu for peer in form.peers]
        # NCCL refuses two ranks on one GPU.
        self.backend = "nccl" if None not in gpus and len(set(gpus)) == self.world_size else "gloo"
        self._timeout_s, self._is_over, self._is_followed = timeout_s, is_over, is_followed
        self._changed = threading.Event()
        self._group: Any = None
        if self.world_size == 1:
            return
        try:
            # The store is kept as long as the group, which asks it.
            self._store, self._group = self._unless_followed(lambda: self._joined(form))
        except RuntimeError as error:  # torch raises its DistError, a RuntimeError, on time-outs and refusals
            if isinstance(error, CollectiveError):
                raise
            raise CollectiveError(f"generation {form.generation} cannot form: {_first_line(error)}") from error

    def _met(self, form: Form) -> MeetingStore:
        """Return the first member's store once all members are at it."""
        # A connection of this generation's own, also to the store in this process: one waits while another is answered.
        deadline = time.monotonic() + self._timeout_s
        store = self._reached(form.peers[0], deadline)
        here = PrefixStore(f"meeting-{form.generation}", store)
        here.add("arrived", 1)
        while here.add("arrived", 0) < self.world_size:
            self._pause(deadline, f"{self.world_size} members did not meet")
        return store

    def _reached(self, first: Peer, deadline: float) -> MeetingStore:
        while True:
            try:
                return MeetingStore(first.host, first.port, first.key, _CONNECT_TIMEOUT_S)
            except OSError as error:
                self._pause(deadline, f"{first.member} is not reached: {error}")

    def _pause(self, deadline: float, what: str) -> None:
        if self._is_followed():
            raise self._over()
        if time.monotonic() > deadline:
            raise CollectiveError(f"generation {self.generation}: {what} in {self._timeout_s:.0f} s")
        time.sleep(_MEETING_POLL_S)

    def _unless_followed(self, join: Callable[[], T]) -> T:
        """Return what `join` does; torch alone would wait for seconds for a member that has died meanwhile."""
        joined: Future[T] = Future()

        def run() -> None:
            try:
                joined.set_result(join())
            except BaseException as error:
                joined.set_exception(error)

        threading.Thread(target=run, name="join", daemon=True).start()
        while not joined.done():
            if self._is_followed():
                raise self._over()
            wait([joined], _MEETING_POLL_S)
        return joined.result()

    def _joined(self, form: Form) -> tuple[MeetingStore, Any]:
        """Return the first member's store and this generation's process group, once all members are in it."""
        store = self._met(form)
        return store, self._connected(PrefixStore(f"generation-{form.generation}", store), form.peers[self.rank].host)

    def _connected(self, store: Any, host: str) -> Any:
        if self.backend == "nccl":
            # By default torch ends the whole process when a peer is gone; here the generation ends.
            os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = "0"
            # Nor may threads of torch's own ask the store, which is written in Python: a group that is taken down waits
            # for them, and keeps them from running Python meanwhile. That a process hangs, its keeper finds out.
            os.environ["TORCH_NCCL_ENABLE_MONITORING"] = os.environ["TORCH_NCCL_DUMP_ON_TIMEOUT"] = "0"
            nccl = dist.ProcessGroupNCCL.Options()
            nccl._timeout = timedelta(seconds=self._timeout_s)
            group: Any = dist.ProcessGroupNCCL(store, self.rank, self.world_size, nccl)
            group.allreduce([torch.zeros(1, device="cuda")]).wait()  # the first sum is what connects
            return group
        gloo = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        gloo._devices = [dist.ProcessGroupGloo.create_device(hostname=host)]
        gloo._timeout = timedelta(seconds=_CONNECT_TIMEOUT_S)
        return dist.ProcessGroupGloo(store, self.rank, self.world_size, gloo)

    def sum_(self, buffer: Tensor) -> None:
        """Replace `buffer` (n,) by its sum over all ranks.

        Raises
        ------
        CollectiveError
            When a rank is gone or late, or the generation is over.
        """
        if self.world_size == 1:
            return
        on_host = self.backend == "gloo" and buffer.device.type != "cpu"
        shared = buffer.cpu() if on_host else buffer
        options = dist.AllreduceOptions()
        options.timeout = timedelta(seconds=self._timeout_s)
        self._wait(lambda: self._group.allreduce([shared], options))
        if on_host:
            buffer.copy_(shared)

    def gather(self, number: int) -> list[int]:
        """Return every rank's number, by rank."""
        numbers = torch.zeros(self.world_size, dtype=torch.float64)
        numbers[self.rank] = number
        self._sum_anywhere(numbers)
        return [int(n) for n in numbers.tolist()]

    def hand_out(self, state: bytes | None, source: int) -> bytes:
        """Return the `state` of the rank `source` on every rank."""
        [n] = {n for n in self.gather(len(state or b"")) if n} or {0}
        data = torch.zeros(n, dtype=torch.uint8)
        if state:
            data.copy_(torch.frombuffer(bytearray(state), dtype=torch.uint8))
        options = dist.BroadcastOptions()
        options.rootRank = source
        options.timeout = timedelta(seconds=self._timeout_s)
        for chunk in data.split(_CHUNK_BYTES):
            self._broadcast(chunk, options)
        return data.numpy().tobytes()

    def _broadcast(self, chunk: Tensor, options: Any) -> None:
        shared = chunk.cuda() if self.backend == "nccl" else chunk
        self._wait(lambda: self._group.broadcast([shared], options))
        if shared is not chunk:
            chunk.copy_(shared)

    def _sum_anywhere(self, numbers: Tensor) -> None:
        shared = numbers.cuda() if self.backend == "nccl" else numbers
        self.sum_(shared)
        if shared is not numbers:
            numbers.copy_(shared)

    def _wait(self, begin: Callable[[], Any]) -> None:
        try:
            if self._is_over():
                raise self._over()
            work = begin()
            if self.backend == "nccl":
                work.wait()  # only orders what the GPU does; with a time limit it would block, whatever happens
                self._until_gpu_ended()
            else:
                self._until_ended(work)
                work.wait(timedelta(seconds=self._timeout_s))
        except RuntimeError as error:
            if isinstance(error, CollectiveError):
                raise
            raise CollectiveError(f"rank {self.rank}: lost the others: {_first_line(error)}") from error

    def _until_ended(self, work: Any) -> None:
        ended = threading.Event()

        def end(_: Any) -> None:
            ended.set()
            self._changed.set()

        work.get_future().add_done_callback(end)
        deadline = time.monotonic() + self._timeout_s
        while not ended.is_set():
            if self._is_over():
                raise self._over()
            if not self._changed.wait(max(deadline - time.monotonic(), 0)):
                raise self._late()
            self._changed.clear()

    def _until_gpu_ended(self) -> None:
        """Wait for what the GPU has to do; a sum that lacks a peer would go on for ever, until it is aborted."""
        ended, deadline = torch.cuda.Event(), time.monotonic() + self._timeout_s
        ended.record()
        while not ended.query():
            if self._is_over():
                raise self._over()
            if time.monotonic() > deadline:
                raise self._late()
            time.sleep(_GPU_POLL_S)

    def _over(self) -> CollectiveError:
        return CollectiveError(f"generation {self.generation} is over: it lost a member")

    def _late(self) -> CollectiveError:
        return CollectiveError(f"rank {self.rank}: the others did not answer in {self._timeout_s:.0f} s")

    def look_again(self) -> None:
        """Wake whoever waits, since `is_over` may have changed; any thread may call."""
        self._changed.set()

    def close(self, is_broken: bool) -> None:
        """Leave; ranks that still wait for this one get an error at once, unless it waits for one that hangs."""
        if self._group is not None:
            self._group.abort()
            if is_broken:
                _abandoned.append((self._store, self._group))
            self._group = None


def pick_device() -> torch.device:
    """Choose the device of this worker: CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _gpu(device: torch.device) -> str | None:
    if device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(device)
    return f"{socket.gethostname()}/{getattr(properties, 'uuid', os.environ.get('CUDA_VISIBLE_DEVICES', 0))}"


def _first_line(error: Exception) -> str:
    text = str(error).strip().partition(" This is typically caused")[0]
    return text.splitlines()[0][:300] if text else type(error).__name__
