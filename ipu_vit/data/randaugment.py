"""RandAugment (Cubuk et al. 2019), as TensorFlow's models and as timm have it.

Strength is magnitude / 10 in both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Sequence

import numpy as np
from PIL import Image, ImageOps

from ipu_vit.data import operations
from ipu_vit.data.operations import ALIKE, LESS_OR_MORE, Canvas, Colour, Operation


def _tensorflow_contrast(image: Image.Image, factor: float) -> Image.Image:
    """Towards a grey that is meant as the image's mean but is its number of pixels / 256, at most white."""
    grey = min(image.width * image.height // 256, 255)
    return Image.blend(Image.new("RGB", image.size, (grey, grey, grey)), image, factor)


def _tensorflow_posterize(image: Image.Image, bits: int) -> Image.Image:
    """More than 8 bits, and none, are shifts by more than a byte's 7 at most: the first bit stays."""
    return operations.posterize(image, bits if 1 <= bits <= 8 else 1)


TENSORFLOW: Dict[str, Operation] = {
    **ALIKE,
    "Posterize": Operation(lambda image, strength, canvas: _tensorflow_posterize(image, int(4 * strength))),
    # The threshold is a byte: 256, which magnitude 10 should leave all pixels alone with, is 0 and inverts them.
    "Solarize": Operation(lambda image, strength, canvas: ImageOps.solarize(image, int(256 * strength) % 256)),
    "SolarizeAdd": Operation(lambda image, strength, canvas: operations.solarize_add(image, int(110 * strength))),
    "Color": Operation(lambda image, strength, canvas: operations.colour(image, 0.1 + 1.8 * strength)),
    "Contrast": Operation(lambda image, strength, canvas: _tensorflow_contrast(image, 0.1 + 1.8 * strength)),
    "Brightness": Operation(lambda image, strength, canvas: operations.brightness(image, 0.1 + 1.8 * strength)),
    "Sharpness": Operation(lambda image, strength, canvas: operations.sharpness(image, 0.1 + 1.8 * strength)),
    "TranslateX": Operation(
        lambda image, strength, canvas: operations.translate_x(image, 100 * strength, canvas), signed=True
    ),
    "TranslateY": Operation(
        lambda image, strength, canvas: operations.translate_y(image, 100 * strength, canvas), signed=True
    ),
    "Cutout": Operation(lambda image, strength, canvas: operations.cutout(image, int(40 * strength), canvas)),
}
"""Those of big_vision (pp/autoaugment.py) and EfficientNet, which AugReg's weights were trained with."""

TIMM: Dict[str, Operation] = {
    **ALIKE,
    **LESS_OR_MORE,
    "Posterize": Operation(lambda image, strength, canvas: operations.posterize(image, 4 - int(4 * strength))),
    "Solarize": Operation(lambda image, strength, canvas: ImageOps.solarize(image, 256 - int(256 * strength))),
    "SolarizeAdd": Operation(lambda image, strength, canvas: operations.solarize_add(image, int(110 * strength))),
    "TranslateX": Operation(
        lambda image, strength, canvas: operations.translate_x(image, 0.45 * strength * image.width, canvas),
        signed=True,
    ),
    "TranslateY": Operation(
        lambda image, strength, canvas: operations.translate_y(image, 0.45 * strength * image.height, canvas),
        signed=True,
    ),
}
"""timm's increasing set (`inc1`), which MAE and DeiT fine-tune with."""


@dataclass(frozen=True)
class RandAugment:
    """As TensorFlow's models have it: `layers` operations in a row, each any of the 16, always done."""

    layers: int
    magnitude: float

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        canvas = Canvas(rng)
        for operation in _any_of(TENSORFLOW, self.layers, rng):
            image = operation.draw(image, self.magnitude / 10, canvas)
        return image


@dataclass(frozen=True)
class TimmRandAugment:
    """timm's `rand-m{magnitude}-n{layers}-mstd{deviation}-inc1`.

    Each of `layers` operations, any of the 15, is done half the time, with a magnitude from a normal
    distribution that is cut at 0 and 10. Beyond the edges is `fill`, the images' mean.
    """

    layers: int
    magnitude: float
    deviation: float
    fill: Colour
    resampling: Image.Resampling

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        canvas = Canvas(rng, self.fill, self.resampling)
        for operation in _any_of(TIMM, self.layers, rng):
            if rng.random() < 0.5:
                magnitude = min(max(rng.normal(self.magnitude, self.deviation), 0.0), 10.0)
                image = operation.draw(image, magnitude / 10, canvas)
        return image


def _any_of(known: Dict[str, Operation], count: int, rng: np.random.Generator) -> Sequence[Operation]:
    choice = list(known.values())
    return [choice[index] for index in rng.integers(len(choice), size=count)]
