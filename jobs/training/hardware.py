"""Which workers of a cluster train. Called by the trainer, and by pipelines before they read their input."""

from __future__ import annotations

import time
from typing import Literal

from distributed import Client

from jobs.errors import SpecError
from jobs.workers import workers_of

Hardware = Literal["auto", "cpu", "gpu"]
_POLL_S = 0.5
# How long a running cluster may take to start the workers that a job wants; the first one gets as long.
_WORKERS_TIMEOUT_S = 300.0


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
    while len(found := allowed_workers(client, hardware)) < n_wanted and time.monotonic() < deadline:
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


def allowed_workers(client: Client, hardware: Hardware) -> list[str]:
    """Return the addresses of the workers that `hardware` allows now, those to be used first in front."""
    n_gpus = {address: worker["resources"].get("GPU", 0) for address, worker in workers_of(client).items()}
    by_rank = sorted(n_gpus, key=lambda address: (-n_gpus[address], address))
    if hardware == "gpu":
        return [address for address in by_rank if n_gpus[address] >= 1]
    if hardware == "cpu":
        return [address for address in by_rank if not n_gpus[address]] or by_rank
    return by_rank
