"""Boxes are distributed as torchvision's and as TensorFlow's."""

from __future__ import annotations

import math
from typing import Dict, Tuple

import numpy as np
import pytest
from distributions import BOUND, distance_between, distance_from_uniform
from hypothesis import given
from hypothesis import strategies as st

from ipu_vit.data.crops import Crop, InceptionCrop, RandomResizedCrop, ResizeThenCrop

DRAWS = 4000
SIDES = st.integers(1, 1200)


def boxes(crop: Crop, width: int, height: int, draws: int = DRAWS) -> np.ndarray:
    """Left, top, right and bottom, each as a row."""
    rng = np.random.default_rng(0)
    return np.array([crop.box(width, height, rng) for _ in range(draws)]).T


def test_boxes_have_the_stated_distribution_where_all_fit() -> None:
    """Area, logarithm of the ratio and place are uniform if no draw has to be rejected."""
    side = 4000
    left, top, right, bottom = boxes(RandomResizedCrop((0.1, 0.3), (3 / 4, 4 / 3)), side, side)
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
    left, top, right, bottom = boxes(RandomResizedCrop(), 500, 375)
    for ours, other in zip((top, left, bottom - top, right - left), theirs.T):
        assert distance_between(ours, other) < BOUND


def test_inception_boxes_have_the_stated_distribution_where_all_fit() -> None:
    """Ratio and place are uniform, and so is the height between those of the two areas."""
    side = 4000
    left, top, right, bottom = boxes(InceptionCrop((0.1, 0.3), (3 / 4, 4 / 3)), side, side)
    across, down = right - left, bottom - top
    ratio = across / down
    least, most = (side * np.sqrt(area / ratio) for area in (0.1, 0.3))
    assert distance_from_uniform(ratio, 3 / 4, 4 / 3) < BOUND
    assert distance_from_uniform((down - least) / (most - least), 0, 1) < BOUND
    assert distance_from_uniform(left / (side - across), 0, 1) < BOUND
    assert distance_from_uniform(top / (side - down), 0, 1) < BOUND


# The share of 100,000 boxes of TensorFlow 2.11.1's sample_distorted_bounding_box (no boxes given,
# min_object_covered 0) whose left side, say, is at most that many pixels.
FOUND: Dict[Tuple[int, int, Tuple[float, float], Tuple[float, float]], Dict[str, Dict[int, float]]] = {
    (500, 375, (0.05, 1.0), (3 / 4, 4 / 3)): {
        "left": {19: 0.1008, 62: 0.3035, 111: 0.5028, 171: 0.7017, 261: 0.9007},
        "top": {5: 0.1055, 24: 0.3062, 51: 0.5018, 92: 0.7035, 163: 0.9014},
        "width": {125: 0.1008, 182: 0.3018, 238: 0.5006, 295: 0.7022, 376: 0.9007},
        "height": {124: 0.1027, 181: 0.3038, 236: 0.5008, 292: 0.7014, 348: 0.9033},
    },
    (60, 90, (0.3, 0.9), (0.5, 2.0)): {
        "left": {0: 0.2952, 1: 0.4453, 2: 0.5575, 4: 0.7048, 10: 0.9043},
        "top": {3: 0.1218, 10: 0.3046, 19: 0.5028, 30: 0.7077, 44: 0.9011},
        "width": {41: 0.1075, 49: 0.3142, 54: 0.5562, 57: 0.7789, 59: 0.9301},
        "height": {31: 0.1347, 35: 0.314, 41: 0.5041, 51: 0.7064, 69: 0.906},
    },
    (10, 15, (0.05, 1.0), (3 / 4, 4 / 3)): {
        "left": {0: 0.4481, 1: 0.6453, 2: 0.7819, 4: 0.9453},
        "top": {0: 0.1329, 2: 0.3894, 3: 0.5098, 5: 0.7198, 8: 0.9249},
        "width": {3: 0.1059, 5: 0.3897, 6: 0.5115, 8: 0.7535, 10: 1.0},
        "height": {3: 0.1463, 5: 0.4151, 6: 0.5429, 8: 0.7924, 10: 0.9342},
    },
}


