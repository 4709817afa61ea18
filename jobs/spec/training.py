"""Params that pipelines which train networks have in common."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

Hardware = Annotated[
    Literal["auto", "cpu", "gpu"],
    Field(
        description="Which workers train: gpu: those that offer the Dask resource GPU; cpu: those that do not, where "
        "there are any, and without CUDA; auto: any, those with a GPU first, with CUDA where they have it."
    ),
]
CheckpointInterval = Annotated[
    float,
    Field(
        gt=0,
        le=86400,
        description="The state of the training is stored so often, and after each epoch: what is lost at most when all "
        "workers, or the runner, are.",
    ),
]
