"""Operations and strengths of TensorFlow's formulas and of timm's code, and how often each is drawn."""

from __future__ import annotations

import random
from typing import Any, Dict

import numpy as np
import pytest
from distributions import BOUND, distance_from, frequencies_agree, normal, within
from pictures import photograph
from PIL import Image

from ipu_vit.data.operations import Canvas, Operation
from ipu_vit.data.randaugment import TENSORFLOW, TIMM, RandAugment, TimmRandAugment

BICUBIC = Image.Resampling.BICUBIC
FILL = (124, 116, 104)


def done(operation: Operation, level: float, image: Image.Image, **canvas: Any) -> np.ndarray:
    return np.asarray(operation.apply(image, level / 10, Canvas(np.random.default_rng(0), **canvas))).astype(int)


# TensorFlow's, written out with numpy. Rounding to bytes cuts off, as tf.cast does.


def blend(degenerate: Any, image: np.ndarray, level: float) -> np.ndarray:
    factor = level / 10 * 1.8 + 0.1
    return np.clip(degenerate + factor * (image - degenerate), 0, 255).astype(int)


def grey(image: np.ndarray) -> np.ndarray:
    return np.round(image @ [0.2989, 0.587, 0.114])[..., None]


def smooth(image: np.ndarray) -> np.ndarray:
    """A 3 × 3 filter of ones about a five, but for the border."""
    height, width, _ = image.shape
    shifts = [image[y : y + height - 2, x : x + width - 2] for y in range(3) for x in range(3)]
    smoothed = image.copy()
    smoothed[1:-1, 1:-1] = (sum(shifts) + 4 * image[1:-1, 1:-1]) // 13
    return smoothed


def moved(image: np.ndarray, across: int, down: int) -> np.ndarray:
    """Each pixel from so many further right and down."""
    height, width, _ = image.shape
    margin = max(abs(across), abs(down))
    canvas = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), constant_values=128)
    return canvas[margin + down :, margin + across :][:height, :width]


