"""What everything that figures go to has in common."""

from __future__ import annotations

from typing import Dict


class Sink:
    """Takes figures, texts and pictures of a run; whichever it has no use for it drops."""

    def figures(self, update: int, values: Dict[str, float]) -> None:
        """Named numbers, as they are after `update` weight updates; names are `group/name`."""

    def text(self, name: str, markdown: str) -> None:
        """Something that stays as it is during the run."""

    def picture(self, update: int, name: str, png: bytes) -> None:
        """The content of a PNG file."""

    def close(self) -> None:
        """Nothing comes any more."""
