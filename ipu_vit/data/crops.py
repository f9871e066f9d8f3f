"""Which part of an image becomes the model's square.

A crop draws a box in pixels of the image, whose sides may lie anywhere between them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Tuple

import numpy as np

Box = Tuple[float, float, float, float]
"""Left, top, right and bottom, as Pillow has it."""


class Region(NamedTuple):
    """Whole pixels: columns and rows from the first to before the last, which may be beyond the image."""

    left: int
    top: int
    right: int
    bottom: int


def moved(box: Box, right: float, down: float) -> Box:
    return box[0] + right, box[1] + down, box[2] + right, box[3] + down


class Crop(Protocol):
    """How a box is drawn in an image of any size; random numbers come from `rng` alone."""

    def box(self, width: int, height: int, rng: np.random.Generator) -> Box: ...


@dataclass(frozen=True)
class RandomResizedCrop:
    """Draws boxes as torchvision's transform of that name does (Szegedy et al. 2014, "Going deeper with convolutions").

    Ten times a share of the area and a ratio of the sides are drawn, the ratio evenly in its
    logarithm, so that portrait and landscape are as likely; the first box that fits is placed
    anywhere. If none fits, the largest central box with a ratio in range is taken.
    """

    area: Tuple[float, float] = (0.08, 1.0)
    ratio: Tuple[float, float] = (3 / 4, 4 / 3)

    def box(self, width: int, height: int, rng: np.random.Generator) -> Box:
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(10):
            area = width * height * _between(*self.area, rng)
            ratio = math.exp(_between(low, high, rng))
            across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < across <= width and 0 < down <= height:
                left, top = int(rng.integers(width - across + 1)), int(rng.integers(height - down + 1))
                return left, top, left + across, top + down
        return self._central_box(width, height)

    def _central_box(self, width: int, height: int) -> Box:
        across = max(1, min(width, round(height * self.ratio[1])))
        down = max(1, min(height, round(width / self.ratio[0])))
        left, top = (width - across) // 2, (height - down) // 2
        return left, top, left + across, top + down


@dataclass(frozen=True)
class InceptionCrop:
    """Draws boxes as TensorFlow's `sample_distorted_bounding_box` does without objects to cover.

    A hundred times a ratio of the sides is drawn, evenly, and then a height, evenly among those
    whose area is in range and that fit: so small areas are likelier than with `RandomResizedCrop`.
    Where rounding has left the range, the height gives way by a pixel. A box that is smaller than
    the image never touches its right or lower edge, because the place is drawn from as many
    pixels as remain, which is one too few. If nothing fits, the whole image is taken. (TensorFlow,
    core/kernels/image/sample_distorted_bounding_box_op.cc)
    """

    area: Tuple[float, float] = (0.05, 1.0)
    ratio: Tuple[float, float] = (3 / 4, 4 / 3)

    def box(self, width: int, height: int, rng: np.random.Generator) -> Box:
        for _ in range(100):
            across, down = self._sides(width, height, _between(*self.ratio, rng), rng)
            in_range = self.area[0] <= across * down / (width * height) <= self.area[1]
            if in_range and 0 < across <= width and 0 < down <= height:
                left = int(rng.integers(max(1, width - across)))
                top = int(rng.integers(max(1, height - down)))
                return left, top, left + across, top + down
        return 0, 0, width, height

    def _sides(self, width: int, height: int, ratio: float, rng: np.random.Generator) -> Tuple[int, int]:
        smallest, largest = (share * width * height for share in self.area)
        tallest = min(round(math.sqrt(largest / ratio)), height)
        if round(tallest * ratio) > width:
            tallest = int((width + 0.5) / ratio)
        down = int(rng.integers(min(round(math.sqrt(smallest / ratio)), tallest), tallest + 1))
        if round(down * ratio) * down < smallest:
            down += 1
        if round(down * ratio) * down > largest:
            down -= 1
        return round(down * ratio), down


@dataclass(frozen=True)
class ResizeThenCrop:
    """Draws any `crop` × `crop` pixels of the image as it would be when resized to `resize` × `resize`."""

    resize: int
    crop: int

    def box(self, width: int, height: int, rng: np.random.Generator) -> Box:
        left, top = (int(place) for place in rng.integers(self.resize - self.crop + 1, size=2))
        return (
            left * width / self.resize,
            top * height / self.resize,
            (left + self.crop) * width / self.resize,
            (top + self.crop) * height / self.resize,
        )


def _between(low: float, high: float, rng: np.random.Generator) -> float:
    """The number that `rng.uniform` would draw, in a quarter of the time."""
    return low + (high - low) * rng.random()