@pytest.mark.parametrize("case", FOUND, ids=str)
def test_inception_boxes_are_distributed_as_tensorflows(
    case: Tuple[int, int, Tuple[float, float], Tuple[float, float]],
) -> None:
    width, height, area, ratio = case
    draws = 20_000
    left, top, right, bottom = boxes(InceptionCrop(area, ratio), width, height, draws)
    for name, values in (("left", left), ("top", top), ("width", right - left), ("height", bottom - top)):
        for at, share in FOUND[case][name].items():
            spread = math.sqrt(share * (1 - share) * (1 / draws + 1 / 100_000))
            assert abs((values <= at).mean() - share) <= 4 * spread, (name, at)


def test_inception_boxes_never_reach_the_far_edges_unless_as_large() -> None:
    left, _, right, _ = boxes(InceptionCrop(), 12, 12)
    assert set(right[left > 0]) == set(range(4, 12))  # the narrowest are 3 wide
    assert (right == 12).any()


@pytest.mark.parametrize("width, height", [(1, 1000), (1000, 20)])
def test_where_nothing_fits_inception_takes_all(width: int, height: int) -> None:
    assert set(zip(*boxes(InceptionCrop(), width, height, 20))) == {(0, 0, width, height)}


@pytest.mark.parametrize("width, height, box", [(10, 1000, (0, 493, 10, 506)), (1000, 10, (493, 0, 506, 10))])
def test_where_nothing_fits_the_middle_is_taken(width: int, height: int, box: Tuple[int, int, int, int]) -> None:
    assert RandomResizedCrop().box(width, height, np.random.default_rng(0)) == box


def test_a_crop_of_the_resized_image_lies_anywhere() -> None:
    """Of a 30 × 60 image as 6 × 6 pixels, 4 × 4 lie in 9 places, all as likely."""
    left, top, right, bottom = boxes(ResizeThenCrop(6, 4), 30, 60)
    np.testing.assert_allclose(right - left, 20)
    np.testing.assert_allclose(bottom - top, 40)
    places, counts = np.unique(np.stack([left / 5, top / 10]), axis=1, return_counts=True)
    assert places.T.tolist() == [[x, y] for x in range(3) for y in range(3)]
    assert ((counts - DRAWS / 9) ** 2 / (DRAWS / 9)).sum() < 26.1  # chi-square with 8 degrees, once in a thousand


@given(width=SIDES, height=SIDES, seed=st.integers(0, 10_000), low=st.floats(0.001, 1), high=st.floats(0.001, 1),
       ratios=st.tuples(st.floats(0.05, 20), st.floats(0.05, 20)))  # fmt: skip
def test_boxes_lie_within_images_of_any_size(
    width: int, height: int, seed: int, low: float, high: float, ratios: Tuple[float, float]
) -> None:
    area, ratio = (min(low, high), max(low, high)), (min(ratios), max(ratios))
    size = 1 + seed % 40
    crops = (RandomResizedCrop(area, ratio), InceptionCrop(area, ratio), ResizeThenCrop(size + seed % 7, size))
    for crop in crops:
        left, top, right, bottom = crop.box(width, height, np.random.default_rng(seed))
        assert 0 <= left < right <= width and 0 <= top < bottom <= height


@given(width=SIDES, height=SIDES, seed=st.integers(0, 10_000))
def test_inception_boxes_keep_the_area(width: int, height: int, seed: int) -> None:
    left, top, right, bottom = InceptionCrop((0.2, 0.6), (0.5, 2)).box(width, height, np.random.default_rng(seed))
    share = (right - left) * (bottom - top) / (width * height)
    assert 0.2 <= share <= 0.6 or (left, top, right, bottom) == (0, 0, width, height)
