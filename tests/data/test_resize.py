"""Resizing is Pillow's, with and without the package that is faster."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, Optional

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import photograph
from PIL import Image

from ipu_vit.data import resize
from ipu_vit.data.crops import Box, ResizeThenCrop, moved
from ipu_vit.data.resize import LEAST, RESAMPLING, channels_first, region_for, resized


@pytest.fixture(params=["fast", "Pillow"])
def resizer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "Pillow":
        monkeypatch.setattr(resize, "library", None)
    elif resize.library is None:
        pytest.skip("cykooz.resizer has no wheel for this machine")
    return str(request.param)


def picture(width: int, height: int) -> np.ndarray:
    """A photograph with the noise of a camera."""
    noise = np.random.default_rng(0).integers(-9, 10, size=(height, width, 3))
    return np.clip(np.asarray(photograph(1, width, height)).astype(int) + noise, 0, 255).astype(np.uint8)


def by_pillow(image: np.ndarray, box: Box, size: int, interpolation: str) -> np.ndarray:
    square = Image.fromarray(image).resize((size, size), RESAMPLING[interpolation], box=box)
    return channels_first(np.asarray(square)).astype(int)


@st.composite
def boxes(draw: Any, width: int, height: int) -> Box:
    def side(length: int) -> Any:
        whole = st.integers(0, length).map(float)
        return draw(
            st.lists(whole | st.floats(0, length), min_size=2, max_size=2).filter(lambda x: abs(x[0] - x[1]) > 1)
        )

    (left, right), (top, bottom) = sorted(side(width)), sorted(side(height))
    return left, top, right, bottom


@settings(max_examples=100)
@given(
    box=boxes(90, 70),
    size=st.integers(1, 48),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
    flip=st.booleans(),
    extra_byte=st.sampled_from([None, 0, 3]),
)
def test_any_box_is_resized_as_by_pillow(
    box: Box, size: int, interpolation: str, flip: bool, extra_byte: Optional[int]
) -> None:
    image = picture(90, 70)
    reference = by_pillow(image, box, size, interpolation)
    if extra_byte is not None:
        pixels = np.insert(image, extra_byte, 77, axis=2)
        image = pixels[..., 1:] if extra_byte == 0 else pixels[..., :3]
    ours = resized(image, box, size, interpolation, flip)
    assert ours.shape == (3, size, size) and ours.dtype == np.uint8 and ours.flags.c_contiguous
    difference = np.abs((ours[..., ::-1] if flip else ours) - reference)
    assert difference.mean() <= (0.5 if size > 8 else 1) and difference.max() <= 4


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_photograph_differs_by_less_than_half_a_step(resizer: str, interpolation: str) -> None:
    image, box = picture(500, 375), (60.0, 40.0, 370.0, 320.0)
    difference = np.abs(resized(image, box, 224, interpolation) - by_pillow(image, box, 224, interpolation))
    assert difference.mean() <= (0 if resizer == "Pillow" else 0.3)


@settings(max_examples=200)
@given(box=boxes(90, 70), size=st.integers(1, 48), interpolation=st.sampled_from(["bilinear", "bicubic"]))
def test_nothing_outside_the_region_makes_a_difference(box: Box, size: int, interpolation: str) -> None:
    image = picture(90, 70)
    left, top, right, bottom = region_for(box, size, interpolation)
    left = max(0, min(left, 90 - LEAST))  # narrower ones are Pillow's
    part = image[top:bottom, left : max(right, left + LEAST)]
    difference = resized(image, box, size, interpolation).astype(int)
    difference -= resized(part, moved(box, -left, -top), size, interpolation)
    assert np.abs(difference).max() <= 1  # of weights in between, one or the other way of rounding


def test_nothing_outside_the_region_makes_a_difference_to_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resize, "library", None)
    test_nothing_outside_the_region_makes_a_difference()


@settings(max_examples=200)
@given(width=st.integers(1, 300), height=st.integers(1, 300), seed=st.integers(0, 1000))
def test_boxes_between_pixels_end_within_the_image(width: int, height: int, seed: int) -> None:
    """Where rounding might have put a side beyond the edge."""
    image = np.zeros((height, width, 3), np.uint8)
    box = ResizeThenCrop(29, 23).box(width, height, np.random.default_rng(seed))
    assert not resized(image, box, 23, "bicubic").any()


def test_threads_do_not_share_what_they_compute_with(resizer: str) -> None:
    images = [picture(200 + number, 150) for number in range(8)]

    def work(image: np.ndarray) -> bytes:
        return b"".join(resized(image, (3, 5, 150, 140), size, "bicubic").tobytes() for size in (30, 40, 30))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, images * 10)) == [work(image) for image in images] * 10


def test_a_narrow_image_that_crashes_the_library_is_pillow_s() -> None:
    image, box = np.zeros((1000, 3, 3), np.uint8), (1.2, 200.0, 2.4, 600.0)
    assert np.array_equal(resized(image, box, 2, "bicubic"), by_pillow(image, box, 2, "bicubic"))
