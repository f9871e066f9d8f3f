"""Random images and labels, to run without a data set.

Drawing fresh pixels for each image would cost as much as decoding a photograph, and then the
host would be measured. So every image is a stretch of one pool of random bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Sequence, Tuple

import numpy as np

STARTS = 2**20
"""Places in the pool where an image may begin, so that many images are distinct."""

SCATTER = 0x9E3779B1
"""Odd, hence images get the starts in turn, each as often; neighbours lie far apart."""


@dataclass(frozen=True)
class GeneratedImages:
    """`count` images of a size, height and width, uniformly random, in `class_count` classes.

    `planar` images lie in memory as the model takes them, channel after channel.
    """

    count: int
    size: Tuple[int, int]
    class_count: int
    seed: int
    planar: bool = False

    @property
    def classes(self) -> Sequence[str]:
        return [str(number) for number in range(self.class_count)]

    def __len__(self) -> int:
        return self.count

    def load(self, index: int) -> np.ndarray:
        start = index * SCATTER % STARTS
        height, width = self.size
        length = 3 * height * width
        pixels = _pool(STARTS + length, self.seed)[start : start + length].copy()
        return pixels.reshape(3, height, width).transpose(1, 2, 0) if self.planar else pixels.reshape(height, width, 3)

    def label(self, index: int) -> int:
        return int(np.random.default_rng((self.seed, index)).integers(self.class_count))

    def name(self, index: int) -> str:
        return f"generated image {index}"


@lru_cache(maxsize=2)
def _pool(size: int, seed: int) -> np.ndarray:
    """The random bytes, made once in each process rather than sent to it."""
    return np.random.default_rng(seed).integers(256, size=size, dtype=np.uint8)
