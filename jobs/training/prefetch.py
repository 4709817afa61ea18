"""Reads a rank's micro-batches ahead of its computing."""

from __future__ import annotations

import queue
import threading

import torch

from jobs.training.plan import Batch, OpenData, Plan, steps

_N_PREFETCHED = 4


class Prefetcher:
    """Reads this rank's micro-batches ahead, in one background thread, a few at most."""

    def __init__(self, data: OpenData, plan: Plan, rank: int, device: torch.device) -> None:
        self._data, self._plan, self._rank, self._device = data, plan, rank, device
        self._queue: queue.Queue[Batch | Exception] = queue.Queue(_N_PREFETCHED)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._fill, name=f"prefetch-{rank}", daemon=True)

    def __enter__(self) -> Prefetcher:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join(timeout=10)

    def next(self) -> Batch:
        """Return the next micro-batch; raises what reading it raised."""
        try:
            item = self._queue.get(timeout=self._plan.timeout_s)
        except queue.Empty as error:
            raise TimeoutError(f"no batch of training data in {self._plan.timeout_s:.0f} s") from error
        if isinstance(item, Exception):
            raise item
        return item

    def _fill(self) -> None:
        torch.set_num_threads(1)
        try:
            for step in steps(self._plan):
                for indices in step.micro_batches[self._rank :: self._plan.world_size]:
                    inputs, targets = self._data.batch(indices, step.epoch)
                    if not self._put((inputs.to(self._device), targets.to(self._device))):
                        return
        except Exception as error:
            self._put(error)

    def _put(self, item: Batch | Exception) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False
