"""Large operators on float16 tensors, a tile at a time, so that float32 copies of operands and results stay in caches.

Copies of whole tensors go through main memory, which takes a tenth of a matrix product's time. Tiles are cut where
no sum runs across them: each is computed as it is in the whole. Those of matrix products are larger, because for each
the other matrix is laid out anew.
"""

from __future__ import annotations

from math import ceil, prod
from typing import Any, Callable, List, Optional, Sequence

import torch
from torch import Tensor

TILE = 1 << 22
"""Elements of a tile's operands and result, which take 16 MiB in float32."""

_OF_PRODUCTS = 3
"""How many times as large a matrix product's are."""

_OF_PAIRS = 1 / 4
"""The same of operators that look at each number once."""

Operator = Callable[..., Tensor]

# Operators whose operands and result have a first dimension of equal size, which they do not compute across.
_BATCHED = {"bmm", "_softmax", "_softmax_backward_data", "_log_softmax", "_log_softmax_backward_data"}
_MATRIX_PRODUCTS = {"mm", "addmm"}
# Those that make a number of two.
_ELEMENTWISE = {"add", "sub", "mul", "div"}


def has_tiles(name: str) -> bool:
    """Whether there is a way to tile the operator that its schema calls so."""
    return name in _BATCHED or name in _MATRIX_PRODUCTS or name in _ELEMENTWISE


def in_tiles(name: str, operator: Operator, args: Sequence[Any]) -> Optional[Tensor]:
    """The result, in float16, of an operator that computes in float32 if called so; None if it is better left whole."""
    if any(isinstance(arg, Tensor) and arg.dtype != torch.float16 for arg in args):
        return None
    if name in _MATRIX_PRODUCTS:
        return _matrix_product(operator, *args)
    return _elementwise(operator, *args) if name in _ELEMENTWISE else _batched(operator, *args)


def _matrix_product(operator: Operator, *args: Tensor) -> Optional[Tensor]:
    """By rows of the left matrix or columns of the right one, whichever is larger. A vector may be added."""
    *vectors, left, right = args
    shape = left.shape[0], right.shape[1]
    count = ceil((max(left.numel(), right.numel()) + prod(shape)) / (_OF_PRODUCTS * TILE))
    if count < 2 or any(vector.shape != shape[1:] for vector in vectors):
        return None
    output = left.new_empty(shape)
    if left.numel() >= right.numel():
        vectors, right = [vector.float() for vector in vectors], right.float()
        for rows, part in zip(left.chunk(count), output.chunk(count)):
            part.copy_(operator(*vectors, rows.float(), right))
    else:
        left = left.float()
        cut = [vector.chunk(count) for vector in vectors]
        for columns, part, *pieces in zip(right.chunk(count, 1), output.chunk(count, 1), *cut):
            part.copy_(operator(*(piece.float() for piece in pieces), left, columns.float()))
    return output


def _elementwise(operator: Operator, left: Any, right: Any, *factor: float) -> Optional[Tensor]:
    """By parts of the flat tensors, which lie in memory alike; the right one may be a number."""
    if factor or not isinstance(left, Tensor):
        return None
    count = ceil(left.numel() / (_OF_PAIRS * TILE))
    pair = isinstance(right, Tensor)
    alike = not pair or (right.shape == left.shape and right.is_contiguous())
    if count < 2 or not (left.is_contiguous() and alike):
        return None
    output = torch.empty_like(left)
    rights = right.view(-1).chunk(count) if pair else [right] * count
    for part, piece, other in zip(output.view(-1).chunk(count), left.view(-1).chunk(count), rights):
        part.copy_(operator(piece.float(), other.float() if pair else other))
    return output


def _batched(operator: Operator, *args: Any) -> Optional[Tensor]:
    """By parts of the first dimension."""
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    rest: List[Any] = [torch.float32 if arg is torch.float16 else arg for arg in args[len(tensors) :]]
    first, last = tensors[0], tensors[-1]
    if first.dim() < 2 or (rest and rest[0] % first.dim() == 0):  # the dimension of a softmax
        return None
    shape = *first.shape[:-1], last.shape[-1]
    count = ceil((sum(map(Tensor.numel, tensors)) + prod(shape)) / TILE)
    if count < 2:
        return None
    output = first.new_empty(shape)
    for part, *pieces in zip(output.chunk(count), *(tensor.chunk(count) for tensor in tensors)):
        part.copy_(operator(*(piece.float() for piece in pieces), *rest))
    return output
