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
        reaches = (self.brightness, self.contrast, self.saturation, self.hue)
        for which in rng.permutation(len(CHANGES)):
            reach, (change, neutral, least) = reaches[which], CHANGES[which]
            if reach > 0:
                image = change(image, rng.uniform(max(least, neutral - reach), neutral + reach))
        return image


def turn_hue(image: Image.Image, turn: float) -> Image.Image:
    """Turn all hues by a share of the circle, rounded as torchvision does: 255 times the share, of 256 hues."""
    steps = int(255 * turn)
    hue, saturation, value = image.convert("HSV").split()
    turned = hue.point([(level + steps) % 256 for level in range(256)])
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")


CHANGES = ((brightness, 1.0, 0.0), (contrast, 1.0, 0.0), (colour, 1.0, 0.0), (turn_hue, 0.0, -0.5))
"""Each with the amount that leaves an image as it is, and the least."""
