"""Oxford Flowers-102 (Nilsback and Zisserman 2008) as it is distributed.

jpg/image_00001.jpg …   102flowers.tgz, unpacked
imagelabels.mat         `labels`: the class of each image, from 1
setid.mat               `trnid`, `valid`, `tstid`: the images of each split, from 1
"""

from __future__ import annotations

from pathlib import Path
from typing import Dict

import numpy as np

from ipu_vit.data.image_files import ImageFiles
from ipu_vit.errors import UserError

SPLITS = {"train": ["trnid"], "val": ["valid"], "trainval": ["trnid", "valid"], "test": ["tstid"]}
CLASSES = [str(number) for number in range(1, 103)]
"""The files give no names; the numbers are the original's."""


def open_flowers(root: Path, split: str) -> ImageFiles:
    """The images of a split, in the order of their numbers. Raises UserError if files are missing or damaged."""
    sets = _matlab(root / "setid.mat")
    labels = _matlab(root / "imagelabels.mat")
    try:
        images = np.sort(np.concatenate([sets[name].ravel() for name in SPLITS[split]])).astype(np.int64)
        chosen = labels["labels"].ravel().astype(np.int64)[images - 1]
    except (KeyError, IndexError) as error:
        raise UserError(f"data.root={root}: setid.mat and imagelabels.mat are not those of Flowers-102") from error
    if len(images) == 0 or images.min() < 1 or not 1 <= chosen.min() <= chosen.max() <= len(CLASSES):
        raise UserError(f"data.root={root}: setid.mat and imagelabels.mat are not those of Flowers-102")
    if not (root / "jpg").is_dir():
        raise UserError(f"data.root={root} holds no folder jpg; unpack 102flowers.tgz there")
    return ImageFiles(root, (b"jpg/image_%05d.jpg" % image for image in images), chosen - 1, CLASSES)


def _matlab(path: Path) -> Dict[str, np.ndarray]:
    from scipy.io import loadmat  # half a second

    try:
        with path.open("rb") as file:
            return loadmat(file)
    except Exception as error:  # loadmat has no exception of its own for damage
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"data.root={path.parent}: {path.name} cannot be read: {reason}") from error
