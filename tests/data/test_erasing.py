"""Rectangles are timm's, and their noise is normal once the device has normalised it."""

from __future__ import annotations

import random
from typing import List, Tuple

import numpy as np
import pytest
import torch
from distributions import BOUND, distance_between, distance_from, distance_from_uniform, normal, within

from ipu_vit.data.erasing import RandomErasing
from ipu_vit.data.ondevice import Normalise

PAINT = RandomErasing(1.0, (200.0, 200.0, 200.0), (5.0, 5.0, 5.0))
"""Noise that is never black."""


def rectangle(erased: np.ndarray) -> Tuple[int, int, int, int]:
    """Top, left, height and width of what is not 0, in an image (3, height, width)."""
    changed = erased.any(axis=0)
    rows, columns = (np.flatnonzero(changed.any(axis=axis)) for axis in (1, 0))
    if not rows.size:
        return 0, 0, 0, 0
    return int(rows[0]), int(columns[0]), int(rows[-1] - rows[0] + 1), int(columns[-1] - columns[0] + 1)


def rectangles(height: int, width: int, draws: int) -> np.ndarray:
    rng, found = np.random.default_rng(0), []
    for _ in range(draws):
        image = np.zeros((3, height, width), np.uint8)
        PAINT(image, rng)
        top, left, down, across = rectangle(image)
        assert image[:, top : top + down, left : left + across].all()
        found.append((top, left, down, across))
    return np.array(found).T


def test_rectangles_have_the_stated_distribution() -> None:
    """Uniform in area and in the logarithm of the ratio where all fit, as up to a third with ratios of 0.3 do not."""
    side = 120
    top, left, down, across = rectangles(side, side, 3000)
    small = down * across < 0.25 * side**2  # whatever their ratio, these fit
    areas = (down * across / side**2)[small]
    assert distance_from_uniform(areas, 0.02, 0.25) < BOUND
    assert distance_from_uniform(np.log(down / across)[small], np.log(0.3), -np.log(0.3)) < BOUND
    assert distance_from_uniform((top / (side - down))[small], 0, 1) < BOUND
    assert distance_from_uniform((left / (side - across))[small], 0, 1) < BOUND


@pytest.mark.parametrize("height, width", [(64, 64), (20, 90), (4, 6)])
def test_rectangles_are_distributed_as_timms(height: int, width: int) -> None:
    erasing = pytest.importorskip("timm.data.random_erasing")
    random.seed(0)
    theirs, draws = erasing.RandomErasing(1.0, mode="pixel", device="cpu"), 2500
    others = np.array([rectangle(theirs(torch.zeros(3, height, width)).numpy()) for _ in range(draws)]).T
    for ours, other in zip(rectangles(height, width, draws), others):
        assert distance_between(ours, other) < BOUND


def erased_pixels(mean: Tuple[float, float, float], std: Tuple[float, float, float]) -> List[np.ndarray]:
    """Of each channel, as the device sees them."""
    image = np.zeros((3, 500, 500), np.uint8)
    erase = RandomErasing(1.0, mean, std)
    erase(image, np.random.default_rng(0))
    seen = Normalise(mean, std, torch.float32)(torch.from_numpy(image)[None])[0].numpy()
    top, left, down, across = rectangle(image)
    return [channel[top : top + down, left : left + across].ravel() for channel in seen]


def test_noise_is_standard_normal_after_normalising() -> None:
    rng, std = np.random.default_rng(0), (24.0, 27.0, 25.0)
    channels = erased_pixels((120.0, 130.0, 140.0), std)
    pixels = np.concatenate(channels)
    assert abs(pixels.mean()) < 3.3 / np.sqrt(pixels.size)
    for channel, step in zip(channels, std):
        smeared = channel + rng.uniform(-0.5, 0.5, channel.size) / step  # undoes the rounding to whole numbers
        assert channel.size > 20_000
        assert distance_from(smeared.tolist(), normal(0, 1)) < BOUND


def test_noise_beyond_black_and_white_is_black_and_white() -> None:
    for channel in erased_pixels((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)):
        for end in (-1.0, 1.0):
            assert within(int((channel == end).sum()), channel.size, normal(0, 1)(-1 + 0.5 / 127.5))


def test_channels_and_pixels_are_drawn_apart() -> None:
    red, green, blue = erased_pixels((127.5, 127.5, 127.5), (40.0, 40.0, 40.0))
    for one, other in ((red, green), (green, blue), (red[1:], red[:-1])):
        assert abs(np.corrcoef(one, other)[0, 1]) < 4 / np.sqrt(one.size)


def test_images_are_erased_with_the_stated_probability() -> None:
    rng, draws, erased = np.random.default_rng(0), 2000, 0
    erase = RandomErasing(0.25, (200.0,) * 3, (1.0,) * 3)
    for _ in range(draws):
        image = np.zeros((3, 16, 16), np.uint8)
        erase(image, rng)
        erased += bool(image.any())
    assert within(erased, draws, 0.25)


@pytest.mark.parametrize("shape", [(3, 1, 1), (3, 1, 1000), (3, 2, 3)])
def test_what_no_rectangle_fits_in_stays(shape: Tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        image = np.zeros(shape, np.uint8)
        PAINT(image, rng)
        assert image.shape == shape and not image.all()
