"""Random images and labels, to measure the device without a data set.

Drawing fresh pixels for each image would cost as much as decoding a photograph, and then the
host would be measured. So every image is a stretch of one pool of random bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Sequence

import numpy as np

STARTS = 2**20
"""Places in the pool where an image may begin, so that many images are distinct."""

SCATTER = 0x9E3779B1
"""Odd, hence images get the starts in turn, each as often; neighbours lie far apart."""


@dataclass(frozen=True)
class GeneratedImages:
    """`count` images of the model's size, uniformly random, in `class_count` classes."""

    count: int
    image_size: int
    class_count: int
    seed: int

    @property
    def classes(self) -> Sequence[str]:
        return [str(number) for number in range(self.class_count)]

    def __len__(self) -> int:
        return self.count

    def load(self, index: int) -> np.ndarray:
        start = index * SCATTER % STARTS
        size = 3 * self.image_size**2
        pixels = _pool(STARTS + size, self.seed)[start : start + size].copy()
        return pixels.reshape(3, self.image_size, self.image_size).transpose(1, 2, 0)

    def label(self, index: int) -> int:
        return int(np.random.default_rng((self.seed, index)).integers(self.class_count))

    def name(self, index: int) -> str:
        return f"generated image {index}"


@lru_cache(maxsize=2)
def _pool(size: int, seed: int) -> np.ndarray:
    """The random bytes, made once in each process rather than sent to it."""
    return np.random.default_rng(seed).integers(256, size=size, dtype=np.uint8)
