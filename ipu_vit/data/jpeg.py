"""JPEG files, decoded by libjpeg-turbo: the whole by the package simplejpeg, a region by the library itself."""

from __future__ import annotations

from typing import Optional, Tuple

import numpy as np
import simplejpeg

from ipu_vit.data import turbojpeg
from ipu_vit.data.crops import Region

START, END = b"\xff\xd8", b"\xff\xd9"

CONTEXT = 2
"""Pixels beside a pixel that its colours depend on, where they have half the resolution and are interpolated."""


class Truncated(Exception):
    """Data are missing. libjpeg fills the place with grey, and Pillow would return that."""

    def __init__(self) -> None:
        super().__init__("JPEG data is truncated")


def size_of(data: bytes) -> Optional[Tuple[int, int]]:
    """Width and height of a JPEG that is decoded here, else none."""
    if not data.startswith(START):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return None if colours == "CMYK" else (width, height)  # Pillow knows that Adobe stores these inverted


def decode_whole(data: bytes) -> np.ndarray:
    """A JPEG as uint8, height × width × RGB; raises Truncated, or ValueError with libjpeg's words on other damage."""
    try:
        return simplejpeg.decode_jpeg(data)
    except ValueError as error:
        raise _cause(error) from error


def decode_region(data: bytes, width: int, height: int, region: Region) -> Tuple[np.ndarray, int, int]:
    """At least a region of a JPEG of that size, with the column and row that it begins at; raises as `decode_whole`.

    Damage below the region is not noticed, but of a file that is cut.
    """
    if turbojpeg.library is None or not data.endswith(END):
        return decode_whole(data), 0, 0
    left = max(0, region.left - CONTEXT) // turbojpeg.LEFT_STEP * turbojpeg.LEFT_STEP
    right, bottom = min(width, region.right + CONTEXT), min(height, region.bottom)
    try:
        pixels = turbojpeg.decode_region(data, left, region.top, right, bottom)
    except ValueError as error:
        raise _cause(error) from error
    return pixels[..., :3], left, region.top


def _cause(error: ValueError) -> Exception:
    return Truncated() if "premature end" in str(error).lower() else error
