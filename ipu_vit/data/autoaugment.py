"""AutoAugment's policy for ImageNet (Cubuk et al. 2018, "AutoAugment: Learning augmentation policies from data").

Strength is level / 9, and every operation does the more the higher its level, as in torchvision, ClassyVision
(which lacks the last sub-policy) and mmclassification; timm's `original` posterizes and solarizes less at
higher levels. Beyond the edges is grey, as in ClassyVision.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Dict, Tuple

import numpy as np
from PIL import Image, ImageOps

from ipu_vit.data.operations import ALIKE, LESS_OR_MORE, Canvas, Operation, posterize

Step = Tuple[str, float, int]
"""An operation, its probability, and its level from 0 to 9."""

SUB_POLICIES: Tuple[Tuple[Step, Step], ...] = (
    (("Posterize", 0.4, 8), ("Rotate", 0.6, 9)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 5)),
    (("Equalize", 0.8, 8), ("Equalize", 0.6, 3)),
    (("Posterize", 0.6, 7), ("Posterize", 0.6, 6)),
    (("Equalize", 0.4, 7), ("Solarize", 0.2, 4)),
    (("Equalize", 0.4, 4), ("Rotate", 0.8, 8)),
    (("Solarize", 0.6, 3), ("Equalize", 0.6, 7)),
    (("Posterize", 0.8, 5), ("Equalize", 1.0, 2)),
    (("Rotate", 0.2, 3), ("Solarize", 0.6, 8)),
    (("Equalize", 0.6, 8), ("Posterize", 0.4, 6)),
    (("Rotate", 0.8, 8), ("Color", 0.4, 0)),
    (("Rotate", 0.4, 9), ("Equalize", 0.6, 2)),
    (("Equalize", 0.0, 7), ("Equalize", 0.8, 8)),
    (("Invert", 0.6, 4), ("Equalize", 1.0, 8)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Rotate", 0.8, 8), ("Color", 1.0, 2)),
    (("Color", 0.8, 8), ("Solarize", 0.8, 7)),
    (("Sharpness", 0.4, 7), ("Invert", 0.6, 8)),
    (("ShearX", 0.6, 5), ("Equalize", 1.0, 9)),
    (("Color", 0.4, 0), ("Equalize", 0.6, 3)),
    (("Equalize", 0.4, 7), ("Solarize", 0.2, 4)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 5)),
    (("Invert", 0.6, 4), ("Equalize", 1.0, 8)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Equalize", 0.8, 8), ("Equalize", 0.6, 3)),
)
"""The last five are among the others, too."""

OPERATIONS: Dict[str, Operation] = {
    **ALIKE,
    **LESS_OR_MORE,
    "Posterize": Operation(lambda image, strength, canvas: posterize(image, 8 - round(4 * strength))),
    "Solarize": Operation(lambda image, strength, canvas: ImageOps.solarize(image, ceil(256 * (1 - strength)))),
}


@dataclass(frozen=True)
class AutoAugment:
    """Draws one of the 25 sub-policies, and goes or passes over each of its two steps."""

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        canvas = Canvas(rng)
        for name, probability, level in SUB_POLICIES[int(rng.integers(len(SUB_POLICIES)))]:
            if rng.random() < probability:
                image = OPERATIONS[name].draw(image, level / 9, canvas)
        return image
