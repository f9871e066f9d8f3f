"""An image that is decoded when its pixels are asked for, and no more of it than is needed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Callable, Protocol, Tuple, runtime_checkable

import numpy as np

from ipu_vit.data.crops import Region
from ipu_vit.data.source import Source

Part = Tuple[np.ndarray, int, int]
"""Pixels, uint8, height × width × RGB, and the column and the row of the image that they begin at."""


class Picture(Protocol):
    """An image of a known size, in pixels."""

    @property
    def width(self) -> int: ...

    @property
    def height(self) -> int: ...

    def pixels(self) -> np.ndarray:
        """All of it, as uint8, height × width × RGB; raises UnreadableImage."""

    def part(self, region: Region) -> Part:
        """At least that region; raises UnreadableImage."""


@runtime_checkable
class Opens(Protocol):
    """A source of files, which cost the more the more of them is decoded."""

    def open(self, index: int) -> Picture:
        """The image; raises UnreadableImage if it cannot be had."""


@dataclass(frozen=True)
class Pixels:
    """The picture that an array is, uint8, height × width × RGB."""

    array: np.ndarray

    @property
    def width(self) -> int:
        return int(self.array.shape[1])

    @property
    def height(self) -> int:
        return int(self.array.shape[0])

    def pixels(self) -> np.ndarray:
        return self.array

    def part(self, region: Region) -> Part:
        return self.array, 0, 0


def opener(source: Source) -> Callable[[int], Picture]:
    """How to get an image of a source; the function, or the picture's `pixels`, raises UnreadableImage."""
    return source.open if isinstance(source, Opens) else partial(_load, source)


def _load(source: Source, index: int) -> Picture:
    return Pixels(source.load(index))
