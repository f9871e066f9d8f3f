"""Colours change as torchvision's do."""

from __future__ import annotations

import numpy as np
import pytest
from distributions import BOUND, distance_between, distance_from_uniform
from pictures import photograph
from PIL import Image

from ipu_vit.data.jitter import ColourJitter, turn_hue

PLAIN = Image.new("RGB", (1, 1), (100, 100, 100))


def test_brightness_is_uniform_about_the_image() -> None:
    rng = np.random.default_rng(0)
    values = [ColourJitter(brightness=0.4)(PLAIN, rng).getpixel((0, 0))[0] + 0.5 for _ in range(400)]
    assert distance_from_uniform(values, 60, 140) < BOUND


def test_factors_never_fall_below_zero() -> None:
    """With a range of 2, brightness lies between 0 and 3 times the image's."""
    rng = np.random.default_rng(0)
    values = [ColourJitter(brightness=2.0)(PLAIN, rng).getpixel((0, 0))[0] + 0.5 for _ in range(600)]
    below = [value for value in values if value < 255]  # 3 × 100 is beyond white
    assert distance_from_uniform(below, 0, 255) < BOUND
    assert len(below) < len(values)


def test_order_is_random() -> None:
    """Of a pixel of 0 and one of 200, brightness by b > 1.275 makes 0 and 255; contrast by c < 1 then leaves their sum.

    In the other order the sum is 200 b, which is another number, or the lighter one is white. Both factors are
    uniform in (0, 2): the sum is 255, and neither is near the end, in a sixth of the images that go the first way.
    """
    image = Image.fromarray(np.array([[[0] * 3, [200] * 3]], np.uint8))
    rng, draws, first_way = np.random.default_rng(0), 2000, 0
    for _ in range(draws):
        dark, light = np.asarray(ColourJitter(brightness=1.0, contrast=1.0)(image, rng))[0, :, 0].astype(int)
        first_way += 253 <= dark + light <= 256 and dark >= 5
    assert draws / 6 * 0.35 < first_way < draws / 6 * 0.65


@pytest.mark.parametrize("turn, colour", [(1 / 3, (0, 255, 0)), (-1 / 3, (0, 0, 255)), (0.5, (0, 255, 255))])
def test_hue_turns(turn: float, colour: tuple[int, int, int]) -> None:
    red = Image.new("RGB", (1, 1), "red")
    assert np.abs(np.subtract(turn_hue(red, turn).getpixel((0, 0)), colour)).max() <= 6  # steps of 1/255 of the circle


def test_no_range_no_change() -> None:
    image = photograph(0)
    assert ColourJitter()(image, np.random.default_rng(0)) is image


@pytest.mark.parametrize("turn", [-0.5, -0.3, -0.001, 0.004, 0.2, 0.5])
def test_hue_is_torchvisions(turn: float) -> None:
    functional = pytest.importorskip("torchvision.transforms.functional")
    image = photograph(1)
    np.testing.assert_array_equal(np.asarray(turn_hue(image, turn)), np.asarray(functional.adjust_hue(image, turn)))


def test_results_are_distributed_as_torchvisions() -> None:
    """By the mean of each channel and the contrast, with all four ranges at once."""
    transforms = pytest.importorskip("torchvision.transforms")
    import torch

    torch.manual_seed(0)
    image, draws, rng = photograph(2, 12, 12), 3000, np.random.default_rng(0)
    ranges = (0.6, 0.5, 0.7, 0.2)
    ours, theirs = ColourJitter(*ranges), transforms.ColorJitter(*ranges)

    def measured(result: Image.Image) -> np.ndarray:
        pixels = np.asarray(result).astype(float)
        return np.array([*pixels.mean(axis=(0, 1)), pixels.std(), pixels.max()])

    one = np.array([measured(ours(image, rng)) for _ in range(draws)])
    other = np.array([measured(theirs(image)) for _ in range(draws)])
    for column in range(one.shape[1]):
        assert distance_between(one[:, column], other[:, column]) < BOUND
