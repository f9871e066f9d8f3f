"""A part of a data set, as recipes name it: `train[:98%]`.

A data set is often sorted by class, so a part is taken from the images in a fixed random order, the
same for every seed, machine and version: parts that do not overlap by their numbers share no image.
"""

from __future__ import annotations

from typing import Match, Sequence

import numpy as np

from ipu_vit.data.picture import Picture, opener
from ipu_vit.data.source import Source
from ipu_vit.errors import UserError
from ipu_vit.settings.data import SPLIT


class Part:
    """The images `start:end` of a source in a fixed random order, listed in the order of the source."""

    def __init__(self, source: Source, start: int, end: int) -> None:
        self.source = source
        self._open = opener(source)
        # A generator whose numbers NumPy promises never to change.
        order = np.random.RandomState(0).permutation(len(source))
        self.indices = np.sort(order[start:end]).astype(np.int32)

    @property
    def classes(self) -> Sequence[str]:
        return self.source.classes

    def __len__(self) -> int:
        return len(self.indices)

    def load(self, index: int) -> np.ndarray:
        return self.source.load(int(self.indices[index]))

    def open(self, index: int) -> Picture:
        return self._open(int(self.indices[index]))

    def label(self, index: int) -> int:
        return self.source.label(int(self.indices[index]))

    def name(self, index: int) -> str:
        return self.source.name(int(self.indices[index]))


def name_of(split: str) -> str:
    """The split that a part is of: `train` of `train[:98%]`."""
    return _parsed(split)["name"]


def part_of(source: Source, split: str) -> Source:
    """The part of a split's images that `split` names; all of them if it names none."""
    parsed, images = _parsed(split), len(source)
    if parsed["part"] is None:
        return source
    return Part(source, _position(parsed["start"] or "0", images), _position(parsed["end"] or "100%", images))


def _parsed(split: str) -> Match[str]:
    found = SPLIT.fullmatch(split)
    if found is None:  # settings let no such text through
        raise UserError(f"{split!r} is neither the name of a split nor a part of one such as train[:98%]")
    return found


def _position(text: str, images: int) -> int:
    """Percentages are rounded to the nearest image."""
    return min(round(images * int(text[:-1]) / 100) if text.endswith("%") else int(text), images)
