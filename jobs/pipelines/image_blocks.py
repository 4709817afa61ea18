"""image_classification's tasks: each works on one part or one block, on a worker."""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load

from jobs import storage
from jobs.artifacts import put_table
from jobs.readers import images as readers
from jobs.training.collective import pick_device
from jobs.training.convnet import ConvNet, ConvNetConfig, hashed, predict, whitening_filters
from jobs.training.shards import ShardInfo, Shards, write_shard
from jobs.trial import Trial, roles

# Salt of the hash that sets test images aside; augmentation uses 0 and 1 + epoch.
_SPLIT_SALT = 2**32 - 1
_N_WHITENING_IMAGES = 4096
_FORWARD_IMAGES = 128
_N_ERRORS_PER_BLOCK = 24
_ERROR_PIXELS = 96


@dataclass(frozen=True)
class PreparedPart:
    """What became of one part: shards, images per class, exact pixel sums of the training images per channel."""

    train: ShardInfo | None
    test: ShardInfo | None
    n_train: tuple[int, ...]
    n_test: tuple[int, ...]
    pixel_sums: tuple[int, ...]
    pixel_squares: tuple[int, ...]
    n_pixels: int
    n_bad: int
    first_bad: str


@dataclass(frozen=True)
class Mistake:
    """A wrongly classified test image: its row, what it is, what it was taken for and how surely, and itself."""

    row: int
    label: int
    predicted: int
    probability: float
    png: bytes


@dataclass(frozen=True)
class BlockScore:
    """One block of predictions: the file written, and what was counted. `confusion` is [true][predicted]."""

    file: str
    size: int
    sha256: str
    confusion: NDArray[np.int64]
    log_loss: float
    errors: tuple[Mistake, ...]


def prepare_part(
    index: int,
    scan: readers.Scan,
    train_url: str,
    test_url: str,
    test_fraction: float | None,
    seed: int,
    trial: Trial | None = None,
) -> PreparedPart:
    """Decode a part and write its shards.

    `test_fraction` is set where the input has no test set: an image is set aside by a hash of the seed and its number,
    whatever the parts. In a trial the second shard has the images to measure on, and no test image is in either.
    """
    part = scan.parts[index]
    decoded = readers.decode(scan, index)
    if test_fraction is None:
        is_test = np.full(len(decoded.labels), part.split == "test")
    else:
        is_test = hashed(seed, _SPLIT_SALT, decoded.numbers) < np.uint64(test_fraction * 2**64)
    is_train, is_measured = roles(is_test, seed, decoded.numbers, trial)
    shards: list[ShardInfo | None] = []
    counts = []
    for url, chosen in ((train_url, is_train), (test_url, is_measured)):
        rows: dict[str, NDArray[Any]] = {
            "images": decoded.images[chosen],
            "labels": decoded.labels[chosen],
            "numbers": decoded.numbers[chosen],
        }
        counts.append(tuple(np.bincount(rows["labels"], minlength=len(scan.classes)).tolist()))
        shards.append(write_shard(storage.join(url, f"{index:05d}.raw"), rows) if chosen.any() else None)
    # Sums of integers are exact, so mean and deviation don't depend on the parts.
    n_of_value = [
        np.bincount(decoded.images[is_train, :, :, channel].ravel(), minlength=256) for channel in range(scan.shape[2])
    ]
    values = np.arange(256)
    return PreparedPart(
        train=shards[0],
        test=shards[1],
        n_train=counts[0],
        n_test=counts[1],
        pixel_sums=tuple(int(n @ values) for n in n_of_value),
        pixel_squares=tuple(int(n @ values**2) for n in n_of_value),
        n_pixels=int(n_of_value[0].sum()),
        n_bad=len(decoded.bad),
        first_bad=decoded.bad[0] if decoded.bad else "",
    )


def whitening_of(train: Shards, config: ConvNetConfig) -> NDArray[np.float32]:
    """Return the first layer's filters, from a few thousand training images evenly spaced."""
    n = min(train.n_rows, _N_WHITENING_IMAGES)
    rows = np.linspace(0, train.n_rows - 1, n).astype(np.int64)
    return whitening_filters(train.open().gather(rows, ["images"])["images"], config)


def supports_bfloat16() -> bool:
    """Whether this worker's hardware multiplies bfloat16 by itself; where it has to be imitated it is slow."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def predict_block(
    numbered: tuple[int, tuple[int, int]],
    test: Shards,
    config: ConvNetConfig,
    classes: tuple[str, ...],
    model_url: str,
    predictions_url: str,
    mirror: bool,
    move: bool,
) -> BlockScore:
    """Predict the rows of one block, write them as Parquet, and count."""
    index, (start, stop) = numbered
    rows = test.open().rows(start, stop)
    labels = rows["labels"]
    model, device = _model(model_url, config)
    chunks = torch.from_numpy(rows["images"]).split(_FORWARD_IMAGES)
    probabilities = torch.cat([predict(model, chunk.to(device), mirror, move).cpu() for chunk in chunks]).numpy()
    predicted = probabilities.argmax(axis=1)
    surest = probabilities.max(axis=1)
    names = np.array(classes, dtype=object)
    table = pa.table(
        {
            "number": rows["numbers"],
            "label": pa.array(names[labels], pa.string()),
            "predicted": pa.array(names[predicted], pa.string()),
            "probability": surest,
        }
    )
    file = f"part-{index:05d}.parquet"
    size, sha256 = put_table(storage.join(predictions_url, file), table)
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    wrong = np.flatnonzero(labels != predicted)
    wrong = wrong[np.argsort(-surest[wrong], kind="stable")][:_N_ERRORS_PER_BLOCK]
    errors = tuple(
        Mistake(start + int(i), int(labels[i]), int(predicted[i]), float(surest[i]), _png(rows["images"][i]))
        for i in wrong
    )
    of_label = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    log_loss = float(-np.log(np.clip(of_label, 1e-12, 1)).sum())
    return BlockScore(file, size, sha256, confusion, log_loss, errors)


@functools.lru_cache(maxsize=2)
def _model(url: str, config: ConvNetConfig) -> tuple[ConvNet, torch.device]:
    model = ConvNet(config)
    model.load_state_dict(load(storage.read_bytes(url)))
    device = pick_device()
    return model.to(device).eval(), device


def _png(image: NDArray[np.uint8]) -> bytes:
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    factor = max(1, _ERROR_PIXELS // max(picture.size))
    buffer = io.BytesIO()
    picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()
