"""What the tests decode and resize."""

from __future__ import annotations

import numpy as np
from PIL import Image


def photograph(seed: int, width: int = 60, height: int = 45) -> Image.Image:
    """Something smooth and colourful, as JPEG likes it."""
    coarse = np.random.default_rng(seed).integers(256, size=(5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
