"""How much of its partner each training image gets: mixup and CutMix, drawn on the host.

Every sample draws for itself, from the seed and its own number, so that batches may be cut up in any
way. The device does the mixing (`ipu_vit.data.ondevice`), as only there images are numbers; one
formula serves both kinds:

    mixed = (1 - amount) · image + amount · partner     inside the box
    mixed = image                                       outside

mixup (Zhang et al. 2018, arXiv 1710.09412) has an amount below 1 and the whole image as its box,
CutMix (Yun et al. 2019, arXiv 1905.04899) an amount of 1 and a smaller box. What neither applies to
has an amount of 0. The partner's share of the target is the amount times the box's share of the area,
with the box as it is after clipping.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Optional

import numpy as np

from ipu_vit.settings import AugmentationSettings


@dataclass(frozen=True)
class Mixing:
    """Draws for one image of `image_size` pixels a side: float32 (amount, top, bottom, left, right).

    `mixup` and `cutmix` are the α of their Beta(α, α) distributions, 0 for neither. An image is mixed
    with `probability`; where both kinds are on, with CutMix in `cutmix_share` of the cases.
    """

    image_size: int
    mixup: float
    cutmix: float
    probability: float = 1.0
    cutmix_share: float = 0.5

    def __call__(self, rng: np.random.Generator) -> np.ndarray:
        amount, box = 0.0, [0, self.image_size, 0, self.image_size]
        if rng.random() < self.probability:
            if self._cuts(rng):
                amount, box = 1.0, self._box(rng.beta(self.cutmix, self.cutmix), rng)
            else:
                amount = rng.beta(self.mixup, self.mixup)
        return np.array([amount, *box], np.float32)

    def _cuts(self, rng: np.random.Generator) -> bool:
        if self.mixup and self.cutmix:
            return rng.random() < self.cutmix_share
        return self.cutmix > 0

    def _box(self, area: float, rng: np.random.Generator) -> list[int]:
        """A square of that share of the area, its centre on any pixel, less what lies outside the image."""
        size = self.image_size
        side = int(size * math.sqrt(area))
        top, left = (int(centre) - side // 2 for centre in rng.integers(size, size=2))
        return [max(top, 0), min(top + side, size), max(left, 0), min(left + side, size)]


def build_mixing(augmentation: AugmentationSettings, image_size: int) -> Optional[Mixing]:
    """The settings' mixing, or none."""
    if not augmentation.mixes:
        return None
    return Mixing(
        image_size,
        augmentation.mixup,
        augmentation.cutmix,
        augmentation.mix_probability,
        augmentation.cutmix_share,
    )
