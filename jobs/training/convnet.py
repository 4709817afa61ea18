"""A convolutional network for small images and the recipe that trains it in a few epochs.

Network and recipe follow the ideas of K. Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (2024): a frozen
first layer that whitens 2x2 patches, conv-pool-norm blocks, scaled logits, Nesterov SGD with a triangular schedule and
quick biases, label smoothing, alternating flips. Read it from top to bottom: data, network, loss, optimiser,
schedule, test-time augmentation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from jobs.training.shards import OpenShards, Shards

# --- data -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImageData:
    """Training images in shards (`images` uint8 (n, height, width, channels), `labels` int64 (n,)), augmented.

    A sample's flip and shift are functions of seed, epoch and index, so they do not depend on ranks or batches.
    """

    shards: Shards
    seed: int
    flip: bool
    translate: int

    @property
    def n_samples(self) -> int:
        """Images."""
        return self.shards.n_rows

    def open(self) -> OpenImageData:
        """Map the shards on this worker."""
        return OpenImageData(self, self.shards.open())


class OpenImageData:
    """`ImageData` where its shards are mapped."""

    def __init__(self, data: ImageData, rows: OpenShards) -> None:
        self._data, self._rows = data, rows

    def batch(self, indices: NDArray[np.int64], epoch: int) -> tuple[Tensor, Tensor]:
        """Return images uint8 (k, height, width, channels) and labels (k,)."""
        rows = self._rows.gather(indices)
        images = augment(rows["images"], indices, epoch, self._data.seed, self._data.flip, self._data.translate)
        return torch.from_numpy(images), torch.from_numpy(rows["labels"])


def augment(
    images: NDArray[np.uint8], indices: NDArray[np.int64], epoch: int, seed: int, flip: bool, translate: int
) -> NDArray[np.uint8]:
    """Mirror every other image, the other half in the next epoch; move by up to `translate` pixels, edges mirrored."""
    _, height, width, _ = images.shape
    translate = min(translate, height - 1, width - 1)
    is_flipped = (hashed(seed, 0, indices) + np.uint64(epoch)) % np.uint64(2) == 1
    shift = hashed(seed, 1 + epoch, indices)
    n_shifts = np.uint64(2 * translate + 1)
    down, right = (shift % n_shifts).astype(int), (shift // n_shifts % n_shifts).astype(int)
    edge = (translate, translate)
    padded = np.pad(images, ((0, 0), edge, edge, (0, 0)), mode="reflect") if translate else images
    out = np.empty_like(images)
    for i in range(len(images)):
        window = padded[i, down[i] : down[i] + height, right[i] : right[i] + width]
        out[i] = window[:, ::-1] if flip and is_flipped[i] else window
    return out


def hashed(seed: int, salt: int, indices: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return 64 random bits per index, by the finaliser of SplitMix64 (Steele et al., 2014)."""
    start = np.random.SeedSequence([seed, salt]).generate_state(1, np.uint64)[0]
    with np.errstate(over="ignore"):
        x = start + (indices.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))


# --- network --------------------------------------------------------------------------------------------------------


# The head starts with weights of standard deviation 1: small logits keep the first steps calm.
_LOGIT_SCALE = 1 / 30


@dataclass(frozen=True)
class ConvNetConfig:
    """Everything that makes a ConvNet, apart from its weights; model.json holds it.

    `mean` and `std` are of the training images' channels, in units of 0..255.
    """

    image_size: tuple[int, int]
    n_channels: int
    n_classes: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    is_bfloat16: bool = False

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each block; blocks halve the image until about 3 pixels are left."""
        n_blocks = min(max(round(math.log2(min(self.image_size) / 4)), 2), 6)
        return (self.width, *[4 * self.width] * (n_blocks - 1))


class ConvNet(nn.Module):
    """Images uint8 (k, height, width, channels) → logits float32 (k, classes).

    Parameters
    ----------
    config
        Sizes and normalisation.
    whitening
        Filters of the first layer (2 · 4 · channels, channels, 2, 2), from `whitening_filters`. None: loaded later.
    """

    def __init__(self, config: ConvNetConfig, whitening: NDArray[np.float32] | None = None) -> None:
        super().__init__()
        self.config = config
        n_whitened = 8 * config.n_channels
        self.whiten = nn.Conv2d(config.n_channels, n_whitened, 2)
        self.whiten.weight.requires_grad = False
        if whitening is not None:
            self.whiten.weight.copy_(torch.from_numpy(whitening))
        nn.init.zeros_(self.whiten.bias)  # type: ignore[arg-type]
        inputs = (n_whitened, *config.widths)
        self.blocks = nn.Sequential(*[_Block(i, o) for i, o in zip(inputs, config.widths, strict=False)])
        self.head = nn.Linear(config.widths[-1], config.n_classes, bias=False)
        self.head.weight.data *= 1 / self.head.weight.data.std()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(config.mean).view(1, 1, 1, -1))
        self.register_buffer("std", torch.tensor(config.std).view(1, 1, 1, -1))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> Tensor:
        """Classify."""
        # A permuted NHWC tensor is torch's channels_last: no copy, and convolutions are twice as quick on it.
        x = ((images.float() - self.mean) / self.std).permute(0, 3, 1, 2)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.config.is_bfloat16):
            x = self.blocks(F.gelu(self.whiten(x)))
            x = F.adaptive_max_pool2d(x, 1).flatten(1)
        logits: Tensor = self.head(x.float()) * _LOGIT_SCALE
        return logits


class _Block(nn.Module):
    """conv → pool → norm → GELU → conv → norm → GELU: halves the image."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = _conv(n_in, n_out), _norm(n_out)
        self.conv2, self.norm2 = _conv(n_out, n_out), _norm(n_out)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        return F.gelu(self.norm2(self.conv2(x)))


