"""Resizing is Pillow's, and every step comes in its turn."""

from __future__ import annotations

import numpy as np
import pytest
from distributions import within
from hypothesis import given
from hypothesis import strategies as st
from pictures import photograph
from PIL import Image, ImageOps

from ipu_vit.data.augment import EvaluationTransform, TrainingTransform
from ipu_vit.data.autoaugment import AutoAugment
from ipu_vit.data.crops import InceptionCrop, RandomResizedCrop, ResizeThenCrop
from ipu_vit.data.erasing import RandomErasing
from ipu_vit.data.jitter import ColourJitter
from ipu_vit.data.picture import Pixels
from ipu_vit.data.randaugment import RandAugment, TimmRandAugment
from ipu_vit.data.resize import RESAMPLING, channels_first
from ipu_vit.errors import UserError

WHOLE = RandomResizedCrop((1, 1), (1, 1))
"""Of square images."""


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_training_crops_and_resizes_as_pillow_does(interpolation: str) -> None:
    image, size = photograph(3, 300, 200), 24
    transform = TrainingTransform(size, RandomResizedCrop((0.3, 1)), interpolation, flip=0)
    for seed in range(20):
        ours = transform(Pixels(np.asarray(image)), np.random.default_rng(seed))
        box = RandomResizedCrop((0.3, 1)).box(300, 200, np.random.default_rng(seed))
        reference = channels_first(np.asarray(image.crop(box).resize((size, size), RESAMPLING[interpolation])))
        assert ours.shape == (3, size, size) and ours.dtype == np.uint8 and ours.flags.c_contiguous
        # Beyond the box's edge ours sees the image, the reference the edge repeated.
        inner = (slice(None), slice(3, -3), slice(3, -3))
        assert np.abs(ours[inner].astype(int) - reference[inner]).max() <= 1
        assert np.abs(ours.astype(int) - reference).mean() < 1


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resize_then_crop_is_the_two_in_turn(interpolation: str) -> None:
    image = photograph(3, 300, 200)
    resized = np.asarray(image.resize((32, 32), RESAMPLING[interpolation])).astype(int)
    windows = [channels_first(resized[y : y + 24, x : x + 24]) for x in range(9) for y in range(9)]
    transform = TrainingTransform(24, ResizeThenCrop(32, 24), interpolation, flip=0)
    chosen = set()
    for seed in range(30):
        ours = transform(Pixels(np.asarray(image)), np.random.default_rng(seed))
        differences = [np.abs(ours - window).max() for window in windows]
        chosen.add(int(np.argmin(differences)))
        assert min(differences) <= 2  # the two round their coefficients differently
    assert len(chosen) > 20


def test_flip_mirrors_with_the_stated_probability() -> None:
    image = np.asarray(photograph(4))
    plain, mirrored, often = (TrainingTransform(8, RandomResizedCrop(), flip=flip) for flip in (0, 1, 0.25))
    flips = 0
    for seed in range(1000):
        one, other = (transform(Pixels(image), np.random.default_rng(seed)) for transform in (plain, mirrored))
        np.testing.assert_array_equal(other, one[:, :, ::-1])
        flips += np.array_equal(often(Pixels(image), np.random.default_rng(seed)), other)
    assert within(flips, 1000, 0.25)


def test_the_change_sees_the_flipped_square_and_erasing_comes_last() -> None:
    seen = []

    def invert(square: Image.Image, rng: np.random.Generator) -> Image.Image:
        seen.append(np.asarray(square))
        return ImageOps.invert(square)

    image = np.asarray(photograph(4, 16, 16))
    white = RandomErasing(1.0, (255.0, 255.0, 255.0), (1e-9, 1e-9, 1e-9))
    ours = TrainingTransform(16, WHOLE, flip=1, change=invert, erase=white)(Pixels(image), np.random.default_rng(0))
    np.testing.assert_array_equal(seen[0], image[:, ::-1])
    erased = (ours == 255).all(axis=0)
    assert 0 < erased.sum() < erased.size
    np.testing.assert_array_equal(ours[:, ~erased], (255 - channels_first(image[:, ::-1]))[:, ~erased])


CHANGES = {
    "none": None,
    "autoaugment": AutoAugment(),
    "randaugment": RandAugment(3, 15.0),
    "timm_randaugment": TimmRandAugment(3, 9.0, 0.5, (124, 116, 104), Image.Resampling.BICUBIC),
    "jitter": ColourJitter(0.4, 0.4, 0.4, 0.5),
}


@given(
    width=st.sampled_from([1, 2, 3, 17, 1000]),
    height=st.sampled_from([1, 2, 5, 31, 1000]),
    size=st.sampled_from([1, 2, 7, 16]),
    change=st.sampled_from(sorted(CHANGES)),
    crop=st.sampled_from(["random_resized", "inception", "resize_then_crop"]),
    seed=st.integers(0, 1000),
)
def test_images_of_any_size_become_squares_by_the_seed_alone(
    width: int, height: int, size: int, change: str, crop: str, seed: int
) -> None:
    image = np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)
    crops = {
        "random_resized": RandomResizedCrop(),
        "inception": InceptionCrop(),
        "resize_then_crop": ResizeThenCrop(size + 3, size),
    }
    erase = RandomErasing(0.5, (124.0, 116.0, 104.0), (58.0, 57.0, 57.0))
    transform = TrainingTransform(size, crops[crop], "bicubic", 0.5, CHANGES[change], erase)
    before = image.copy()
    ours = transform(Pixels(image), np.random.default_rng(seed))
    assert ours.shape == (3, size, size) and ours.dtype == np.uint8
    assert ours.flags.c_contiguous and ours.flags.writeable
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(ours, transform(Pixels(image), np.random.default_rng(seed)))
    for resize in (None, size + 2):
        assert EvaluationTransform(resize, size)(image).shape == (3, size, size)


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


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_evaluation_without_a_margin_squeezes_the_whole_image(interpolation: str) -> None:
    image = photograph(5, 61, 40)
    ours = EvaluationTransform(None, 32, interpolation)(np.asarray(image))
    squeezed = channels_first(np.asarray(image.resize((32, 32), RESAMPLING[interpolation])))
    assert np.abs(ours.astype(int) - squeezed).max() <= 1  # rounding


def test_evaluation_leaves_images_of_the_right_size_alone() -> None:
    image = np.asarray(photograph(6, 32, 32))
    for resize in (32, None):
        np.testing.assert_array_equal(EvaluationTransform(resize, 32)(image), image.transpose(2, 0, 1))


def test_evaluation_of_an_endless_strip_computes_the_crop_only() -> None:
    strip = np.asarray(Image.new("RGB", (1, 100_000), "red"))
    assert EvaluationTransform(224, 224)(strip).shape == (3, 224, 224)


def test_evaluation_refuses_a_crop_beyond_the_image() -> None:
    with pytest.raises(UserError, match=r"data\.evaluation_resize=224 must be at least model\.image_size=384"):
        EvaluationTransform(224, 384)
