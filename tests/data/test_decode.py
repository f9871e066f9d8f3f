"""Decoding agrees with Pillow, and refuses what is not a whole image."""

from __future__ import annotations

import pickle
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import photograph
from PIL import Image

from ipu_vit.data.decode import UnreadableImage, decode

PHOTOGRAPH = photograph(0)


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def decoded(tmp_path: Path, data: bytes, name: str = "image.jpg") -> np.ndarray:
    (tmp_path / name).write_bytes(data)
    return decode(tmp_path / name)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}], ids=str)
def test_jpeg_is_what_pillow_makes_of_it(tmp_path: Path, mode: str, options: Any) -> None:
    data = encoded(PHOTOGRAPH.convert(mode), "JPEG", **options)
    image = decoded(tmp_path, data)
    assert image.dtype == np.uint8 and image.shape == (45, 60, 3)
    np.testing.assert_array_equal(image, np.asarray(Image.open(BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_keep_every_pixel_whatever_the_suffix(tmp_path: Path, format: str) -> None:
    np.testing.assert_array_equal(decoded(tmp_path, encoded(PHOTOGRAPH, format)), np.asarray(PHOTOGRAPH))


def test_webp(tmp_path: Path) -> None:
    image = decoded(tmp_path, encoded(PHOTOGRAPH, "WEBP", lossless=True), "image.webp")
    np.testing.assert_array_equal(image, np.asarray(PHOTOGRAPH))


def test_palette(tmp_path: Path) -> None:
    palette = PHOTOGRAPH.quantize(16)
    np.testing.assert_array_equal(decoded(tmp_path, encoded(palette, "PNG")), np.asarray(palette.convert("RGB")))


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    image = decoded(tmp_path, encoded(red, "GIF", save_all=True, append_images=[blue]), "image.gif")
    assert (image == [255, 0, 0]).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_over_white(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(np.array([[[0, 0, 0, 0], [0, 0, 0, 128], [0, 0, 0, 255]]], np.uint8))
    image = image.quantize(4) if mode == "P" else image.convert(mode)
    assert decoded(tmp_path, encoded(image, "PNG"))[0, :, 0].tolist() == [255, 127, 0]


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bits_become_their_upper_8(tmp_path: Path, format: str) -> None:
    deep = np.array([[0, 255, 256, 0x1234, 0xFFFF]], dtype=np.uint16)
    image = decoded(tmp_path, encoded(Image.fromarray(deep), format))
    assert image[0, :, 0].tolist() == [0, 0, 1, 0x12, 0xFF]


def test_exif_orientation_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90° to view
    data = encoded(PHOTOGRAPH, "JPEG", exif=exif)
    assert decoded(tmp_path, data).shape == (45, 60, 3)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_cut_jpeg_never_yields_other_pixels(tmp_path: Path, mode: str, progressive: bool) -> None:
    """Every possible length is tried; only the end marker may be missing."""
    data = encoded(photograph(1, 24, 16).convert(mode), "JPEG", progressive=progressive)
    whole = decoded(tmp_path, data)
    for length in range(len(data)):
        try:
            image = decoded(tmp_path, data[:length])
        except UnreadableImage:
            continue
        np.testing.assert_array_equal(image, whole)
        assert length >= len(data) - 2


@pytest.mark.parametrize("filling", [b"", bytes(200)], ids=["nothing", "zeros"])
def test_a_cut_jpeg_with_an_end_marker_is_refused(tmp_path: Path, filling: bytes) -> None:
    data = encoded(PHOTOGRAPH, "JPEG")
    half = data[: len(data) * 3 // 4] + filling + b"\xff\xd9"
    assert Image.open(BytesIO(half)).convert("RGB").size == (60, 45)  # where Pillow sees no fault
    with pytest.raises(UnreadableImage, match="truncated"):
        decoded(tmp_path, half)


def test_a_flaw_that_spoils_no_pixel_is_forgiven(tmp_path: Path) -> None:
    data = encoded(PHOTOGRAPH, "JPEG")
    flawed = data[:-2] + b"stray" + data[-2:]
    np.testing.assert_array_equal(decoded(tmp_path, flawed), decoded(tmp_path, data))


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "empty"),
        (b"<html>404 Not Found</html>", "no image format"),
        (b"\xff\xd8\xff", "no image format"),
        (encoded(PHOTOGRAPH, "PNG")[:-300], "truncated|broken|unexpected"),
        (encoded(PHOTOGRAPH, "PPM"), "no image format"),
        (encoded(Image.new("F", (4, 4)), "TIFF"), "32-bit"),
    ],
    ids=["empty", "text", "stub", "cut PNG", "format not allowed", "float pixels"],
)
def test_other_files_are_refused_by_name(tmp_path: Path, data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableImage, match=reason) as caught:
        decoded(tmp_path, data)
    assert caught.value.path == str(tmp_path / "image.jpg")
    assert str(caught.value).startswith(str(tmp_path / "image.jpg"))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match="No such file"):
        decode(tmp_path / "gone.jpg")


def test_bombs_are_refused_before_they_are_unpacked(tmp_path: Path) -> None:
    png = bytearray(encoded(Image.new("L", (1, 1)), "PNG"))
    png[16:24] = struct.pack(">II", 60_000, 60_000)
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    jpeg = bytearray(encoded(PHOTOGRAPH, "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 60_000, 60_000)
    for bomb in (png, jpeg):
        with pytest.raises(UnreadableImage, match="pixels"):
            decoded(tmp_path, bytes(bomb))


def test_the_refusal_travels_between_processes() -> None:
    error = pickle.loads(pickle.dumps(UnreadableImage("a.jpg", "file is empty")))
    assert (error.path, error.reason, str(error)) == ("a.jpg", "file is empty", "a.jpg: file is empty")
