"""A box of an image becomes the model's square, with antialiasing.

The sides of the box may lie anywhere between pixels, and nothing is copied or computed outside it but what the
filter reaches. fast_image_resize does it with the processor's vector instructions (package cykooz.resizer);
where that is not installed Pillow does, and numbers differ by a few steps of 255 at most.
"""

from __future__ import annotations

import threading
from math import ceil, floor
from typing import Optional, Tuple

import numpy as np
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
        self._square, self._turned = _Square(size), _Square(size)
        self._target = library.PilImageWrapper(_in_memory_of(self._square.pixels))

    def resized(self, image: np.ndarray, box: Box, size: int, interpolation: str, flip: bool) -> np.ndarray:
        if len(self._square.pixels) != size:
            self._set_size(size)
        memory = _four_bytes(image)
        if memory is not None:
            source, left, top = _in_memory_of(memory), 0, 0
        else:
            source, left, top = _copy(image, region_for(box, size, interpolation))
        way = library.RustResizeOptions().set_resize_alg(CONVOLUTION, FILTERS[interpolation], 0)
        way = way.set_crop_box(box[0] - left, box[1] - top, box[2] - box[0], box[3] - box[1]).set_use_alpha(False)
        self._resizer.resize_pil(library.PilImageWrapper(source), self._target, way)
        return self._turn().planes() if flip else self._square.planes()

    def _turn(self) -> _Square:
        """The square turned left to right."""
        self._turned.colours[0][:] = self._square.colours[0][:, ::-1]
        return self._turned


class _Square:
    """Pixels of four bytes, and each of their colours as the lowest byte of a number that begins there.

    NumPy cuts numbers down to bytes with vector instructions, unlike what it does with every fourth byte.
    """

    def __init__(self, size: int) -> None:
        memory = np.zeros(4 * size * size + 4, np.uint8)
        self.pixels = memory[:-4].reshape(size, size, 4)
        self.colours = [np.ndarray((size, size), "<u4", memory, first_byte) for first_byte in range(3)]

    def planes(self) -> np.ndarray:
        """A copy as RGB × size × size."""
        planes = np.empty((3, *self.pixels.shape[:2]), np.uint8)
        for plane, colour in zip(planes, self.colours):
            plane[:] = colour
        return planes


def _four_bytes(image: np.ndarray) -> Optional[np.ndarray]:
    """The array `rgba` if the image is `rgba[..., :3]`."""
    rgba, (height, width, _) = image.base, image.shape
    if not isinstance(rgba, np.ndarray) or rgba.shape != (height, width, 4) or rgba.strides != image.strides:
        return None
    return rgba if rgba.ctypes.data == image.ctypes.data else None


def _in_memory_of(pixels: np.ndarray) -> Image.Image:
    """An array, height × width × 4, as an image that shares its memory."""
    height, width, _ = pixels.shape
    return Image.frombuffer("RGBA", (width, height), pixels, "raw", "RGBA", 0, 1)


# The library's numbers, in all of its versions.
CONVOLUTION = 2
FILTERS = {"bilinear": 2, "bicubic": 3}  # Catmull and Rom's cubic is the one that Pillow has, too


def _copy(image: np.ndarray, region: Region) -> Tuple[Image.Image, int, int]:
    """A region of an image, in four bytes for a pixel, and how many columns and rows were left out before it."""
    height, width, _ = image.shape
    left, top, right, bottom = region
    size = min(right, width) - left, min(bottom, height) - top
    rows = np.ascontiguousarray(image[top:bottom]).reshape(-1)
    return Image.frombuffer("RGB", size, rows[3 * left :], "raw", "RGB", 3 * width, 1), left, top


if library is not None:
    _FAST = FastResizer()
