"""neural_network: a multi-layer perceptron on a table, classification or regression, trained across the workers."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from safetensors.torch import load as load_tensors
from safetensors.torch import save

from jobs import storage
from jobs.job import Evaluation, Job
from jobs.pipelines import tabular
from jobs.pipelines.tabular import Loaded, Prepared
from jobs.pipelines.tabular_tasks import regression_sums
from jobs.pipelines.trained import checkpoints_of, tell_change, training_metrics, training_sections, world_sizes
from jobs.readers.table_profile import has_too_many
from jobs.report.sections import Curves, Matrix, Table
from jobs.training.hardware import choose_workers
from jobs.training.mlp import MLP, TableData, adamw, cross_entropy, squared_error, warm_up_and_cosine
from jobs.training.shards import ShardInfo, Shards, commit_index, write_shard
from jobs.training.trainer import Trainer, TrainResult

Floats = NDArray[np.float64]

# A target of numbers with at most this many values is taken for classes.
_MOST_NUMERIC_CLASSES = 20
_TINY = 1e-15


@dataclass(frozen=True)
class Network:
    """What turns encoded rows into predictions: sizes, and the target's classes or its mean and scale."""

    n_inputs: int
    hidden: tuple[int, ...]
    classes: tuple[str, ...] | None
    mean: float
    scale: float

    def make(self) -> MLP:
        """Return the network, not trained."""
        return MLP(self.n_inputs, self.hidden, len(self.classes) if self.classes else 1)


@dataclass(frozen=True)
class Model:
    """A trained network."""

    network: Network
    result: TrainResult


def load(job: Job) -> Loaded:
    """Read and profile the columns; see whether there are workers enough."""
    choose_workers(job.client, job.params.world_size, job.params.hardware)
    return tabular.load(job, job.params.target)


def prepare(job: Job, loaded: Loaded) -> Prepared:
    """Impute, encode, standardise and split."""
    params = job.params
    column = loaded.profile.columns[params.target]
    task = params.task
    if task == "auto":
        is_continuous = not column.n_texts and (has_too_many(column) or len(column.values) > _MOST_NUMERIC_CLASSES)
        task = "regression" if is_continuous and params.target not in params.categorical else "classification"
    make_target = tabular.class_target if task == "classification" else tabular.numeric_target
    target = make_target(job, loaded, params.target)
    return tabular.prepare(job, loaded, target, params.test_fraction, is_standardised=True)


def fit(job: Job, prepared: Prepared) -> Model:
    """Write the training rows as shards and train on them; the shards are removed afterwards."""
    params = job.params
    classes = prepared.target.classes if prepared.target else None
    mean, scale = prepared.target_mean, prepared.target_scale
    network = Network(len(prepared.encoder.names), params.hidden, classes, mean, scale)
    folder = job.artifact_url("shards")
    names = [storage.join(folder, f"{number:05d}.raw") for number in range(len(prepared.train.n))]
    try:
        written = [
            job.client.submit(_write_shard, *each, pure=False)
            for each in zip(prepared.train.X, prepared.train.y, names, strict=True)
        ]
        commit_index(folder, job.wait(written, unit="shards"))
        world_size, max_world_size = world_sizes(job)
        trainer = Trainer(
            model_fn=network.make,
            loss_fn=cross_entropy if classes else squared_error,
            optimiser_fn=functools.partial(adamw, learning_rate=params.learning_rate, weight_decay=params.weight_decay),
            data=TableData(Shards.load(folder), mean, scale),
            schedule_fn=warm_up_and_cosine,
            epochs=params.epochs,
            batch_size=params.batch_size,
            micro_batch_size=min(params.micro_batch_size, params.batch_size),
            seed=params.seed,
            timeout_s=params.step_timeout_s,
            hardware=params.hardware,
            checkpoints=checkpoints_of(job),
            checkpoint_every_s=params.checkpoint_every_s,
            world_size=world_size,
            max_world_size=max_world_size,
        )
        result = trainer.fit(
            job.client, lambda done, total: job.progress(done, total, "rows"), functools.partial(tell_change, job)
        )
    finally:
        job.remove(folder)
    job.write_bytes("model.safetensors", save(dict(result.state_dict)))
    return Model(network, result)


