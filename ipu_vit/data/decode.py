"""An image file becomes an RGB array, or is refused.

libjpeg-turbo decodes plain JPEGs, faster than Pillow and to the same numbers; Pillow does the rest.

The EXIF orientation is not applied: models for ImageNet are trained and evaluated on pixels as
they are stored, and published scores include the few photographs that lie on their side.
"""

from __future__ import annotations

import os
from io import BytesIO
from typing import Union

import numpy as np
import simplejpeg
from PIL import Image

MOST_PIXELS = 2**27
"""A file of a few kilobytes can claim to hold gigabytes; no photograph comes near this."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
"""What Pillow may try. It knows formats that run other programs, and files come from strangers."""


class UnreadableImage(Exception):
    """A file that is no image, or not a whole one."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)  # both, so that it survives pickling
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def decode(path: Union[str, os.PathLike[str]]) -> np.ndarray:
    """Read an image file as uint8, height × width × RGB.

    Transparent pixels are laid over white; 16-bit pixels keep their upper 8 bits; of an animation
    the first frame counts. Raises UnreadableImage for everything else.
    """
    name = os.fspath(path)
    try:
        with open(name, "rb") as file:
            data = file.read()
    except OSError as error:
        raise UnreadableImage(name, error.strerror or str(error)) from error
    return decode_bytes(data, name)


def decode_bytes(data: bytes, name: str) -> np.ndarray:
    """What `decode` makes of a file with this content; `name` is for the message of UnreadableImage."""
    if not data:
        raise UnreadableImage(name, "file is empty")
    try:
        return _decode(data)
    except _Refused as refusal:
        raise UnreadableImage(name, str(refusal)) from refusal
    except Exception as error:  # Pillow's parsers let all kinds of exceptions through
        raise UnreadableImage(name, _without_address(error)) from error


def pixels_of(image: Image.Image) -> np.ndarray:
    """An opened picture as `decode` has it; raises UnreadableImage if it is of no kind that `decode` takes."""
    try:
        return np.array(_as_rgb(image))
    except _Refused as refusal:
        raise UnreadableImage(getattr(image, "filename", "") or "image", str(refusal)) from refusal


class _Refused(Exception):
    pass


def _decode(data: bytes) -> np.ndarray:
    if data.startswith(b"\xff\xd8"):
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            _check_size(width, height)
            if colours != "CMYK":  # Pillow knows that Adobe stores these inverted
                return simplejpeg.decode_jpeg(data)
        except ValueError as error:
            # libjpeg fills what is missing with grey; then Pillow would return the torso.
            if "premature end" in str(error).lower():
                raise _Refused("JPEG data is truncated") from error
    with Image.open(BytesIO(data), formats=FORMATS) as image:
        _check_size(*image.size)
        return np.array(_as_rgb(image))


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        raise _Refused("32-bit pixels have no agreed range; expected 8 or 16 bits per channel")
    if image.mode.startswith("I"):  # 16 bits; Pillow's own conversion would clip them
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode.endswith(("A", "a")) or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _check_size(width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise _Refused(f"{width} × {height} pixels are more than the {MOST_PIXELS} allowed")


def _without_address(error: Exception) -> str:
    return "no image format recognised" if isinstance(error, Image.UnidentifiedImageError) else str(error)
