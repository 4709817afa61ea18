"""The ranks' meeting place and their one collective: a sum over all ranks of a float64 buffer.

The process group is built straight on a key-value store that rank 0's worker hosts, never as torch.distributed's
global default: ranks may be threads of one process, several fits may run at once, and nothing is left behind.
"""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from distributed import get_worker
from distributed.comm import get_address_host
from torch._C._distributed_c10d import PrefixStore, TCPStore  # torch.distributed hides their types


class CollectiveError(RuntimeError):
    """The other ranks cannot be reached (any more), or did not answer in time."""


class StoreHost:
    """A key-value store on the worker that made it, which lives as long as Dask keeps this object there.

    Pickling it (Dask may try when it moves or spills results) keeps the address only.
    """

    def __init__(self, timeout_s: float) -> None:
        self.address = (own_host(), 0)
        self._store: TCPStore | None = TCPStore(
            self.address[0],
            0,
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=timeout_s),
        )
        self.address = (self.address[0], self._store.port)

    def __getstate__(self) -> dict[str, Any]:
        return {"address": self.address, "_store": None}


def store_address(host: StoreHost) -> tuple[str, int]:
    """Return the store's host and port; runs where the store is."""
    return host.address


def own_host() -> str:
    """Return the address at which other workers reach this one."""
    return str(get_address_host(get_worker().address))


def pick_device() -> torch.device:
    """Choose the device of this worker: CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Group:
    """All ranks of one fit.

    Parameters
    ----------
    address
        Host and port of the store.
    rank, world_size
        Which of how many.
    device
        Where the buffers lie. NCCL is used where each rank has a GPU of its own, gloo elsewhere.
    timeout_s
        Longest wait for the others, when meeting and in each sum.

    Raises
    ------
    CollectiveError
        When they did not meet in time, or this rank had been there before (its worker was restarted).
    """

    def __init__(
        self, address: tuple[str, int], rank: int, world_size: int, device: torch.device, timeout_s: float
    ) -> None:
        self.rank, self.world_size = rank, world_size
        self._timeout = timedelta(seconds=timeout_s)
        try:
            store = TCPStore(*address, is_master=False, wait_for_workers=False, timeout=self._timeout, use_libuv=True)
            if store.add(f"seen/{rank}", 1) != 1:
                raise CollectiveError(f"rank {rank} started twice: its worker was restarted")
            devices = self._exchange(store, _device_name(device))
            # NCCL refuses two ranks on one GPU.
            self.backend = "nccl" if None not in devices and len(set(devices)) == world_size else "gloo"
            self._group = self._make(store)
        except RuntimeError as error:  # torch raises its DistError, a RuntimeError, on time-outs and refusals
            if isinstance(error, CollectiveError):
                raise
            raise CollectiveError(f"rank {rank}: cannot join the others: {_first_line(error)}") from error
        self._store = store

    def _exchange(self, store: TCPStore, name: str | None) -> list[str | None]:
        store.set(f"device/{self.rank}", name or "cpu")
        names = [store.get(f"device/{rank}").decode() for rank in range(self.world_size)]
        return [None if name == "cpu" else name for name in names]

    def _make(self, store: TCPStore) -> Any:
        if self.backend == "nccl":
            nccl = dist.ProcessGroupNCCL.Options()
            nccl._timeout = self._timeout
            return dist.ProcessGroupNCCL(PrefixStore("nccl", store), self.rank, self.world_size, nccl)
        gloo = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        gloo._devices = [dist.ProcessGroupGloo.create_device(hostname=own_host())]
        gloo._timeout = self._timeout
        return dist.ProcessGroupGloo(PrefixStore("gloo", store), self.rank, self.world_size, gloo)

    def sum_(self, buffer: torch.Tensor) -> None:
        """Replace `buffer` (n,) by its sum over all ranks.

        Raises
        ------
        CollectiveError
            When a rank is gone or late.
        """
        if self.world_size == 1:
            return
        on_host = self.backend == "gloo" and buffer.device.type != "cpu"
        shared = buffer.cpu() if on_host else buffer
        try:
            self._group.allreduce([shared]).wait(self._timeout)
        except RuntimeError as error:
            raise CollectiveError(f"rank {self.rank}: lost the others: {_first_line(error)}") from error
        if on_host:
            buffer.copy_(shared)
        elif buffer.device.type == "cuda":
            torch.cuda.synchronize(buffer.device)

    def close(self) -> None:
        """Leave; ranks that still wait for this one get an error at once."""
        self._group.abort()
        del self._group, self._store


class Alone:
    """The group of a rank that has no others: nobody to meet, nothing to add."""

    def sum_(self, buffer: torch.Tensor) -> None:
        """Leave `buffer` as it is."""

    def close(self) -> None:
        """Leave."""


def _device_name(device: torch.device) -> str | None:
    if device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(device)
    return f"{socket.gethostname()}/{getattr(properties, 'uuid', os.environ.get('CUDA_VISIBLE_DEVICES', 0))}"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
