"""Random changes of brightness, contrast, saturation and hue, as torchvision's `ColorJitter` makes them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from ipu_vit.data.operations import brightness, colour, contrast


@dataclass(frozen=True)
class ColourJitter:
    """The four changes in random order.

    The factors of brightness, contrast and saturation are even between 1 less and 1 more the range,
    not below 0; hue turns by up to `hue` of the circle (at most 0.5) either way. A range of 0 leaves
    the image as it is.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        changes = ((brightness, self.brightness), (contrast, self.contrast), (colour, self.saturation))
        for which in rng.permutation(4):
            if which == 3:
                image = turn_hue(image, rng.uniform(-self.hue, self.hue))
            elif changes[which][1] > 0:
                change, reach = changes[which]
                image = change(image, rng.uniform(max(0.0, 1 - reach), 1 + reach))
        return image


def turn_hue(image: Image.Image, turn: float) -> Image.Image:
    """Turn all hues by a share of the circle, in steps of 1/255 as torchvision does."""
    steps = int(255 * turn)
    if not steps:
        return image
    hue, saturation, value = image.convert("HSV").split()
    turned = hue.point([(level + steps) % 256 for level in range(256)])
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")
