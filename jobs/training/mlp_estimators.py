"""Multi-layer perceptrons under scikit-learn's contract, trained by the Trainer: `from jobs.estimators import …`.

They live beside the trainer, since estimators know nothing of it. torch is imported by those that fit: what was
fitted is arrays of NumPy, and is unpickled and predicts without torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
from distributed import Future
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import assert_all_finite
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from jobs import sharing
from jobs.errors import SpecError
from jobs.estimators.blocks import Runner, runner
from jobs.estimators.inputs import Blocks, checked_blocks, map_rows
from jobs.estimators.moments import Moments, merged, moments

Floats = NDArray[np.float64]
# Weights and constants of each layer.
Layers = list[tuple[Floats, Floats]]
# Targets of a block → class numbers, or standardised numbers (m,).
Encode = Callable[[Any], NDArray[np.float32]]
Loss = Literal["cross_entropy", "squared_error"]

# Rows that are predicted at a time: what the layers pass on stays in the cache, however large the block is.
_CHUNK = 2048
# Binary digits of the target's mean and scale: few enough that no order of summation shows.
_DIGITS = 10
# The grid on which they lie starts at no round number: the means of whole numbers are never halfway between two.
_OFFSET = 0.381966


class MultiLayerPerceptron(BaseEstimator):
    """Base of both: linear layers with ReLU between them, trained by AdamW.

    Parameters
    ----------
    hidden_layer_sizes : sequence of int
        Units of each hidden layer; ReLU follows each. Empty: a linear model.
    learning_rate_init : float
        Highest learning rate: it rises in the first tenth of the steps, then falls to zero along a cosine.
    weight_decay : float
        AdamW's, decoupled from the gradient; biases are not decayed.
    batch_size : int
        Rows of a step.
    max_iter : int
        Epochs; all of them are run.
    random_state : int
        Of the weights at the start and of the order of rows.
    micro_batch_size : int
        Rows of one forward pass; the micro-batches of a step are dealt to the ranks.
    world_size : int, optional
        Ranks, each on a worker of its own, where X is a Dask collection; None is as many as the client has workers,
        but no more than a step has micro-batches. The result does not depend on it.
    timeout_s : float
        Longest wait of a rank for the others, the time in which rows are brought to the ranks included.

    Attributes
    ----------
    coefs_ : list of ndarray of float64, shape (units before, units after)
        Weights of each layer.
    intercepts_ : list of ndarray of float64, shape (units after,)
        Constants of each layer.
    loss_curve_ : list of float
        Mean loss of each epoch, as its steps found it.
    n_iter_ : int
        Epochs.
    n_outputs_ : int
        Units of the last layer.
    n_features_in_ : int

    Notes
    -----
    X is an array or a data frame, and is then trained on in this process; or a dask.array or dask.dataframe, which
    the workers of the current client train on: each machine that trains has all rows in a temporary file, as float32.
    Columns should be of similar size: they are not standardised here.
    """

    def __init__(
        self,
        hidden_layer_sizes: Any = (64, 32),
        *,
        learning_rate_init: float = 2e-3,
        weight_decay: float = 1e-4,
        batch_size: int = 256,
        max_iter: int = 100,
        random_state: int = 0,
        micro_batch_size: int = 128,
        world_size: int | None = None,
        timeout_s: float = 300.0,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.learning_rate_init = learning_rate_init
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.random_state = random_state
        self.micro_batch_size = micro_batch_size
        self.world_size = world_size
        self.timeout_s = timeout_s

    def _hidden(self) -> tuple[int, ...]:
        """Return the sizes of the hidden layers; raise where a parameter is out of bounds."""
        hidden = tuple(int(size) for size in np.atleast_1d(np.asarray(self.hidden_layer_sizes, dtype=int)))
        if any(size < 1 for size in hidden):
            raise ValueError(f"hidden_layer_sizes={self.hidden_layer_sizes} should all be at least 1.")
        for name in ("batch_size", "micro_batch_size", "max_iter", "world_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} should be at least 1.")
        return hidden

    def _blocks(self, X: Any, y: Any) -> tuple[Blocks, Runner]:
        self._hidden()
        blocks = checked_blocks(self, X, y)
        return blocks, runner(blocks.rows)

    def _train(self, blocks: Blocks, encode: Encode, n_outputs: int, loss: Loss) -> None:
        """Train the network and keep its weights."""
        # torch is imported by those that train: those that predict need not wait for it.
        from jobs.training import mlp
        from jobs.training.trainer import Trainer

        micro_batch_size = min(self.micro_batch_size, self.batch_size)
        trainer = Trainer(
            model_fn=partial(mlp.MLP, blocks.n_features, self._hidden(), n_outputs),
            loss_fn=getattr(mlp, loss),
            optimiser_fn=partial(mlp.adamw, learning_rate=self.learning_rate_init, weight_decay=self.weight_decay),
            data=_data(blocks, encode, self.timeout_s),
            schedule_fn=mlp.warm_up_and_cosine,
            epochs=self.max_iter,
            batch_size=self.batch_size,
            micro_batch_size=micro_batch_size,
            seed=self.random_state,
            timeout_s=self.timeout_s,
            # Several would wait for each other after every small layer, and would show in the last digits.
            n_threads=1,
        )
        try:
            result = _fitted(trainer, blocks, self.world_size)
        except SpecError as error:  # in the words of a job's spec
            place = str(error).removeprefix("params.").replace("learning_rate:", "learning_rate_init:")
            raise ValueError(place) from error
        layers = [value.numpy().astype(np.float64) for value in result.state_dict.values()]
        self.coefs_ = [np.ascontiguousarray(weights.T) for weights in layers[::2]]
        self.intercepts_ = layers[1::2]
        self.loss_curve_ = [epoch.loss for epoch in result.history]
        self.n_iter_ = len(result.history)
        self.n_outputs_ = n_outputs

    def _mapped(self, function: Callable[..., Any], X: Any, dtype: Any, n_columns: int | None = None) -> Any:
        layers = list(zip(self.coefs_, self.intercepts_, strict=True))
        return map_rows(self, partial(_in_chunks, function=function, layers=layers), X, dtype, n_columns)


class MLPClassifier(ClassifierMixin, MultiLayerPerceptron):
    """Multi-layer perceptron for classes; cross-entropy is minimised. Parameters: see MultiLayerPerceptron.

    Attributes
    ----------
    classes_ : ndarray, shape (n_classes,)
        The classes, sorted; each has an output, also where there are two.
    """

    @sharing.release_on_error()
    def fit(self, X: Any, y: Any) -> MLPClassifier:
        """Fit to rows X (n, p) of classes y (n,).

        Raises
        ------
        ValueError
            When y holds fewer than two classes, values are not finite or do not fit each other, or the training
            diverges.
        WorkersLostError
            When a worker that trains was lost.
        """
        blocks, run = self._blocks(X, y)
        self.classes_ = run.total(_union, run.map(_classes, blocks.rows, blocks.targets))
        if len(self.classes_) < 2:
            raise ValueError(f"y: {len(self.classes_)} class in all rows; a classifier needs two or more")
        self._train(blocks, partial(_class_numbers, classes=self.classes_), len(self.classes_), "cross_entropy")
        return self

    def predict(self, X: Any) -> Any:
        """Return the most probable class of each row (n,); lazily for Dask collections."""
        check_is_fitted(self)
        return self._mapped(partial(_predicted_classes, classes=self.classes_), X, self.classes_.dtype)

    def predict_proba(self, X: Any) -> Any:
        """Return the probability of each class (n, n_classes), float64; lazily for Dask collections."""
        check_is_fitted(self)
        return self._mapped(_probabilities, X, np.float64, len(self.classes_))


class MLPRegressor(RegressorMixin, MultiLayerPerceptron):
    """Multi-layer perceptron for numbers; the squared error is minimised. Parameters: see MultiLayerPerceptron.

    The target is standardised for the training, and `loss_curve_` is in its variances; the last layer's weights are
    in the target's unit.
    """

    @sharing.release_on_error()
    def fit(self, X: Any, y: Any) -> MLPRegressor:
        """Fit to rows X (n, p) and numbers y (n,).

        Raises
        ------
        ValueError
            When values are not finite or do not fit each other, or the training diverges.
        WorkersLostError
            When a worker that trains was lost.
        """
        blocks, run = self._blocks(X, y)
        mean, scale = _mean_and_scale(run.total(merged, run.map(_moments, blocks.rows, blocks.targets)))
        self._train(blocks, partial(_standardised, mean=mean, scale=scale), 1, "squared_error")
        self.coefs_[-1] *= scale
        self.intercepts_[-1] = self.intercepts_[-1] * scale + mean
        return self

    def predict(self, X: Any) -> Any:
        """Return the prediction for each row (n,), float64; lazily for Dask collections."""
        check_is_fitted(self)
        return self._mapped(_predicted_numbers, X, np.float64)


def _fitted(trainer: Any, blocks: Blocks, world_size: int | None) -> Any:
    """Train where the rows are: here, or on the workers of the client that has them."""
    if not isinstance(blocks.rows[0], Future):
        return trainer.fit_here()
    from jobs.training.hardware import choose_workers

    client = blocks.rows[0].client
    n_useful = math.ceil(trainer.batch_size / trainer.micro_batch_size)
    n_ranks = world_size or min(len(choose_workers(client, None)), n_useful)
    return replace(trainer, world_size=n_ranks).fit(client)


def _data(blocks: Blocks, encode: Encode, timeout_s: float) -> Any:
    from jobs.training.table_rows import Rows, RowsOnWorkers, as_float32

    if isinstance(blocks.rows[0], Future):
        keys = tuple((rows.key, targets.key) for rows, targets in zip(blocks.rows, blocks.targets, strict=True))
        n_last = blocks.rows[-1].client.submit(len, blocks.targets[-1], pure=False).result()
        n = blocks.starts[-1] + n_last
        return RowsOnWorkers(keys, tuple(blocks.starts), n, blocks.n_features, encode, timeout_s)
    rows = np.concatenate([as_float32(block) for block in blocks.rows])
    return Rows(rows, np.concatenate([encode(block) for block in blocks.targets]))


# --- functions of a block, where it lies --------------------------------------------------------------------------


def _checked(rows: Any, targets: Any) -> NDArray[Any]:
    """Return the targets of a block; raise what scikit-learn raises where values are not finite."""
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, and is reported
        assert_all_finite(np.asarray(rows, dtype=np.float32), input_name="X")
    targets = np.asarray(targets)
    assert_all_finite(targets, input_name="y")
    return targets


def _classes(rows: Any, targets: Any) -> NDArray[Any]:
    targets = _checked(rows, targets)
    if targets.dtype.kind == "f" and (targets != np.floor(targets)).any():
        check_classification_targets(targets)  # raises; called for every block, it would warn of many classes
    return np.unique(targets)


def _union(left: NDArray[Any], right: NDArray[Any]) -> NDArray[Any]:
    return np.unique(np.concatenate([left, right]))


def _class_numbers(targets: Any, classes: NDArray[Any]) -> NDArray[np.float32]:
    return np.searchsorted(classes, np.asarray(targets)).astype(np.float32)


def _moments(rows: Any, targets: Any) -> Moments:
    return moments(_checked(rows, targets).astype(np.float64)[:, None], with_products=False)


def _mean_and_scale(total: Moments) -> tuple[float, float]:
    """Return mean and standard deviation, rounded so that the order in which they were summed does not show."""
    scale = math.sqrt(float(total.products[0]) / total.weight)
    if not math.isfinite(scale):
        raise ValueError("Input y contains a value too large to be squared; divide it by a constant.")
    if scale == 0:
        return float(total.means[0]), 1.0
    unit = 2.0 ** (math.floor(math.log2(scale)) - _DIGITS)
    mean, scale = (math.floor(value / unit + _OFFSET) * unit for value in (float(total.means[0]), scale))
    return mean, scale


def _standardised(targets: Any, mean: float, scale: float) -> NDArray[np.float32]:
    return ((np.asarray(targets, dtype=np.float64) - mean) / scale).astype(np.float32)


def _in_chunks(rows: NDArray[Any], function: Callable[..., NDArray[Any]], layers: Layers) -> NDArray[Any]:
    """Apply ``function(outputs (m, n_outputs))`` to what the network says of some rows at a time."""
    parts = [function(_outputs(rows[at : at + _CHUNK], layers)) for at in range(0, max(len(rows), 1), _CHUNK)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _outputs(rows: NDArray[Any], layers: Layers) -> Floats:
    """Return the outputs (m, n_outputs): scores of classes, or predictions."""
    values = rows.astype(np.float64, copy=False)
    for number, (weights, constants) in enumerate(layers):
        if number:
            np.maximum(values, 0, out=values)  # never the caller's rows: they are the first layer's
        values = values @ weights + constants
    return values


def _probabilities(scores: Floats) -> Floats:
    shifted = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def _predicted_classes(scores: Floats, classes: NDArray[Any]) -> NDArray[Any]:
    return classes[scores.argmax(axis=1)]


def _predicted_numbers(outputs: Floats) -> Floats:
    return outputs[:, 0]
