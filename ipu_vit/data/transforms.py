"""Settings to what is done to a decoded image before it travels to the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

import numpy as np
from PIL import Image

from ipu_vit.data.augment import RESAMPLING, EvaluationTransform, channels_first
from ipu_vit.settings import Settings


@dataclass(frozen=True)
class WholeImage:
    """Resize the whole image to the square `size` × `size`, whatever its shape."""

    size: int
    interpolation: str = "bilinear"

    def __call__(self, image: np.ndarray) -> np.ndarray:
        square = Image.fromarray(image).resize((self.size, self.size), RESAMPLING[self.interpolation])
        return channels_first(np.asarray(square))


def evaluation_transform(settings: Settings) -> Callable[[np.ndarray], np.ndarray]:
    """From uint8 (height, width, 3) to the uint8 (3, S, S) that the model is evaluated on."""
    data, size = settings.data, settings.model.image_size
    if data.is_random:
        return channels_first
    if data.evaluation_resize is None:
        return WholeImage(size, data.interpolation)
    return EvaluationTransform(data.evaluation_resize, size, data.interpolation)
