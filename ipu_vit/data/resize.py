"""A box of an image becomes the model's square, with antialiasing.

The sides of the box may lie anywhere between pixels, and nothing is copied or computed outside it but what the
filter reaches. fast_image_resize does it with the processor's vector instructions (package cykooz.resizer);
where that is not installed Pillow does, and numbers differ by a few steps of 255 at most.
"""

from __future__ import annotations

import threading
from math import ceil, floor
from typing import Tuple

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided
from PIL import Image

from ipu_vit.data.crops import Box, Region

try:
    from cykooz_resizer import rust_lib as library
except ImportError:
    try:
        from cykooz.resizer import rust_lib as library  # before version 4, which needs Python 3.10
    except ImportError:
        library = None

RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

LEAST = 16
"""Width in pixels, of image and square, below which Pillow resizes: the library crashes on some that are 2 and 3."""

REACH = {"bilinear": 1, "bicubic": 2}
"""Pixels to either side that a filter looks at, of the image or, where the box is larger, of the square."""


def resized(image: np.ndarray, box: Box, size: int, interpolation: str, flip: bool = False) -> np.ndarray:
    """The box of an image as uint8, RGB × size × size, turned left to right if `flip`.

    The image is uint8, height × width × RGB; nothing outside `region_for` is looked at. If a fourth byte follows the
    three of every pixel in memory, as in `rgba[..., :3]`, nothing is copied.
    """
    if library is not None and min(size, image.shape[1]) >= LEAST:
        return _FAST.resized(image, box, size, interpolation, flip)
    square = Image.fromarray(image).resize((size, size), RESAMPLING[interpolation], box=box)
    return channels_first(np.asarray(square)[:, ::-1] if flip else np.asarray(square))


def channels_first(image: np.ndarray) -> np.ndarray:
    """Height × width × RGB to contiguous RGB × height × width, in memory of its own."""
    return np.array(image.transpose(2, 0, 1), order="C")


def region_for(box: Box, size: int, interpolation: str) -> Region:
    """What of an image `resized` looks at, at most."""
    left, right = _span(box[0], box[2], size, interpolation)
    top, bottom = _span(box[1], box[3], size, interpolation)
    return Region(left, top, right, bottom)


def _span(start: float, end: float, size: int, interpolation: str) -> Tuple[int, int]:
    """The first pixel, and the one after the last, that a side of `size` pixels depends on."""
    reach = REACH[interpolation] * max(1, (end - start) / size)
    return max(0, floor(start - reach) - 1), ceil(end + reach) + 1


class FastResizer(threading.local):
    """fast_image_resize, through the part of its package that works in the memory of Pillow's images.

    Each thread has its own: a resizer keeps what it computes with.
    """

    def __init__(self) -> None:
        self._resizer = library.RustResizer()
        self._set_size(1)

    def _set_size(self, size: int) -> None:
        self._square = np.empty((size, size, 4), np.uint8)
        self._target = library.PilImageWrapper(_in_memory_of(self._square))

    def resized(self, image: np.ndarray, box: Box, size: int, interpolation: str, flip: bool) -> np.ndarray:
        if len(self._square) != size:
            self._set_size(size)
        source, left, top = _source(image, region_for(box, size, interpolation))
        way = library.RustResizeOptions().set_resize_alg(CONVOLUTION, FILTERS[interpolation], 0)
        way = way.set_crop_box(box[0] - left, box[1] - top, box[2] - box[0], box[3] - box[1]).set_use_alpha(False)
        self._resizer.resize_pil(library.PilImageWrapper(source), self._target, way)
        return _planes(self._square, flip)


def _in_memory_of(pixels: np.ndarray) -> Image.Image:
    """An array, height × width × 4, as an image that shares its memory."""
    height, width, _ = pixels.shape
    return Image.frombuffer("RGBA", (width, height), pixels, "raw", "RGBA", 0, 1)


# The library's numbers, in all of its versions.
CONVOLUTION = 2
FILTERS = {"bilinear": 2, "bicubic": 3}  # Catmull and Rom's cubic is the one that Pillow has, too


def _source(image: np.ndarray, region: Region) -> Tuple[Image.Image, int, int]:
    """An image in four bytes for a pixel, or a copy of a region that leaves out so many columns and rows."""
    height, width, _ = image.shape
    if image.strides == (4 * width, 4, 1):
        return _in_memory_of(as_strided(image, (height, width, 4))), 0, 0
    left, top, right, bottom = region
    cut_size = min(right, width) - left, min(bottom, height) - top
    rows = np.ascontiguousarray(image[top:bottom]).reshape(-1)
    return Image.frombuffer("RGB", cut_size, rows[3 * left :], "raw", "RGB", 3 * width, 1), left, top


def _planes(square: np.ndarray, flip: bool) -> np.ndarray:
    """Size × size × 4 to RGB × size × size. Each pixel is taken for one number, which is faster than four bytes."""
    pixels = square.view("<u4")[..., 0]
    planes = np.empty((3, *pixels.shape), np.uint8)
    planes[0] = pixels  # its lowest byte
    planes[1] = pixels >> 8
    planes[2] = pixels >> 16
    return torch.from_numpy(planes).flip(2).numpy() if flip else planes  # a third of what NumPy takes


if library is not None:
    _FAST = FastResizer()
