"""What the samples of a run are drawn from."""

from __future__ import annotations

from typing import Protocol, Sequence, runtime_checkable

import numpy as np

from ipu_vit.errors import UserError


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


@runtime_checkable
class Encoded(Source, Protocol):
    """A source whose images are files, or parts of files, which may be copied as they are."""

    def path(self, index: int) -> str:
        """A relative path, the image's own, that another place may keep it under."""

    def encoded(self, index: int) -> bytes:
        """The image's file; raises OSError or UnreadableImage if it cannot be read."""


DAMAGED = " is damaged: "
"""In the message of every DamagedSource, for whoever reads it in a log."""


class DamagedSource(UserError):
    """The data set itself is at fault, not one image of it: nothing may be trained or scored on the rest."""

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(f"{file}{DAMAGED}{reason}")
