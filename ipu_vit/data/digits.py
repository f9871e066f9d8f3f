"""The UCI handwritten digits as image files: a real data set that comes with scikit-learn.

1797 images of 8 × 8 pixels with 17 shades (Alpaydin and Kaynak 1998), white strokes on black.
They are written at 32 × 32, four pixels for one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ipu_vit.data.whole_folder import whole_folder

SIDE = 32
JPEG_QUALITY = 95
HELD_OUT = 5
"""One image in so many of each digit is for validation: 364 in all. Both splits share writers."""


def write_digits(root: Path) -> None:
    """Write `root/train/<digit>/NNNN.jpg` and `root/val/<digit>/NNNN.jpg`, numbered as in the original."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    with whole_folder(root) as folder:
        for split in ("train", "val"):
            for digit in range(10):
                (folder / split / str(digit)).mkdir(parents=True)
        for digit in range(10):
            for count, number in enumerate(np.flatnonzero(digits.target == digit)):
                split = "train" if count % HELD_OUT else "val"
                image = enlarge(digits.images[number] / 16)
                image.save(folder / split / str(digit) / f"{number:04}.jpg", quality=JPEG_QUALITY)


def enlarge(brightness: np.ndarray) -> Image.Image:
    """A small picture, brightness 0 to 1, as a 32 × 32 RGB image."""
    pixels = np.rint(brightness * 255).astype(np.uint8)
    return Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB")
