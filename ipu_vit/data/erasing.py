"""Random erasing (Zhong et al. 2017), as timm's `RandomErasing` does it in its mode `pixel`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Tuple

import numpy as np

AREA = (0.02, 1 / 3)
"""Share of the image."""

RATIO = (0.3, 1 / 0.3)
"""Height divided by width."""


@dataclass(frozen=True)
class RandomErasing:
    """Writes noise over a rectangle with some probability.

    Noise is standard normal once the device has subtracted `mean` and divided by `std` (both per
    channel, 0 to 255), but for the rounding to whole numbers, and for what would be darker than
    black or lighter than white, which becomes black or white: beyond -2.1 and 2.2 in red with
    ImageNet's mean and std, and beyond -1 and 1 where both are 127.5.
    """

    probability: float
    mean: Tuple[float, float, float]
    std: Tuple[float, float, float]

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> None:
        """Change a uint8 image (3, height, width) in place."""
        if rng.random() >= self.probability:
            return
        _, height, width = image.shape
        for _ in range(10):
            area = height * width * rng.uniform(*AREA)
            ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
            down, across = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if down < height and across < width:
                top, left = rng.integers(height - down + 1), rng.integers(width - across + 1)
                image[:, top : top + down, left : left + across] = self._noise(down, across, rng)
                return

    def _noise(self, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
        """uint8 (3, height, width)."""
        normal = rng.standard_normal((3, height, width), np.float32)
        mean, std = (np.asarray(values, np.float32)[:, None, None] for values in (self.mean, self.std))
        return np.clip(np.rint(mean + std * normal), 0, 255).astype(np.uint8)
