"""Params of the neural_network pipeline."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from jobs.spec.tabular import TableParams
from jobs.spec.training import CheckpointInterval, Hardware


class NeuralNetworkParams(TableParams):
    """Multi-layer perceptron on a table, classification or regression, trained data-parallel."""

    of_fit: ClassVar[frozenset[str]] = frozenset(
        {"hidden", "epochs", "batch_size", "micro_batch_size", "learning_rate", "weight_decay"}
    )
    directions: ClassVar[dict[str, Literal["max", "min"]]] = {
        "accuracy": "max",
        "log_loss": "min",
        "r2": "max",
        "rmse": "min",
        "mae": "min",
    }

    target: str = Field(min_length=1, description="Column to predict.")
    task: Literal["auto", "classification", "regression"] = Field(
        "auto", description="auto: regression for a target of numbers with more than 20 distinct values."
    )
    hidden: tuple[Annotated[int, Field(ge=1, le=65_536)], ...] = Field(
        (64, 32), description="Units of each hidden layer."
    )
    epochs: int = Field(20, ge=1, description="Passes over the training rows.")
    batch_size: int = Field(256, ge=1, description="Rows of a step, over all ranks.")
    micro_batch_size: int = Field(128, ge=1, description="Rows of one forward pass; a step's are dealt to the ranks.")
    learning_rate: float = Field(2e-3, gt=0, description="Highest learning rate of AdamW; it warms up and decays.")
    weight_decay: float = Field(1e-4, ge=0, description="Decoupled weight decay.")
    test_fraction: float = Field(0.2, gt=0, lt=1, description="Share of rows set aside for the test.")
    world_size: int | None = Field(
        None, ge=1, description="Ranks; by default one a worker that hardware allows, those that come later too."
    )
    hardware: Hardware = "auto"
    checkpoint_every_s: CheckpointInterval = 60.0
    step_timeout_s: float = Field(300.0, gt=0, description="Longest wait of a rank for the others, seconds.")
