"""What the samples of a run are drawn from."""

from __future__ import annotations

from typing import Protocol, Sequence

import numpy as np


class Source(Protocol):
    """A fixed, numbered collection of labelled images."""

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes; a label is a position in this sequence."""

    def __len__(self) -> int: ...

    def load(self, index: int) -> np.ndarray:
        """The image as uint8, height × width × RGB; raises UnreadableImage if it cannot be had."""

    def label(self, index: int) -> int:
        """The class of the image."""

    def name(self, index: int) -> str:
        """What to call the image in messages and logs."""
