"""From a decoded image to the square that the model sees.

Training takes a random part of the image (Szegedy et al. 2014, "Going deeper with convolutions"),
evaluation the middle. Pillow resizes with antialiasing and straight from the box, whose sides
may then be anywhere, so that nothing is copied or computed outside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Tuple

import numpy as np
from PIL import Image

from ipu_vit.errors import UserError

RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

Box = Tuple[int, int, int, int]
"""Left, top, right and bottom, as Pillow has it."""


@dataclass(frozen=True)
class RandomResizedCrop:
    """Draws boxes as torchvision's transform of that name does.

    Ten times a share of the area and a ratio of the sides are drawn, the ratio evenly in its
    logarithm, so that portrait and landscape are as likely; the first box that fits is placed
    anywhere. If none fits, the largest central box with a ratio in range is taken.
    """

    area: Tuple[float, float] = (0.08, 1.0)
    ratio: Tuple[float, float] = (3 / 4, 4 / 3)

    def box(self, width: int, height: int, rng: np.random.Generator) -> Box:
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(10):
            area = width * height * rng.uniform(*self.area)
            ratio = math.exp(rng.uniform(low, high))
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
class TrainingTransform:
    """Crop at random, resize, and flip left to right with probability `flip`."""

    image_size: int
    area: Tuple[float, float] = (0.08, 1.0)
    ratio: Tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bilinear"
    flip: float = 0.5

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        height, width = image.shape[:2]
        box = RandomResizedCrop(self.area, self.ratio).box(width, height, rng)
        resized = _resized(image, box, self.image_size, self.interpolation)
        return channels_first(resized[:, ::-1] if rng.random() < self.flip else resized)


@dataclass(frozen=True)
class EvaluationTransform:
    """Resize the shorter side to `resize` and cut the central `crop` × `crop` out of it.

    Sizes are rounded as torchvision's `Resize` and `CenterCrop` do; only the crop is computed.
    """

    resize: int
    crop: int
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if self.crop > self.resize:
            raise UserError(f"data.evaluation_resize={self.resize} must be at least model.image_size={self.crop}")

    def __call__(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        left, right = self._middle(width, min(width, height))
        top, bottom = self._middle(height, min(width, height))
        return channels_first(_resized(image, (left, top, right, bottom), self.crop, self.interpolation))

    def _middle(self, side: int, shorter: int) -> Tuple[float, float]:
        """Where the crop begins and ends along a side, in pixels before resizing."""
        resized = side * self.resize // shorter
        start = round((resized - self.crop) / 2)
        return start * side / resized, (start + self.crop) * side / resized


def _resized(image: np.ndarray, box: Tuple[float, float, float, float], size: int, interpolation: str) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((size, size), RESAMPLING[interpolation], box=box))


def channels_first(image: np.ndarray) -> np.ndarray:
    """Height × width × RGB to contiguous RGB × height × width."""
    return np.ascontiguousarray(image.transpose(2, 0, 1))
