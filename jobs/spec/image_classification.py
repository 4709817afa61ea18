"""Params of the pipeline `image_classification`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from jobs.spec.base import Params
from jobs.spec.training import CheckpointInterval, Hardware


class ImageClassificationParams(Params):
    """A convolutional network trained data-parallel across the workers."""

    of_fit: ClassVar[frozenset[str]] = frozenset(
        {
            "epochs",
            "batch_size",
            "micro_batch_size",
            "width",
            "learning_rate",
            "weight_decay",
            "label_smoothing",
            "flip",
            "translate",
            "tta",
        }
    )
    directions: ClassVar[dict[str, Literal["max", "min"]]] = {"accuracy": "max", "log_loss": "min"}

    epochs: int = Field(5, ge=1, le=1000, description="Passes over the training set.")
    batch_size: int = Field(512, ge=2, le=65536, description="Images per optimiser step, over all ranks together.")
    micro_batch_size: int = Field(
        128,
        ge=2,
        le=8192,
        description="Images per forward pass; a step's micro-batches are dealt to the ranks, so the result does "
        "not depend on how many there are.",
    )
    width: int = Field(
        32,
        ge=4,
        le=1024,
        description="Channels of the first block; the second and the third have four times as many.",
    )
    learning_rate: float = Field(
        11.5,
        gt=0,
        le=1000,
        description="Peak learning rate, per 1024 images, with momentum counted in.",
    )
    weight_decay: float = Field(
        0.0153, ge=0, le=10, description="Weight decay per 1024 images, decoupled from the learning rate."
    )
    label_smoothing: float = Field(0.2, ge=0, lt=1, description="Share of each target spread over all classes.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Number format of convolutions; auto: bfloat16 where all the workers' hardware multiplies it.",
    )
    flip: bool = Field(True, description="Mirror the images in every other epoch; off for digits and letters.")
    translate: int = Field(2, ge=0, le=32, description="Training images move by up to so many pixels.")
    tta: bool = Field(
        True,
        description="Test-time augmentation: the mean over the image, its mirror image (with flip) and the image "
        "moved by a pixel (with translate).",
    )
    image_size: int | None = Field(
        None,
        ge=8,
        le=512,
        description="Height and width to which every image is resized; without it all must have one size.",
    )
    test_fraction: float = Field(
        0.2, gt=0, lt=1, description="Share of the images set aside where the input has no test set."
    )
    world_size: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Ranks that train, one on each worker; without it, all that hardware allows, those that come "
        "later too. Ranks that are lost are done without until others take their place.",
    )
    hardware: Hardware = "auto"
    compare_world_sizes: tuple[int, ...] = Field(
        (),
        max_length=8,
        description="Also train at each of these world sizes, and report what distribution does to the time.",
    )
    checkpoint_every_s: CheckpointInterval = 60.0
    step_timeout_s: float = Field(
        600.0, gt=0, le=86400, description="Longest wait of a rank for the others before the job fails."
    )
