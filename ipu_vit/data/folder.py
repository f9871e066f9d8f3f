"""A folder of class folders of image files, the layout that ImageNet is usually unpacked to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Iterator, List, Optional, Sequence

import numpy as np

from ipu_vit.data.image_files import ImageFiles
from ipu_vit.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
LAYOUT = "one folder per class with image files in it"


class ImageFolder(ImageFiles):
    """The images of `folder/<class>/*`, ordered by class and file name.

    `setting` is how the user chose the folder, such as `data.root=/imagenet`, for messages. With
    `classes` (a validation folder is given those of the training folder) labels follow that list;
    classes without a folder are fine then, folders without a class are not. Folders named by numbers
    (ImageNet-V2) are positions in the list, unless its classes are numbers too.

    Hidden files and folders are left out: macOS and notebooks strew them about.
    """

    def __init__(self, folder: Path, setting: str, classes: Optional[Sequence[str]] = None) -> None:
        found = class_folders(folder, setting)
        numbers = found_among(found, classes, f"{setting}: {folder}")
        paths: List[bytes] = []
        counts: List[int] = []
        for name in found:
            files = _image_files(folder / name)
            if not files:
                raise UserError(f"{setting}: {folder / name} holds no image files; expected {', '.join(SUFFIXES)}")
            paths.extend(os.fsencode(os.path.join(name, file)) for file in files)
            counts.append(len(files))
        super().__init__(folder, paths, np.repeat(numbers, counts), found if classes is None else classes)


def class_folders(folder: Path, setting: str) -> List[str]:
    """The names of the classes in a folder, in order: as text, or as numbers if all are numbers, as in ImageNet-V2."""
    try:
        found = sorted(entry.name for entry in _visible(folder) if entry.is_dir())
    except OSError as error:
        raise UserError(f"{setting}: {folder} cannot be read ({error.strerror}); expected {LAYOUT}") from error
    if not found:
        raise UserError(f"{setting}: {folder} holds no class folders; expected {LAYOUT}")
    return sorted(found, key=int) if _are_numbers(found) else found


def found_among(found: Sequence[str], classes: Optional[Sequence[str]], where: str) -> List[int]:
    """The positions in `classes` of the class names that were found; their own positions without `classes`.

    Raises UserError, which starts with `where`, if some are not among them.
    """
    if classes is None:
        return list(range(len(found)))
    number_of = {name: number for number, name in enumerate(classes)}
    if _are_numbers(found) and not any(map(str.isdigit, classes)):
        number_of = {name: int(name) for name in found if int(name) < len(classes)}
    unknown = [name for name in found if name not in number_of]
    if unknown:
        raise UserError(
            f"{where} holds {_first_few(unknown)}, which the training images do not have; "
            f"expected only folders named as one of their {len(classes)} classes"
        )
    return [number_of[name] for name in found]


def _are_numbers(names: Sequence[str]) -> bool:
    return all(name.isascii() and name.isdigit() for name in names)


def _image_files(folder: Path) -> List[str]:
    return sorted(entry.name for entry in _visible(folder) if entry.name.lower().endswith(SUFFIXES) and entry.is_file())


def _visible(folder: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                yield entry


def _first_few(names: Sequence[str], most: int = 3) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
