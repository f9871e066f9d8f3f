"""JPEGs decoded in part have the pixels of the whole, and what is missing from them is noticed."""

from __future__ import annotations

from io import BytesIO
from typing import Any, Optional

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import photograph
from PIL import Image

from ipu_vit.data.decode import EncodedImage, UnreadableImage

KINDS = st.fixed_dictionaries(
    {
        "progressive": st.booleans(),
        "subsampling": st.sampled_from([0, 1, 2]),
        "restart_marker_rows": st.sampled_from([0, 1]),
        "optimize": st.booleans(),
    }
)


def encoded(width: int, height: int, mode: str = "RGB", seed: int = 0, **options: Any) -> bytes:
    """A photograph with some noise, which fills the coefficients that a smooth one leaves empty."""
    noise = np.random.default_rng(seed).integers(40, size=(height, width, 3))
    image = Image.fromarray(np.clip(np.asarray(photograph(seed, width, height)) + noise, 0, 255).astype(np.uint8))
    file = BytesIO()
    image.convert(mode).save(file, "JPEG", **{"quality": 90, **options})
    return file.getvalue()


def by_pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(data)).convert("RGB"))


def decoded(data: bytes, rows: Optional[int] = None) -> np.ndarray:
    return EncodedImage(data, "image.jpg").pixels(rows)


@settings(max_examples=150)
@given(
    width=st.integers(1, 70),
    height=st.integers(1, 70),
    rows=st.integers(1, 80),
    mode=st.sampled_from(["RGB", "L", "CMYK"]),
    options=KINDS,
)
def test_upper_rows_are_those_of_the_whole(width: int, height: int, rows: int, mode: str, options: Any) -> None:
    data = encoded(width, height, mode, **options)
    picture = EncodedImage(data, "image.jpg")
    assert (picture.width, picture.height) == (width, height)
    upper = picture.pixels(rows)
    assert upper.dtype == np.uint8 and len(upper) >= min(rows, height)
    np.testing.assert_array_equal(upper, by_pillow(data)[: len(upper)])
    np.testing.assert_array_equal(picture.pixels(), by_pillow(data))


def test_a_thumbnail_before_the_image_is_not_taken_for_it() -> None:
    thumbnail, data = encoded(20, 50), encoded(64, 200)
    comment = b"\xff\xfe" + (2 + len(thumbnail)).to_bytes(2, "big") + thumbnail  # a segment like EXIF's
    np.testing.assert_array_equal(decoded(data[:2] + comment + data[2:], 90), by_pillow(data)[:90])


def test_fill_bytes_before_a_marker_are_passed_over() -> None:
    data = encoded(64, 200)
    frame = data.index(b"\xff\xc0")
    padded = data[:frame] + b"\xff\xff\xff" + data[frame:]
    np.testing.assert_array_equal(decoded(padded, 90), by_pillow(data)[:90])


@pytest.mark.parametrize("progressive", [False, True])
def test_a_cut_file_is_refused_whatever_part_is_asked_for(progressive: bool) -> None:
    """Every possible length is tried; only the end marker may be missing."""
    data = encoded(24, 64, progressive=progressive)
    upper = by_pillow(data)[:10]
    for length in range(len(data)):
        try:
            pixels = decoded(data[:length], 10)
        except UnreadableImage:
            continue
        assert length >= len(data) - 2
        np.testing.assert_array_equal(pixels, upper)


@pytest.mark.parametrize("filling", [b"", bytes(300)], ids=["nothing", "zeros"])
def test_of_a_cut_file_with_an_end_marker_only_what_is_there_is_used(filling: bytes) -> None:
    """The lower rows are not looked at, which is what makes upper ones cheap."""
    data = encoded(64, 200)
    half = data[: len(data) // 2] + filling + b"\xff\xd9"
    np.testing.assert_array_equal(decoded(half, 60), by_pillow(data)[:60])
    for rows in (150, 200, None):
        with pytest.raises(UnreadableImage, match="truncated"):
            decoded(half, rows)


@settings(max_examples=200)
@given(place=st.floats(0, 1), bit=st.integers(0, 7), rows=st.integers(1, 60), options=KINDS)
def test_a_flipped_bit_makes_no_difference_between_the_part_and_the_whole(
    place: float, bit: int, rows: int, options: Any
) -> None:
    """Whatever libjpeg makes of damaged data, it makes of them in both; refusals aside."""
    data = bytearray(encoded(40, 60, **options))
    header = data.index(b"\xff\xda")
    data[header + int(place * (len(data) - 1 - header))] ^= 1 << bit
    try:
        upper, whole = decoded(bytes(data), rows), decoded(bytes(data))
    except UnreadableImage:
        return
    np.testing.assert_array_equal(upper, whole[: len(upper)])
