"""JPEGs decoded in part have the pixels of the whole, and what is missing from them is noticed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any, Optional

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import photograph
from PIL import Image

from ipu_vit.data import turbojpeg
from ipu_vit.data.crops import Region
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


def decoded(data: bytes, region: Optional[Region] = None) -> np.ndarray:
    """The whole, or exactly that region."""
    picture = EncodedImage(data, "image.jpg")
    return picture.pixels() if region is None else cut(*picture.part(region), region)


def cut(pixels: np.ndarray, left: int, top: int, region: Region) -> np.ndarray:
    """A region of what begins at a column and a row of an image, and holds the region."""
    assert left <= region.left and top <= region.top
    return pixels[region.top - top : region.bottom - top, region.left - left : region.right - left]


@st.composite
def regions(draw: st.DrawFn, width: int, height: int) -> Region:
    """Regions that begin in an image of that size; some end beyond it."""
    left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    return Region(left, top, left + draw(st.integers(1, width)), top + draw(st.integers(1, height)))


@settings(max_examples=300)
@given(
    drawing=st.data(),
    width=st.integers(1, 140),
    height=st.integers(1, 70),
    mode=st.sampled_from(["RGB", "L", "CMYK"]),
    options=KINDS,
)
def test_a_region_is_that_of_the_whole(
    drawing: st.DataObject, width: int, height: int, mode: str, options: Any
) -> None:
    data = encoded(width, height, mode, **options)
    picture, whole = EncodedImage(data, "image.jpg"), by_pillow(data)
    assert (picture.width, picture.height) == (width, height)
    region = drawing.draw(regions(width, height))
    part = cut(*picture.part(region), region)
    assert part.dtype == np.uint8
    np.testing.assert_array_equal(part, cut(whole, 0, 0, region))
    np.testing.assert_array_equal(picture.pixels(), whole)


def test_where_the_library_is_missing_the_whole_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turbojpeg, "library", None)
    test_a_region_is_that_of_the_whole()


def test_no_pixels_are_not_the_rest_of_the_image() -> None:
    if turbojpeg.library is not None:
        with pytest.raises(ValueError, match="no pixels: columns 32 to 32, rows 5 to 60"):
            turbojpeg.decode_region(encoded(64, 64), 32, 5, 32, 60)


def test_threads_decode_at_the_same_time() -> None:
    files = [encoded(300, 200, seed=seed) for seed in range(8)]
    region = Region(100, 50, 290, 180)

    def work(data: bytes) -> bytes:
        return decoded(data, region).tobytes()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, files * 20)) == [work(data) for data in files] * 20


LOWER = Region(10, 30, 60, 90)


def test_a_thumbnail_before_the_image_is_not_taken_for_it() -> None:
    thumbnail, data = encoded(20, 50), encoded(64, 200)
    comment = b"\xff\xfe" + (2 + len(thumbnail)).to_bytes(2, "big") + thumbnail  # a segment like EXIF's
    expected = cut(by_pillow(data), 0, 0, LOWER)
    np.testing.assert_array_equal(decoded(data[:2] + comment + data[2:], LOWER), expected)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_cut_file_is_refused_whatever_part_is_asked_for(progressive: bool) -> None:
    """Every possible length is tried; only the end marker may be missing."""
    data = encoded(24, 64, progressive=progressive)
    upper = Region(3, 0, 20, 10)
    for length in range(len(data)):
        try:
            pixels = decoded(data[:length], upper)
        except UnreadableImage:
            continue
        assert length >= len(data) - 2
        np.testing.assert_array_equal(pixels, cut(by_pillow(data), 0, 0, upper))


@pytest.mark.parametrize("filling", [b"", bytes(300)], ids=["nothing", "zeros"])
def test_of_a_cut_file_with_an_end_marker_only_what_is_there_is_used(filling: bytes) -> None:
    """What is below the region is not looked at, which is what makes it cheap."""
    data = encoded(64, 200)
    half = data[: len(data) // 2] + filling + b"\xff\xd9"
    upper = Region(5, 20, 50, 60)
    np.testing.assert_array_equal(decoded(half, upper), cut(by_pillow(data), 0, 0, upper))
    for region in (Region(5, 60, 50, 150), Region(0, 180, 64, 200), None):
        with pytest.raises(UnreadableImage, match="truncated"):
            decoded(half, region)


@settings(max_examples=200)
@given(place=st.floats(0, 1), bit=st.integers(0, 7), region=regions(40, 60), options=KINDS)
def test_a_flipped_bit_makes_no_difference_between_the_part_and_the_whole(
    place: float, bit: int, region: Region, options: Any
) -> None:
    """Whatever libjpeg makes of damaged data, it makes of them in both; refusals aside."""
    data = bytearray(encoded(40, 60, **options))
    header = data.index(b"\xff\xda")
    data[header + int(place * (len(data) - 1 - header))] ^= 1 << bit
    try:
        part, whole = decoded(bytes(data), region), decoded(bytes(data))
    except UnreadableImage:
        return
    np.testing.assert_array_equal(part, cut(whole, 0, 0, region))
