"""The policy is torchvision's, whose every operation ours is to the pixel."""

from __future__ import annotations

from typing import List

import numpy as np
import pytest
from distributions import frequencies_agree
from pictures import photograph
from PIL import Image

from ipu_vit.data.autoaugment import OPERATIONS, SUB_POLICIES, AutoAugment
from ipu_vit.data.operations import GREY, Canvas

LEVELS = range(10)


def done(name: str, level: int, image: Image.Image, sign: int = 1) -> np.ndarray:
    return np.asarray(OPERATIONS[name].apply(image, sign * level / 9, Canvas(np.random.default_rng(0))))


def test_strengths_of_mmclassification() -> None:
    """Its configuration states bits, thresholds and degrees for some of the levels."""
    ramp = Image.fromarray(np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(1, 256, 3))
    value = np.arange(256)
    for level, bits in ((8, 4), (7, 5), (6, 5), (5, 6)):
        kept = done("Posterize", level, ramp)[0, :, 0]
        np.testing.assert_array_equal(kept, value // 2 ** (8 - bits) * 2 ** (8 - bits))
    for level, threshold in ((5, 256 / 9 * 4), (4, 256 / 9 * 5), (3, 256 / 9 * 6), (8, 256 / 9)):
        solarized = done("Solarize", level, ramp)[0, :, 0]
        np.testing.assert_array_equal(solarized, np.where(value < threshold, value, 255 - value))
    image = photograph(0, 40, 30)
    for level, degrees in ((9, 30), (8, 240 / 9), (3, 10)):
        for sign in (1, -1):
            rotated = image.rotate(sign * degrees, Image.Resampling.NEAREST, fillcolor=GREY)
            np.testing.assert_array_equal(done("Rotate", level, image, sign), np.asarray(rotated))


def test_probabilities_and_levels_are_torchvisions() -> None:
    torchvision = pytest.importorskip("torchvision.transforms.autoaugment")
    theirs = torchvision.AutoAugment().policies
    assert len(SUB_POLICIES) == len(theirs) == 25
    for ours, other in zip(SUB_POLICIES, theirs):
        for (name, probability, level), (their_name, their_probability, their_level) in zip(ours, other):
            assert (name, probability) == (their_name, their_probability)
            assert their_level is None or level == their_level


@pytest.mark.parametrize("level", LEVELS)
def test_operations_are_torchvisions(level: int) -> None:
    autoaugment = pytest.importorskip("torchvision.transforms.autoaugment")
    nearest = autoaugment.InterpolationMode.NEAREST
    image = photograph(1, 40, 31)
    strengths = autoaugment.AutoAugment()._augmentation_space(10, (31, 40))
    for name in OPERATIONS:
        magnitudes, signed = strengths[name]
        magnitude = float(magnitudes[level]) if magnitudes.ndim else 0.0
        if name == "Solarize":
            magnitude = 256 * (9 - level) / 9  # torchvision alone starts from 255
        assert OPERATIONS[name].signed == signed
        for sign in (1, -1) if signed else (1,):
            theirs = autoaugment._apply_op(image, name, sign * magnitude, nearest, [128, 128, 128])
            difference = np.abs(done(name, level, image, sign).astype(int) - np.asarray(theirs))
            # Where a pixel's source lies just between two, or a factor's last digit decides, either may come out.
            assert difference.max() <= 1 or (difference.max(axis=2) > 1).mean() < 0.01, (name, level)


def test_results_are_as_frequent_as_torchvisions() -> None:
    autoaugment = pytest.importorskip("torchvision.transforms.autoaugment")
    import torch

    torch.manual_seed(0)
    pixels = np.asarray(photograph(2, 9, 9)).copy()
    pixels[(pixels == 170) | (pixels == 142)] = 0  # where thresholds from 255 and 256 differ
    image, draws = Image.fromarray(pixels), 6000
    theirs = autoaugment.AutoAugment(fill=[128, 128, 128])
    rng = np.random.default_rng(0)
    both = [np.asarray(AutoAugment()(image, rng)).astype(int) for _ in range(draws)]
    both += [np.asarray(theirs(image)).astype(int) for _ in range(draws)]
    kinds: List[np.ndarray] = []

    def kind(result: np.ndarray) -> int:
        """Which of the results so far it is, but for what a factor's last digit decides."""
        for number, known in enumerate(kinds):
            if np.abs(known - result).max() <= 1:
                return number
        kinds.append(result)
        return len(kinds) - 1

    found = [kind(result) for result in both]
    assert len(kinds) > 30
    assert frequencies_agree(found[:draws], found[draws:])
