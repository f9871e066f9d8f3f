"""Boxes are distributed as torchvision's, and resizing is Pillow's."""

from __future__ import annotations

import math
from typing import Sequence

import numpy as np
import pytest
from pictures import photograph
from PIL import Image

from ipu_vit.data.augment import RESAMPLING, EvaluationTransform, RandomResizedCrop, TrainingTransform, channels_first
from ipu_vit.errors import UserError

DRAWS = 4000
BOUND = 1.95  # Kolmogorov's statistic exceeds this in one of a thousand cases


def distance_from_uniform(values: Sequence[float], low: float, high: float) -> float:
    """Kolmogorov's statistic: the largest distance of the distribution functions, times √n."""
    fractions = np.sort((np.asarray(values) - low) / (high - low))
    steps = np.arange(len(values) + 1) / len(values)
    return math.sqrt(len(values)) * max((steps[1:] - fractions).max(), (fractions - steps[:-1]).max())


def test_boxes_have_the_stated_distribution_where_all_fit() -> None:
    """Area, logarithm of the ratio and place are uniform if no draw has to be rejected."""
    crop, rng, side = RandomResizedCrop((0.1, 0.3), (3 / 4, 4 / 3)), np.random.default_rng(0), 4000
    left, top, right, bottom = np.array([crop.box(side, side, rng) for _ in range(DRAWS)]).T
    across, down = right - left, bottom - top
    assert distance_from_uniform(across * down / side**2, 0.1, 0.3) < BOUND
    assert distance_from_uniform(np.log(across / down), math.log(3 / 4), math.log(4 / 3)) < BOUND
    assert distance_from_uniform(left / (side - across), 0, 1) < BOUND
    assert distance_from_uniform(top / (side - down), 0, 1) < BOUND


def test_boxes_are_distributed_as_torchvisions() -> None:
    """Where draws are rejected, too: one of its sides often exceeds a 500 × 375 image."""
    transforms = pytest.importorskip("torchvision.transforms")
    import torch

    torch.manual_seed(0)
    image, area, ratio = torch.zeros(3, 375, 500), [0.08, 1.0], [3 / 4, 4 / 3]
    theirs = np.array([transforms.RandomResizedCrop.get_params(image, area, ratio) for _ in range(DRAWS)])
    rng = np.random.default_rng(0)
    left, top, right, bottom = np.array([RandomResizedCrop().box(500, 375, rng) for _ in range(DRAWS)]).T
    for ours, other in zip((top, left, bottom - top, right - left), theirs.T):
        at = np.arange(501)
        gap = np.searchsorted(np.sort(ours), at, "right") - np.searchsorted(np.sort(other), at, "right")
        assert np.abs(gap).max() / DRAWS * math.sqrt(DRAWS / 2) < BOUND


@pytest.mark.parametrize("width, height, box", [(10, 1000, (0, 493, 10, 506)), (1000, 10, (493, 0, 506, 10))])
def test_where_nothing_fits_the_middle_is_taken(width: int, height: int, box: tuple[int, int, int, int]) -> None:
    assert RandomResizedCrop().box(width, height, np.random.default_rng(0)) == box


@pytest.mark.parametrize("width, height", [(1, 1), (1, 7), (300, 1), (33, 34)])
def test_boxes_lie_within_images_of_any_size(width: int, height: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        left, top, right, bottom = RandomResizedCrop().box(width, height, rng)
        assert 0 <= left < right <= width and 0 <= top < bottom <= height


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_training_crops_and_resizes_as_pillow_does(interpolation: str) -> None:
    image, size = photograph(3, 300, 200), 24
    transform = TrainingTransform(size, area=(0.3, 1), interpolation=interpolation, flip=0)
    for seed in range(20):
        ours = transform(np.asarray(image), np.random.default_rng(seed))
        box = RandomResizedCrop((0.3, 1)).box(300, 200, np.random.default_rng(seed))
        reference = channels_first(np.asarray(image.crop(box).resize((size, size), RESAMPLING[interpolation])))
        assert ours.shape == (3, size, size) and ours.dtype == np.uint8 and ours.flags.c_contiguous
        # Beyond the box's edge ours sees the image, the reference the edge repeated.
        inner = (slice(None), slice(3, -3), slice(3, -3))
        assert np.abs(ours[inner].astype(int) - reference[inner]).max() <= 1
        assert np.abs(ours.astype(int) - reference).mean() < 1


def test_flip_mirrors_with_the_stated_probability() -> None:
    image = np.asarray(photograph(4))
    plain, mirrored, often = (TrainingTransform(8, flip=flip) for flip in (0, 1, 0.25))
    flips = 0
    for seed in range(1000):
        one, other = (transform(image, np.random.default_rng(seed)) for transform in (plain, mirrored))
        np.testing.assert_array_equal(other, one[:, :, ::-1])
        flips += np.array_equal(often(image, np.random.default_rng(seed)), other)
    assert abs(flips - 250) < 3.3 * math.sqrt(1000 * 0.25 * 0.75)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("width, height", [(60, 45), (45, 60), (51, 301), (32, 32), (20, 33)])
def test_evaluation_resizes_whole_and_cuts_the_middle(width: int, height: int, interpolation: str) -> None:
    image = photograph(5, width, height)
    ours = EvaluationTransform(36, 32, interpolation)(np.asarray(image))
    scale = 36 / min(width, height)
    resized = image.resize((int(width * scale + 1e-9), int(height * scale + 1e-9)), RESAMPLING[interpolation])
    left, top = round((resized.width - 32) / 2), round((resized.height - 32) / 2)
    reference = channels_first(np.asarray(resized.crop((left, top, left + 32, top + 32))))
    difference = np.abs(ours.astype(int) - reference)
    assert difference.max() <= 2 and difference.mean() < 0.25  # the two round their coefficients differently


def test_evaluation_leaves_images_of_the_right_size_alone() -> None:
    image = np.asarray(photograph(6, 32, 32))
    np.testing.assert_array_equal(EvaluationTransform(32, 32)(image), image.transpose(2, 0, 1))


def test_evaluation_of_an_endless_strip_computes_the_crop_only() -> None:
    strip = np.asarray(Image.new("RGB", (1, 100_000), "red"))
    assert EvaluationTransform(224, 224)(strip).shape == (3, 224, 224)


def test_evaluation_refuses_a_crop_beyond_the_image() -> None:
    with pytest.raises(UserError, match=r"data\.evaluation_resize=224 must be at least model\.image_size=384"):
        EvaluationTransform(224, 384)