def evaluate(job: Job, prepared: Prepared, model: Model) -> Evaluation:
    """Predict the test rows on the workers; accuracy and log loss, or R² and errors."""
    weights = job.artifact_url("model.safetensors")
    test = prepared.test
    network = job.share(model.network, len(test.X))
    parts = [
        job.client.submit(_score, *arrays, network, weights, pure=False) for arrays in zip(test.X, test.y, strict=True)
    ]
    scores: list[Any] = job.wait(parts)
    metrics: dict[str, float | int | str] = {
        "n_train": sum(prepared.train.n),
        "n_test": sum(test.n),
        "n_columns": model.network.n_inputs,
        **training_metrics(model.result),
        "rows_per_s": model.result.samples_per_s,
        **prepared.counts,
    }
    losses = [(float(number), epoch.loss) for number, epoch in enumerate(model.result.history, start=1)]
    sections: list[Any] = [
        Curves("Training loss", "epoch", "loss", {"training": losses}),
        *training_sections(model.result),
    ]
    if model.network.classes is None:
        return Evaluation("r2", tabular.regression_metrics(scores) | metrics, sections)
    confusion = np.sum([score["confusion"] for score in scores], axis=0)
    found = {
        "accuracy": float(np.trace(confusion) / confusion.sum()),
        "log_loss": float(sum(score["log_loss"] for score in scores) / confusion.sum()),
    }
    sections += _by_class(model.network.classes, confusion)
    return Evaluation("accuracy", found | metrics, sections)


def write(job: Job, prepared: Prepared, model: Model, evaluation: Evaluation) -> None:
    """Write model.json and the test rows' predictions."""
    network = model.network
    document = {
        "architecture": {"n_inputs": network.n_inputs, "hidden": list(network.hidden), "activation": "relu"},
        "target": job.params.target,
        "classes": list(network.classes) if network.classes else None,
        "target_mean": network.mean,
        "target_scale": network.scale,
        "encoding": prepared.encoder.document(),
    }
    job.write_json("model.json", document)
    weights = job.artifact_url("model.safetensors")
    tabular.write_rows(job, prepared.test, "predictions", _predictions, network, weights)


def _write_shard(X: Floats, y: Floats, url: str) -> ShardInfo:
    return write_shard(url, {"X": X.astype(np.float32), "y": y})


def _outputs(X: Floats, network: Network, weights: str) -> Floats:
    """Return logits (n, k), or predictions (n,) in the target's unit. Runs on a worker."""
    model = network.make()
    model.load_state_dict(load_tensors(storage.read_bytes(weights)))
    with torch.inference_mode():
        outputs = model.eval()(torch.from_numpy(X.astype(np.float32))).double().numpy()
    return outputs if network.classes else outputs[:, 0] * network.scale + network.mean


def _probabilities(logits: Floats) -> Floats:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def _score(X: Floats, y: Floats, network: Network, weights: str) -> Any:
    """Sums over a partition's test rows, from which the metrics follow."""
    if network.classes is None:
        return regression_sums(_outputs(X, network, weights) if len(y) else np.zeros(0), y, network.mean)
    k = len(network.classes)
    labels = y.astype(int)
    chances = _probabilities(_outputs(X, network, weights)) if len(y) else np.zeros((0, k))
    confusion = np.zeros((k, k), dtype=np.int64)
    np.add.at(confusion, (labels, chances.argmax(axis=1)), 1)
    own = np.clip(chances[np.arange(len(y)), labels], _TINY, 1.0)
    return {"confusion": confusion, "log_loss": float(-np.log(own).sum())}


def _by_class(classes: tuple[str, ...], confusion: NDArray[np.int64]) -> list[Any]:
    hits, true, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    recall, precision = hits / np.maximum(true, 1), hits / np.maximum(predicted, 1)
    rows: list[list[str | int | float]] = [
        [name, int(n), float(p), float(r)] for name, n, p, r in zip(classes, true, precision, recall, strict=True)
    ]
    return [
        Table("By class", ["class", "test rows", "precision", "recall"], rows),
        Matrix("Confusion", list(classes), confusion.tolist()),
    ]


def _predictions(X: Floats, y: Floats, network: Network, weights: str) -> dict[str, Any]:
    outputs = _outputs(X, network, weights)
    if network.classes is None:
        return {"target": y, "prediction": outputs}
    chances = _probabilities(outputs)
    names = pa.array(network.classes, pa.string())
    true, best = pa.array(y.astype(np.int64)), pa.array(chances.argmax(axis=1))
    return {"target": names.take(true), "prediction": names.take(best), "probability": chances.max(axis=1)}
