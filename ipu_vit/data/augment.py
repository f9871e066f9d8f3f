"""From a decoded image to the square that the model sees.

Training takes a random part of the image, evaluation the middle, or all of it, straight from the pixels of the
file: nothing is copied or computed outside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Optional, Tuple

import numpy as np
from PIL import Image

from ipu_vit.data.crops import Box, Crop, moved
from ipu_vit.data.erasing import RandomErasing
from ipu_vit.data.picture import Picture
from ipu_vit.data.resize import channels_first, region_for, resized
from ipu_vit.errors import UserError

Change = Callable[[Image.Image, np.random.Generator], Image.Image]
"""What colour jitter or a policy makes of an image: another of the same size."""


@dataclass(frozen=True)
class TrainingTransform:
    """Crop and resize, flip left to right with probability `flip`, change, and erase, in this order.

    Takes a picture, gives uint8 (3, image_size, image_size); raises UnreadableImage.
    """

    image_size: int
    crop: Crop
    interpolation: str = "bilinear"
    flip: float = 0.5
    change: Optional[Change] = None
    erase: Optional[RandomErasing] = None

    def __call__(self, picture: Picture, rng: np.random.Generator) -> np.ndarray:
        box = self.crop.box(picture.width, picture.height, rng)
        image, left, top = picture.part(region_for(box, self.image_size, self.interpolation))
        flip = bool(rng.random() < self.flip)
        pixels = resized(image, moved(box, -left, -top), self.image_size, self.interpolation, flip)
        if self.change is not None:
            square = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
            pixels = channels_first(np.asarray(self.change(square, rng)))
        if self.erase is not None:
            self.erase(pixels, rng)
        return pixels


@dataclass(frozen=True)
class EvaluationTransform:
    """Resize the shorter side to `resize` and cut the central `crop` × `crop` out of it.

    Sizes are rounded as torchvision's `Resize` and `CenterCrop` do; only the crop is computed.
    Without `resize` the whole image is squeezed into the square, as vit_jax does.
    """

    resize: Optional[int]
    crop: int
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if self.resize is not None and self.crop > self.resize:
            raise UserError(f"data.evaluation_resize={self.resize} must be at least model.image_size={self.crop}")

    def __call__(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        return resized(image, self._box(width, height), self.crop, self.interpolation)

    def _box(self, width: int, height: int) -> Box:
        if self.resize is None:
            return 0, 0, width, height
        left, right = self._middle(width, self.resize * width // min(width, height))
        top, bottom = self._middle(height, self.resize * height // min(width, height))
        return left, top, right, bottom

    def _middle(self, side: int, resized: int) -> Tuple[float, float]:
        """Where the crop begins and ends along a side, in pixels before resizing."""
        start = round((resized - self.crop) / 2)
        return start * side / resized, (start + self.crop) * side / resized