@pytest.mark.parametrize("level", [3, 5, 9, 10, 15, 20])
def test_operations_are_tensorflows(level: int) -> None:
    """The grey that contrast moves towards is the number of pixels / 256, and a threshold of 256 or more a byte's."""
    picture = photograph(3, 220, 150)
    image = np.asarray(picture).astype(int)
    threshold = {10: 0, 15: 128, 20: 0}.get(level, int(level * 25.6))
    step = {3: 128, 5: 64, 9: 32, 10: 16, 15: 4, 20: 1}[level]
    expected: Dict[str, np.ndarray] = {
        "Invert": 255 - image,
        "Posterize": image // step * step,
        "Solarize": np.where(image < threshold, image, 255 - image),
        "SolarizeAdd": np.where(image < 128, np.minimum(image + 11 * level, 255), image),
        "Color": blend(grey(image), image, level),
        "Contrast": blend(220 * 150 // 256, image, level),
        "Brightness": blend(0, image, level),
        "Sharpness": blend(smooth(image), image, level),
        "TranslateX": moved(image, 10 * level, 0),
        "TranslateY": moved(image, 0, 10 * level),
    }
    for name, result in expected.items():
        # Half a step in the other image's rounding counts by the factor, which goes up to 3.7.
        tolerance = 0 if name not in ("Color", "Sharpness", "Brightness", "Contrast") else 1 + level // 8
        assert np.abs(done(TENSORFLOW[name], level, picture) - result).max() <= tolerance, name
    for name, axis in (("TranslateX", 0), ("TranslateY", 1)):
        opposite = moved(image, *((-10 * level, 0) if axis == 0 else (0, -10 * level)))
        np.testing.assert_array_equal(done(TENSORFLOW[name], -level, picture), opposite)


def test_contrast_of_large_images_moves_towards_white() -> None:
    picture = photograph(3, 384, 384)
    image = np.asarray(picture).astype(int)
    np.testing.assert_array_equal(done(TENSORFLOW["Contrast"], 3, picture), blend(255, image, 3))


def test_histograms_are_spread() -> None:
    """Of greys that are all as frequent, the darkest becomes black and the lightest white, evenly in between."""
    ramp = np.repeat(np.arange(50, 178, dtype=np.uint8), 255 * 3).reshape(-1, 255, 3)
    for name in ("AutoContrast", "Equalize"):
        result = done(TENSORFLOW[name], 0, Image.fromarray(ramp))
        assert result.min() == 0 and result.max() == 255
        assert np.abs(result - (ramp.astype(int) - 50) * 255 / 127).max() < 2


@pytest.mark.parametrize("name", ["ShearX", "ShearY", "Rotate"])
def test_geometry_moves_a_dot_to_where_it_should_be(name: str) -> None:
    """Dots are seen where the inverse of the shear or rotation puts them, to a pixel; the rest is grey or black."""
    for level in (-9, -4, 6, 15):
        pixels = np.zeros((101, 101, 3), np.uint8)
        x, y = 62, 41
        pixels[y - 1 : y + 2, x - 1 : x + 2] = 255
        result = done(TENSORFLOW[name], level, Image.fromarray(pixels))
        if name == "ShearX":
            at = (x - 0.03 * level * y, y)
        elif name == "ShearY":
            at = (x, y - 0.03 * level * x)
        else:
            angle, dx, dy = np.radians(3 * level), x - 50, y - 50
            at = (50 + dx * np.cos(angle) + dy * np.sin(angle), 50 - dx * np.sin(angle) + dy * np.cos(angle))
        rows, columns = np.nonzero(result[..., 0] == 255)
        assert np.abs([columns.mean() - at[0], rows.mean() - at[1]]).max() < 1
        assert set(np.unique(result)) == {0, 128, 255}


def test_cutout_covers_a_square_about_any_pixel() -> None:
    """At level 1 its reach is 4: the square is 8 wide, from 4 before the pixel, cut at the edges."""
    rng, side, draws = np.random.default_rng(0), 20, 3000
    white, corners = Image.new("RGB", (side, side), "white"), []
    for _ in range(draws):
        covered = np.asarray(TENSORFLOW["Cutout"].apply(white, 0.1, Canvas(rng)))
        rows, columns = np.nonzero((covered == 128).all(axis=2))
        assert rows.size == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        corners += [(rows.min(), rows.max()), (columns.min(), columns.max())]
    expected = [(max(0, at - 4), min(at + 4, side) - 1) for at in range(side)]
    assert frequencies_agree(corners, expected * (2 * draws // side))


def test_all_sixteen_are_as_likely_and_always_done() -> None:
    image, draws = photograph(4, 30, 30), 4000
    names = {}
    for name, operation in TENSORFLOW.items():
        if name != "Cutout":
            for sign in (1, -1) if operation.signed else (1,):
                names[done(operation, sign * 2, image).astype(np.uint8).tobytes()] = name
    assert len(names) == 15 + 5
    rng = np.random.default_rng(1)
    drawn = [names.get(RandAugment(1, 2.0)(image, rng).tobytes(), "Cutout") for _ in range(draws)]
    assert frequencies_agree(drawn, list(TENSORFLOW) * (draws // 16))


def test_layers_follow_each_other() -> None:
    """Two layers come to what two policies of one layer do in turn."""
    image, rng, draws = photograph(5, 9, 9), np.random.default_rng(2), 4000
    one, two = RandAugment(1, 5.0), RandAugment(2, 5.0)
    assert frequencies_agree(
        [two(image, rng).tobytes() for _ in range(draws)], [one(one(image, rng), rng).tobytes() for _ in range(draws)]
    )


# timm's


@pytest.mark.parametrize("level", [0, 0.4, 3, 5.7, 9, 10])
def test_operations_are_timms(level: float) -> None:
    """Both signs of those that have one come out in timm, too, and nothing else."""
    timm = pytest.importorskip("timm.data.auto_augment")
    random.seed(0)
    image = photograph(6, 41, 30)
    their_names = {name.replace("Increasing", "").replace("Rel", ""): name for name in timm._RAND_INCREASING_TRANSFORMS}
    assert set(their_names) == set(TIMM)
    for name, their_name in their_names.items():
        step = timm.AugmentOp(their_name, 1.0, level, {"img_mean": FILL, "interpolation": BICUBIC})
        theirs = {step(image).tobytes() for _ in range(20)}
        signs = (1, -1) if TIMM[name].signed else (1,)
        ours = {
            done(TIMM[name], sign * level, image, fill=FILL, resampling=BICUBIC).astype(np.uint8).tobytes()
            for sign in signs
        }
        assert ours == theirs, name


def test_results_are_as_frequent_as_timms() -> None:
    timm = pytest.importorskip("timm.data.auto_augment")
    random.seed(0)
    np.random.seed(0)
    image, draws = photograph(7, 9, 9), 6000
    theirs = timm.rand_augment_transform("rand-m9-n2-inc1", {"img_mean": FILL, "interpolation": BICUBIC})
    ours, rng = TimmRandAugment(2, 9.0, 0.0, FILL, BICUBIC), np.random.default_rng(0)
    assert frequencies_agree(
        [ours(image, rng).tobytes() for _ in range(draws)], [theirs(image).tobytes() for _ in range(draws)]
    )


def test_operations_are_done_half_the_time() -> None:
    """Of the 15, Invert alone makes a lone black pixel white when what comes from outside is black."""
    rng, draws = np.random.default_rng(3), 6000
    policy = TimmRandAugment(1, 1.0, 0.0, (0, 0, 0), BICUBIC)
    black = Image.new("RGB", (1, 1))
    inverted = sum(policy(black, rng).getpixel((0, 0)) == (255, 255, 255) for _ in range(draws))
    assert within(inverted, draws, 0.5 / 15)


def brightnesses(magnitude: float, deviation: float, draws: int = 25_000) -> np.ndarray:
    """Magnitudes drawn where a white pixel was darkened: its value is 255 (1 − 0.09 m), cut off."""
    rng, white = np.random.default_rng(4), Image.new("RGB", (1, 1), "white")
    policy = TimmRandAugment(1, magnitude, deviation, (255, 255, 255), BICUBIC)
    values = np.array([policy(white, rng).getpixel((0, 0))[0] for _ in range(draws)])
    others = [0, 255, *(256 - 2 ** (8 - bits) for bits in range(1, 5))]  # by inverting, solarizing and posterizing
    return (1 - (values[~np.isin(values, others)] + 0.5) / 255) / 0.09


def test_magnitudes_are_normal() -> None:
    magnitudes = brightnesses(6.0, 0.5)
    assert len(magnitudes) > 300
    assert distance_from(magnitudes, normal(6.0, 0.5)) < BOUND
    assert abs(magnitudes.std() / 0.5 - 1) < 3.3 / np.sqrt(2 * len(magnitudes))


def test_magnitudes_end_at_ten() -> None:
    magnitudes = brightnesses(10.0, 2.0)
    assert within(int((magnitudes > 9.95).sum()), len(magnitudes), 0.5)
    assert magnitudes.max() < 10.05
