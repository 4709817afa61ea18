"""Reads a rank's micro-batches ahead of its computing."""

from __future__ import annotations

import queue
import threading

import torch

from jobs.training.plan import Batch, OpenData, Plan, steps

_N_PREFETCHED = 4


class Prefetcher:
    """Reads the micro-batches of one rank of `world_size`, from a step on, in one background thread, a few ahead."""

    def __init__(
        self,
        train: OpenData,
        validation: OpenData | None,
        plan: Plan,
        first: int,
        rank: int,
        world_size: int,
        device: torch.device,
    ) -> None:
        self._train, self._validation, self._plan, self._device = train, validation, plan, device
        self._first, self._rank, self._world_size = first, rank, world_size
        self._queue: queue.Queue[Batch | Exception] = queue.Queue(_N_PREFETCHED)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._fill, name=f"prefetch-{rank}", daemon=True)

    def __enter__(self) -> Prefetcher:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join(timeout=10)  # at most one batch: the next generation's reader is then alone with the data

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
            for step in steps(self._plan, self._first):
                data = self._train if step.is_training else self._validation
                assert data is not None
                for indices in step.micro_batches[self._rank :: self._world_size]:
                    inputs, targets = data.batch(indices, step.epoch)
                    if not self._put((inputs.to(self._device), targets.to(self._device))):
                        return
        except Exception as error:
            self._put(error)

    def _put(self, item: Batch | Exception) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.05)
                return True
            except queue.Full:
                continue
        return False
