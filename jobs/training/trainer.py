"""Data-parallel training over Dask workers, one rank on each. Called by the pipelines that train networks.

The driver chooses the workers, has the first host the ranks' meeting place, starts one task per rank, passes progress
on, and makes sure that nobody waits for a rank that is gone.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from distributed import Client, Future, wait
from torch import Tensor, nn

from jobs.errors import DaskyardError, SpecError, WorkersLostError
from jobs.training.collective import CollectiveError, StoreHost, store_address
from jobs.training.plan import Data, Plan
from jobs.training.rank import CancelledFitError, Epoch, PeerFailedError, RankResult, Timings, run_alone, run_rank
from jobs.workers import workers_of

# How long the other ranks have to tell what really happened, once one of them failed.
_GRACE_S = 5.0
_POLL_S = 0.5
# How long a running cluster may take to start the workers that a job wants; the first one gets as long.
_WORKERS_TIMEOUT_S = 300.0
Hardware = Literal["auto", "cpu", "gpu"]
# Consequences of a failure elsewhere, never its cause.
_CONSEQUENCES = (CollectiveError, PeerFailedError, CancelledFitError, CancelledError)


def constant(share: float) -> float:
    """Keep the learning rate: the schedule where none is given."""
    return 1.0


@dataclass(frozen=True)
class TrainResult:
    """A trained model and how the training went.

    Attributes
    ----------
    state_dict
        Weights and buffers, on the CPU.
    history
        One entry per epoch.
    timings
        One entry per rank.
    world_size
        Number of ranks.
    seconds
        From the first step of rank 0 to its last.
    """

    state_dict: dict[str, Tensor]
    history: list[Epoch]
    timings: list[Timings]
    world_size: int
    seconds: float

    @property
    def samples_per_s(self) -> float:
        """Samples per second over all epochs and ranks."""
        return sum(e.samples_per_s * e.seconds for e in self.history) / sum(e.seconds for e in self.history)

    def share_of(self, part: str) -> float:
        """Mean over ranks of the share of time spent in `part`: data_wait_s, compute_s or all_reduce_s."""
        parts = [asdict(timing) for timing in self.timings]
        return float(sum(p[part] / p["total_s"] for p in parts) / len(parts))


@dataclass(frozen=True)
class Trainer:
    """Trains a PyTorch model; the result does not depend on the number of ranks.

    Parameters
    ----------
    model_fn
        Makes the model; torch's generator is seeded when it is called. All functions are pickled by cloudpickle.
    loss_fn
        (outputs, targets) → mean loss of the micro-batch, a scalar.
    optimiser_fn
        Makes the optimiser of a model.
    data
        See `jobs.training.plan.Data`.
    schedule_fn
        Share of all samples seen, in [0, 1) → factor on each parameter group's learning rate.
    batch_size, micro_batch_size
        Samples of a step over all ranks, and of one forward pass. The micro-batches of a step are dealt to the ranks;
        layers that look at a whole batch (BatchNorm) look at a micro-batch.
    seed
        Of the model's start and of the order of samples.
    world_size
        Number of ranks, each on a worker of its own.
    timeout_s
        Longest wait of a rank for the others: when they meet (data is opened then) and in each step.
    hardware
        Which workers train; see `choose_workers`. `cpu` keeps the ranks off CUDA as well.
    n_threads
        torch's, of each rank; None is as many as its worker has. The last digits can depend on it.

    Notes
    -----
    Layers that draw random numbers (dropout) are reproducible where each worker is a process of its own.
    """

    model_fn: Callable[[], nn.Module]
    loss_fn: Callable[[Tensor, Tensor], Tensor]
    optimiser_fn: Callable[[nn.Module], torch.optim.Optimizer]
    data: Data
    schedule_fn: Callable[[float], float] = constant
    epochs: int = 1
    batch_size: int = 512
    micro_batch_size: int = 128
    seed: int = 0
    world_size: int = 1
    timeout_s: float = 600.0
    hardware: Hardware = "auto"
    n_threads: int | None = None

    def fit(self, client: Client, on_progress: Callable[[int, int], None] | None = None) -> TrainResult:
        """Train on `client`'s workers.

        Parameters
        ----------
        client
            Its workers train.
        on_progress
            Called with samples seen and samples in all.

        Raises
        ------
        SpecError
            When there are fewer workers than ranks, or the loss is not finite any more.
        WorkersLostError
            When a worker died, was restarted, or did not answer in time.
        Exception
            What a rank's model, data or loss raised.
        """
        plan = self._plan()
        workers = choose_workers(client, self.world_size, self.hardware)
        n_total = self.epochs * self.data.n_samples
        run = f"fit-{uuid.uuid4().hex[:12]}"
        moments = [time.monotonic()]

        def on_event(event: tuple[float, dict[str, int]]) -> None:
            moments.append(time.monotonic())
            del moments[:-1]
            if on_progress is not None:
                on_progress(event[1]["n_seen"], n_total)

        futures: list[Future] = []
        with _events(client, run, on_event):
            try:
                store = _submit(client, workers[0], f"{run}-store", StoreHost, self.timeout_s)
                located = _submit(client, workers[0], f"{run}-address", store_address, store)
                futures += [store, located]
                _watch(client, [located], workers[:1], self.timeout_s, moments)
                address = located.result()
                ranks = [
                    self._submit_rank(client, worker, rank, plan, address, run) for rank, worker in enumerate(workers)
                ]
                futures += ranks
                _watch(client, ranks, workers, self.timeout_s, moments)
                results: list[RankResult] = client.gather(ranks)
            finally:
                client.cancel(futures, force=True)
        return _assemble(results)

    def fit_here(self) -> TrainResult:
        """Train in this process, without Dask; `world_size` is 1.

        Raises
        ------
        SpecError
            When the loss is not finite any more.
        Exception
            What model, data or loss raised.
        """
        return _assemble([run_alone(self._plan(), self.hardware == "cpu")])

    def _plan(self) -> Plan:
        return Plan(**{name: getattr(self, name) for name in Plan.__dataclass_fields__})

    def _submit_rank(
        self, client: Client, worker: str, rank: int, plan: Plan, address: tuple[str, int], run: str
    ) -> Future:
        # The scheduler then knows that the GPU is in use, and gives it to no other task that asks for one.
        options = {"resources": {"GPU": 1}} if self.hardware == "gpu" else {}
        arguments = (plan, rank, address, run, self.hardware == "cpu")
        return _submit(client, worker, f"{run}-rank-{rank}", run_rank, *arguments, **options)


def choose_workers(client: Client, world_size: int | None, hardware: Hardware = "auto") -> list[str]:
    """Return the addresses of the workers that train.

    Parameters
    ----------
    client
        Where its cluster was running before, workers may still be starting: they are waited for, but not for ever.
    world_size
        How many workers; None is all that the hardware allows, and at least one.
    hardware
        `gpu` allows workers that offer the Dask resource GPU; `cpu` those that do not, if there are any such; `auto`
        all of them, those with a GPU first.

    Raises
    ------
    SpecError
        When there are fewer workers than wanted.
    """
    n_wanted = world_size or 1
    deadline = time.monotonic() + (_WORKERS_TIMEOUT_S if client.cluster is None else 0.0)
    while len(found := _allowed(client, hardware)) < n_wanted and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    if len(found) >= n_wanted:
        return found[:world_size]
    if hardware == "gpu":
        needs = f"{n_wanted} ranks need {n_wanted} workers" if world_size else "needs a worker"
        offers = "offer" if world_size else "offers"
        raise SpecError(
            f"params.hardware: gpu: {needs} that {offers} the resource GPU, the cluster has {len(found) or 'none'}; "
            "start more (dask worker --resources GPU=1), lower params.world_size or choose other hardware"
        )
    which = " without a GPU" if hardware == "cpu" else ""
    raise SpecError(
        f"params.world_size: {n_wanted} ranks need {n_wanted} workers{which}, the cluster has {len(found)}; "
        "lower it or start more workers"
    )


def _allowed(client: Client, hardware: Hardware) -> list[str]:
    n_gpus = {address: worker["resources"].get("GPU", 0) for address, worker in workers_of(client).items()}
    by_rank = sorted(n_gpus, key=lambda address: (-n_gpus[address], address))
    if hardware == "gpu":
        return [address for address in by_rank if n_gpus[address] >= 1]
    if hardware == "cpu":
        return [address for address in by_rank if not n_gpus[address]] or by_rank
    return by_rank


def _submit(client: Client, worker: str, key: str, function: Callable[..., Any], *args: Any, **more: Any) -> Future:
    options = {"workers": [worker], "allow_other_workers": False, "pure": False, "retries": 0}
    return client.submit(function, *args, key=key, **options, **more)


@contextmanager
def _events(client: Client, topic: str, handler: Callable[[Any], None]) -> Iterator[None]:
    client.subscribe_topic(topic, handler)
    try:
        yield
    finally:
        client.unsubscribe_topic(topic)


def _watch(client: Client, futures: list[Future], workers: list[str], timeout_s: float, moments: list[float]) -> None:
    """Return when all futures are done; raise as soon as one failed, a worker left or nothing moves any more."""
    while True:
        pending = [future for future in futures if not future.done()]
        if any(future.status in ("error", "cancelled", "lost") for future in futures):
            raise _cause(futures)
        if not pending:
            return
        gone = sorted(set(workers) - set(client.nthreads()))
        if gone:
            raise WorkersLostError(f"{', '.join(gone)}: worker lost while it trained; run the job again")
        if time.monotonic() - moments[-1] > 2 * timeout_s:
            raise WorkersLostError(
                f"{', '.join(workers)}: no step of the training in {2 * timeout_s:.0f} s; look at the workers' logs"
            )
        _wait(pending, _POLL_S)


def _wait(futures: list[Future], timeout_s: float) -> None:
    try:
        wait(futures, timeout=timeout_s, return_when="FIRST_COMPLETED")
    except (TimeoutError, CancelledError):  # cancelled: the caller looks at the status
        return


def _cause(futures: list[Future]) -> BaseException:
    """Return the error of the rank that failed first, after a while in which the others may report theirs."""
    deadline = time.monotonic() + _GRACE_S
    while True:
        errors = [f.exception(timeout=_POLL_S) if f.status == "error" else None for f in futures]
        for error in errors:
            if error is not None and not isinstance(error, _CONSEQUENCES):
                return error
        pending = [future for future in futures if not future.done()]
        if not pending or time.monotonic() > deadline:
            break
        _wait(pending, _POLL_S)
    told = next((error for error in errors if error is not None), "the tasks were cancelled")
    return WorkersLostError(f"training: ranks lost each other ({told}); run the job again")


def _assemble(results: list[RankResult]) -> TrainResult:
    first = results[0]
    if len({result.digest for result in results}) != 1 or first.state_dict is None:
        raise DaskyardError("training: the ranks ended with different weights; the model's step is not deterministic")
    return TrainResult(
        first.state_dict,
        first.history,
        [result.timings for result in results],
        len(results),
        first.timings.total_s,
    )
