"""An image file becomes an RGB array, or is refused.

libjpeg-turbo decodes plain JPEGs (`ipu_vit.data.jpeg`), faster than Pillow and to the same numbers; Pillow does
the rest.

The EXIF orientation is not applied: models for ImageNet are trained and evaluated on pixels as
they are stored, and published scores include the few photographs that lie on their side.
"""

from __future__ import annotations

import os
from contextlib import suppress
from io import BytesIO
from typing import Optional, Union

import numpy as np
from PIL import Image

from ipu_vit.data.crops import Region
from ipu_vit.data.jpeg import decode_region, decode_whole, size_of
from ipu_vit.data.picture import Part

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
    return open_image(path).pixels()


def open_image(path: Union[str, os.PathLike[str]]) -> EncodedImage:
    """Read an image file, to be decoded as far as it is needed; raises UnreadableImage, as does decoding it."""
    name = os.fspath(path)
    try:
        with open(name, "rb", buffering=0) as file:
            data = file.read()
    except OSError as error:
        raise UnreadableImage(name, error.strerror or str(error)) from error
    return EncodedImage(data, name)


class EncodedImage:
    """The content of an image file; `name` is for the message of UnreadableImage."""

    def __init__(self, data: bytes, name: str) -> None:
        self._data = data
        self._name = name
        with _refusing(name):
            if not data:
                raise _Refused("file is empty")
            size = size_of(data)
            self._is_jpeg = size is not None
            self.width, self.height = size or self._opened().size
            _check_size(self.width, self.height)

    def pixels(self) -> np.ndarray:
        """As `decode` has them."""
        with _refusing(self._name):
            if self._is_jpeg:
                with suppress(ValueError):  # Pillow forgives more
                    return decode_whole(self._data)
            return np.array(_as_rgb(self._opened()))

    def part(self, region: Region) -> Part:
        """At least that region of them, or all that there is, where decoding a region is not possible."""
        if self._is_jpeg:
            with _refusing(self._name), suppress(ValueError):
                return decode_region(self._data, self.width, self.height, region)
        return self.pixels(), 0, 0

    def _opened(self) -> Image.Image:
        return Image.open(BytesIO(self._data), formats=FORMATS)


def pixels_of(image: Image.Image) -> np.ndarray:
    """An opened picture as `decode` has it; raises UnreadableImage if it is of no kind that `decode` takes."""
    try:
        return np.array(_as_rgb(image))
    except _Refused as refusal:
        raise UnreadableImage(getattr(image, "filename", "") or "image", str(refusal)) from refusal


class _Refused(Exception):
    pass


class _refusing:
    """Make UnreadableImage of whatever is raised about the image of that name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: Optional[BaseException], traceback: object) -> None:
        if isinstance(error, Exception):  # Pillow's parsers let all kinds of exceptions through
            raise UnreadableImage(self._name, _without_address(error)) from error


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
