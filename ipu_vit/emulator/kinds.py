"""Shapes and types of tensors, and tensors that stand in for others while a model is traced."""

from __future__ import annotations

from typing import List, Sequence, Tuple

import torch
from torch import Tensor

Kinds = List[Tuple[Tuple[int, ...], torch.dtype]]


def kinds_of(tensors: Sequence[Tensor]) -> Kinds:
    """Shape and type of each tensor."""
    return [(tuple(tensor.shape), tensor.dtype) for tensor in tensors]


def placeholders(kinds: Kinds) -> List[Tensor]:
    """Tensors of these shapes and types."""
    return [torch.empty(shape, dtype=dtype) for shape, dtype in kinds]