def _conv(n_in: int, n_out: int) -> nn.Conv2d:
    conv = nn.Conv2d(n_in, n_out, 3, padding=1, bias=False)
    # Starts as the identity as far as it goes: the first steps then work on the image rather than on noise.
    nn.init.dirac_(conv.weight.data[: min(n_in, n_out)])
    return conv


def _norm(n: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(n, momentum=0.4)
    norm.weight.requires_grad = False  # the next layer's weights scale as well
    return norm


def whitening_filters(images: NDArray[np.uint8], config: ConvNetConfig) -> NDArray[np.float32]:
    """Return filters (8 · channels, channels, 2, 2) whose responses to 2x2 patches are uncorrelated, of variance 1.

    The eigenvectors of the patches' covariance, divided by the root of their eigenvalues, and their negatives, so that
    the GELU behind loses nothing. `images` (k, height, width, channels): a few thousand are plenty.
    """
    x = ((images - np.array(config.mean)) / np.array(config.std)).astype(np.float32)
    patches = np.lib.stride_tricks.sliding_window_view(x, (2, 2), axis=(1, 2))
    flat = patches.reshape(-1, 4 * config.n_channels).astype(np.float64)
    eigenvalues, eigenvectors = np.linalg.eigh(flat.T @ flat / len(flat))
    scaled = eigenvectors[:, ::-1] / np.sqrt(eigenvalues[::-1] + 5e-4)
    filters = scaled.T.reshape(-1, config.n_channels, 2, 2)
    return np.concatenate([filters, -filters]).astype(np.float32)


# --- loss, optimiser, schedule --------------------------------------------------------------------------------------


def smoothed_cross_entropy(outputs: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    """Mean cross entropy with the targets smoothed."""
    return F.cross_entropy(outputs, targets, label_smoothing=label_smoothing)


def nesterov_sgd(model: nn.Module, learning_rate: float, weight_decay: float, batch_size: int) -> torch.optim.Optimizer:
    """Nesterov SGD; BatchNorm's biases learn `_BIAS_FACTOR` times as fast as the rest.

    `learning_rate` and `weight_decay` are per 1024 images and already count what momentum adds to a step, so that they
    mean the same for every batch size.
    """
    scale = 1024 * (1 + 1 / (1 - _MOMENTUM))
    lr = learning_rate * batch_size / scale
    decay = weight_decay * batch_size / scale
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    biases = [p for name, p in trained if ".norm" in name]
    others = [p for name, p in trained if ".norm" not in name]
    groups = [
        {"params": others, "lr": lr, "weight_decay": decay / lr},
        {"params": biases, "lr": lr * _BIAS_FACTOR, "weight_decay": decay / (lr * _BIAS_FACTOR)},
    ]
    return torch.optim.SGD(groups, lr=lr, momentum=_MOMENTUM, nesterov=True)


_MOMENTUM = 0.85
_BIAS_FACTOR = 64.0


def triangle(share: float) -> float:
    """Factor on the learning rate: from 0.2 up to 1 at 23 % of the training, then down to 0.07 (piecewise linear)."""
    return float(np.interp(share, [0.0, 0.23, 1.0], [0.2, 1.0, 0.07]))


# --- test-time augmentation -----------------------------------------------------------------------------------------


@torch.inference_mode()
def predict(model: nn.Module, images: Tensor, mirror: bool, move: bool) -> Tensor:
    """Return class probabilities (k, classes) of images uint8 (k, height, width, channels).

    With `mirror` the logits are means over the image and its mirror image; with `move` half of them are the image's
    and the other half those of the image moved by one pixel, up-left and down-right.
    """
    model.eval()

    def logits_of(several: Tensor) -> Tensor:
        logits: Tensor = model(several)
        return 0.5 * (logits + model(several.flip(2))) if mirror else logits

    logits = logits_of(images)
    if move:
        height, width = images.shape[1:3]
        padded = F.pad(images.permute(0, 3, 1, 2).float(), (1, 1, 1, 1), mode="reflect").permute(0, 2, 3, 1)
        up_left, down_right = (logits_of(padded[:, i : i + height, i : i + width]) for i in (2, 0))
        logits = 0.5 * logits + 0.25 * (up_left + down_right)
    return logits.softmax(dim=1)
