"""Oxford-IIIT Pets (Parkhi et al. 2012) as it is distributed.

images/Abyssinian_1.jpg …    images.tar.gz, unpacked
annotations/trainval.txt     lines `Abyssinian_1 1 1 1`: image, class from 1, species, breed
annotations/test.txt         annotations.tar.gz, unpacked
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Dict, List

from ipu_vit.data.image_files import ImageFiles
from ipu_vit.errors import UserError

SPLITS = {"train": "trainval", "test": "test"}
CLASSES = 37


def open_pets(root: Path, split: str) -> ImageFiles:
    """The images that a split lists, in its order. Raises UserError if files are missing or damaged."""
    path = root / "annotations" / f"{SPLITS[split]}.txt"
    paths: List[bytes] = []
    labels: List[int] = []
    names: Dict[int, str] = {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            if line and not line.startswith("#"):
                image, number = line.split()[:2]
                paths.append(os.fsencode(f"images/{image}.jpg"))
                labels.append(int(number) - 1)
                names[labels[-1]] = image.rpartition("_")[0].replace("_", " ")
    except OSError as error:
        raise UserError(f"data.root={root}: {path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"data.root={root}: {path} is not a list of images with their classes") from error
    if sorted(names) != list(range(CLASSES)):
        raise UserError(
            f"data.root={root}: {path} has {len(names)} classes; the {CLASSES} of Oxford-IIIT Pets are accepted"
        )
    if not (root / "images").is_dir():
        raise UserError(f"data.root={root} holds no folder images; unpack images.tar.gz there")
    return ImageFiles(root, paths, labels, [names[number] for number in range(CLASSES)])
