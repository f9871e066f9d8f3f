"""A folder of class folders of image files, the layout that ImageNet is usually unpacked to."""

from __future__ import annotations

import os
from itertools import accumulate
from pathlib import Path
from typing import Iterable, Iterator, List, Optional, Sequence

import numpy as np

from ipu_vit.data.decode import EncodedImage, open_image
from ipu_vit.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
LAYOUT = "one folder per class with image files in it"


class ImageFolder:
    """The images of `folder/<class>/*`, ordered by class and file name.

    `setting` is how the user chose the folder, such as `data.root=/imagenet`, for messages. With
    `classes` (a validation folder is given those of the training folder) labels follow that list;
    classes without a folder are fine then, folders without a class are not. Folders named by numbers
    (ImageNet-V2) are positions in the list, unless its classes are numbers too.

    Hidden files and folders are left out: macOS and notebooks strew them about.
    """

    def __init__(self, folder: Path, setting: str, classes: Optional[Sequence[str]] = None) -> None:
        self.folder = folder
        found = class_folders(folder, setting)
        self.classes: List[str] = found if classes is None else list(classes)
        number_of = {name: number for number, name in enumerate(self.classes)}
        if _are_numbers(found) and not any(map(str.isdigit, self.classes)):
            number_of = {name: int(name) for name in found if int(name) < len(self.classes)}
        unknown = [name for name in found if name not in number_of]
        if unknown:
            raise UserError(
                f"{setting}: {folder} holds {_first_few(unknown)}, which the training images do not have; "
                f"expected only folders named as one of their {len(self.classes)} classes"
            )
        paths: List[bytes] = []
        counts: List[int] = []
        for name in found:
            files = _image_files(folder / name)
            if not files:
                raise UserError(f"{setting}: {folder / name} holds no image files; expected {', '.join(SUFFIXES)}")
            paths.extend(os.fsencode(os.path.join(name, file)) for file in files)
            counts.append(len(files))
        self.paths = PackedPaths(paths)
        self.labels = np.repeat([number_of[name] for name in found], counts).astype(np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, index: int) -> np.ndarray:
        return self.open(index).pixels()

    def open(self, index: int) -> EncodedImage:
        return open_image(self.name(index))

    def label(self, index: int) -> int:
        return int(self.labels[index])

    def name(self, index: int) -> str:
        return os.path.join(self.folder, self.paths[index])


class PackedPaths(Sequence[str]):
    """A list of paths in two objects.

    A million `str` take ten times the memory, and every process that decodes images gets a copy.
    """

    def __init__(self, paths: Iterable[bytes]) -> None:
        paths = list(paths)
        self._text = b"".join(paths)
        self._ends = np.fromiter(accumulate(map(len, paths)), dtype=np.int64, count=len(paths))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]  # no slices
        end = self._ends[index]
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(self._text[start:end])


def class_folders(folder: Path, setting: str) -> List[str]:
    """The names of the classes in a folder, in order: as text, or as numbers if all are numbers, as in ImageNet-V2."""
    try:
        found = sorted(entry.name for entry in _visible(folder) if entry.is_dir())
    except OSError as error:
        raise UserError(f"{setting}: {folder} cannot be read ({error.strerror}); expected {LAYOUT}") from error
    if not found:
        raise UserError(f"{setting}: {folder} holds no class folders; expected {LAYOUT}")
    return sorted(found, key=int) if _are_numbers(found) else found


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
