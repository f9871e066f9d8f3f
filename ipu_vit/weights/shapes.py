"""What tensor shapes tell, and words about them, shared by every message on weights."""

from __future__ import annotations

from typing import Dict, Mapping, Sequence, Tuple

from torch import Tensor

Shape = Tuple[int, ...]


def listed(items: Sequence[str], most: int = 3) -> str:
    """The first few items; a ViT has hundreds of tensors, and one fault often shows in all of them."""
    more = len(items) - most
    return ", ".join(items[:most]) + (f" and {more} more" if more > 0 else "")


def shapes_of(state: Mapping[str, Tensor]) -> Dict[str, Shape]:
    """The shapes of parameters."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}
