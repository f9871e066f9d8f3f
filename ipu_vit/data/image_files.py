"""Labelled image files, however a data set says which label each has."""

from __future__ import annotations

import os
from itertools import accumulate
from pathlib import Path
from typing import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from ipu_vit.data.decode import EncodedImage, open_image


class ImageFiles:
    """The files at `paths` in `folder`, with a label each: a position in `classes`."""

    def __init__(self, folder: Path, paths: Iterable[bytes], labels: ArrayLike, classes: Sequence[str]) -> None:
        self.folder = folder
        self.paths = PackedPaths(paths)
        self.labels = np.asarray(labels, np.int64)
        self.classes = list(classes)

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

    def path(self, index: int) -> str:
        return self.paths[index]

    def encoded(self, index: int) -> bytes:
        return Path(self.name(index)).read_bytes()


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
