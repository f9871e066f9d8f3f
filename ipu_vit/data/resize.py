"""A box of an image becomes a square, with antialiasing.

The sides of the box may lie anywhere between pixels, and nothing is copied or computed outside it but what the
filter reaches. fast_image_resize does it with the processor's vector instructions (package cykooz.resizer);
where that is not installed Pillow does, whose every number is within a few steps of 255.
"""

from __future__ import annotations

from math import ceil, floor
from typing import Any, NamedTuple, Optional, Tuple

import numpy as np
from numpy.lib.stride_tricks import as_strided
from PIL import Image

from ipu_vit.data.crops import Box

RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

REACH = {"bilinear": 1, "bicubic": 2}
"""Pixels to either side that a filter looks at, of the image or, where the box is larger, of the square."""


def resized(image: np.ndarray, box: Box, size: int, interpolation: str) -> np.ndarray:
    """The box of an image as uint8, size × size × RGB, in memory of its own.

    The image is uint8, height × width × RGB; rows below the last of `rows_for` may be missing.
    """
    if FAST is not None:
        return FAST.resized(image, box, size, interpolation)
    return np.asarray(Image.fromarray(image).resize((size, size), RESAMPLING[interpolation], box=box))


def rows_for(box: Box, size: int, interpolation: str) -> int:
    """How many of the image's upper rows `resized` looks at, at most."""
    _, top, _, bottom = box
    return _beyond(bottom, bottom - top, size, interpolation)


def _before(start: float, side: float, size: int, interpolation: str) -> int:
    return max(0, floor(start - REACH[interpolation] * max(1, side / size)) - 1)


def _beyond(end: float, side: float, size: int, interpolation: str) -> int:
    return ceil(end + REACH[interpolation] * max(1, side / size)) + 1


class FastResizer(NamedTuple):
    """fast_image_resize, through the part of its package that takes Pillow's images for memory of four channels."""

    library: Any
    resizer: Any

    def resized(self, image: np.ndarray, box: Box, size: int, interpolation: str) -> np.ndarray:
        source, left, top = _source(image, box, size, interpolation)
        square = np.empty((size, size, 4), np.uint8)
        options = self.library.RustResizeOptions().set_resize_alg(CONVOLUTION, FILTERS[interpolation], 0)
        options = options.set_crop_box(box[0] - left, box[1] - top, box[2] - box[0], box[3] - box[1])
        wrapped = self.library.PilImageWrapper(source), self.library.PilImageWrapper(_as_pillow(square))
        self.resizer.resize_pil(*wrapped, options.set_use_alpha(False))
        return square[..., :3]


# The library's numbers, in both of its versions.
CONVOLUTION = 2
FILTERS = {"bilinear": 2, "bicubic": 3}  # Catmull and Rom's cubic is the one that Pillow has, too


def _source(image: np.ndarray, box: Box, size: int, interpolation: str) -> Tuple[Image.Image, int, int]:
    """What of an image the box needs, with four bytes for a pixel, and how many columns and rows it leaves out."""
    height, width, _ = image.shape
    if image.strides == (4 * width, 4, 1):  # as `decode` has it
        return _as_pillow(as_strided(image, (height, width, 4))), 0, 0
    left, top = (_before(box[side], box[side + 2] - box[side], size, interpolation) for side in (0, 1))
    right, bottom = (_beyond(box[side + 2], box[side + 2] - box[side], size, interpolation) for side in (0, 1))
    part = np.ascontiguousarray(image[top:bottom, left:right])  # ten times as fast as Pillow on old NumPy
    return Image.fromarray(part), left, top


def _as_pillow(memory: np.ndarray) -> Image.Image:
    """An array, height × width × 4, as an image in the same memory."""
    height, width, _ = memory.shape
    return Image.frombuffer("RGBA", (width, height), memory, "raw", "RGBA", 0, 1)


def _find_fast_resizer() -> Optional[FastResizer]:
    try:
        from cykooz_resizer import rust_lib as library
    except ImportError:
        try:
            from cykooz.resizer import rust_lib as library  # before version 4, which needs Python 3.10
        except ImportError:
            return None
    return FastResizer(library, library.RustResizer())


FAST = _find_fast_resizer()
