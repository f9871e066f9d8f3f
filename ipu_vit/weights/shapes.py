"""Words about tensor shapes, shared by every message on weights."""

from __future__ import annotations

from typing import Sequence, Tuple

Shape = Tuple[int, ...]


def listed(items: Sequence[str], most: int = 3) -> str:
    """The first few items; a ViT has hundreds of tensors, and one fault often shows in all of them."""
    more = len(items) - most
    return ", ".join(items[:most]) + (f" and {more} more" if more > 0 else "")
