"""The network for small images and its recipe: augmentation by index, whitening, schedule, test-time augmentation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from jobs.training.convnet import (
    ConvNet,
    ConvNetConfig,
    augment,
    hashed,
    nesterov_sgd,
    predict,
    triangle,
    whitening_filters,
)

RNG = np.random.default_rng(2)


def images(n: int, height: int = 12, width: int = 10, channels: int = 3) -> NDArray[np.uint8]:
    return RNG.integers(256, size=(n, height, width, channels), dtype=np.uint8)


def config(size: tuple[int, int], channels: int, width: int = 8) -> ConvNetConfig:
    return ConvNetConfig(size, channels, 5, width, (120.0,) * channels, (60.0,) * channels)


def network(size: tuple[int, int], channels: int) -> ConvNet:
    torch.manual_seed(0)
    net = ConvNet(config(size, channels), whitening_filters(images(50, *size, channels), config(size, channels)))
    return net.eval()


def test_augmentation_is_a_function_of_seed_epoch_and_index_alone() -> None:
    x, indices = images(20), np.arange(100, 120)
    whole = augment(x, indices, 3, 7, True, 2)
    order = RNG.permutation(20)
    np.testing.assert_array_equal(augment(x[order], indices[order], 3, 7, True, 2), whole[order])
    assert (augment(x, indices, 4, 7, True, 2) != whole).any()
    assert (augment(x, indices, 3, 8, True, 2) != whole).any()


def test_every_image_is_mirrored_in_every_other_epoch() -> None:
    x, indices = images(64), np.arange(64)
    even, odd, next_even = (augment(x, indices, epoch, 0, True, 0) for epoch in range(3))
    np.testing.assert_array_equal(even, odd[:, :, ::-1])
    np.testing.assert_array_equal(even, next_even)
    n_mirrored = sum(not np.array_equal(a, b) for a, b in zip(even, x, strict=True))
    assert 16 < n_mirrored < 48


def test_images_move_by_each_shift_with_mirrored_edges() -> None:
    x = images(1)
    moved = augment(np.repeat(x, 2000, axis=0), np.arange(2000), 0, 0, False, 1)
    padded = np.pad(x[0], ((1, 1), (1, 1), (0, 0)), mode="reflect")
    shifts = [padded[i : i + 12, j : j + 10] for i in range(3) for j in range(3)]
    counts = [int((moved == shift).all(axis=(1, 2, 3)).sum()) for shift in shifts]
    assert sum(counts) == 2000
    assert min(counts) > 150


def test_hashed_bits_are_even() -> None:
    bits = hashed(0, 0, np.arange(10_000))
    shares = [float((bits >> np.uint64(i) & np.uint64(1)).mean()) for i in range(64)]
    assert 0.47 < min(shares) <= max(shares) < 0.53


def test_whitening_makes_patches_uncorrelated_of_variance_one() -> None:
    smooth = images(200, 16, 16).astype(float)
    smooth = ((smooth + np.roll(smooth, 1, axis=1) + np.roll(smooth, 1, axis=2)) / 3).astype(np.uint8)
    mean, std = tuple(smooth.mean((0, 1, 2))), tuple(smooth.std((0, 1, 2)))
    whole = ConvNetConfig((16, 16), 3, 5, 8, mean, std)
    filters = torch.from_numpy(whitening_filters(smooth, whole))
    x = torch.from_numpy(((smooth - mean) / std).astype(np.float32)).permute(0, 3, 1, 2)
    response = torch.nn.functional.conv2d(x, filters).permute(1, 0, 2, 3).flatten(1)
    covariance = (response @ response.T / response.shape[1])[:12, :12]
    np.testing.assert_allclose(covariance, np.eye(12), atol=0.02)
    np.testing.assert_array_equal(filters[:12], -filters[12:])


@pytest.mark.parametrize(("size", "channels"), [((32, 32), 3), ((28, 28), 1), ((8, 8), 1), ((64, 48), 3)])
def test_the_network_takes_small_images_of_any_size(size: tuple[int, int], channels: int) -> None:
    logits = network(size, channels)(torch.from_numpy(images(3, *size, channels)))
    assert logits.shape == (3, 5)
    assert torch.isfinite(logits).all()


def test_constant_images_do_not_break_whitening() -> None:
    flat = np.full((5, 8, 8, 1), 120, np.uint8)
    assert np.isfinite(whitening_filters(flat, config((8, 8), 1))).all()


def test_the_first_layer_stays_frozen_and_biases_learn_faster() -> None:
    net = network((16, 16), 3)
    optimiser = nesterov_sgd(net, 10.0, 0.01, 256)
    trained = {id(p) for group in optimiser.param_groups for p in group["params"]}
    assert id(net.whiten.weight) not in trained
    assert trained == {id(p) for p in net.parameters() if p.requires_grad}
    weights, biases = optimiser.param_groups
    assert biases["lr"] == 64 * weights["lr"]
    assert weights["lr"] * weights["weight_decay"] == pytest.approx(biases["lr"] * biases["weight_decay"])


def test_the_schedule_is_a_triangle() -> None:
    assert [triangle(share) for share in (0.0, 0.23, 1.0)] == pytest.approx([0.2, 1.0, 0.07])
    assert triangle(0.115) == pytest.approx(0.6)


def test_with_mirroring_an_image_and_its_mirror_image_get_the_same_prediction() -> None:
    net, x = network((16, 16), 3), torch.from_numpy(images(4, 16, 16))
    torch.testing.assert_close(predict(net, x, True, False), predict(net, x.flip(2), True, False))


def test_with_moving_a_quarter_of_the_logits_is_each_moved_image_s() -> None:
    net, x = network((16, 16), 3), torch.from_numpy(images(4, 16, 16))
    padded = np.pad(x.numpy(), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    moved = [net(torch.from_numpy(padded[:, i : i + 16, i : i + 16].copy())) for i in (0, 2)]
    expected = (0.5 * net(x) + 0.25 * moved[0] + 0.25 * moved[1]).softmax(dim=1)
    torch.testing.assert_close(predict(net, x, False, True), expected.detach())


def test_without_augmentation_predictions_are_the_network_s_own() -> None:
    net, x = network((16, 16), 3), torch.from_numpy(images(4, 16, 16))
    torch.testing.assert_close(predict(net, x, False, False), net(x).softmax(dim=1).detach())
