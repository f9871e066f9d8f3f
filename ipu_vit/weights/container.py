"""Files of named tensors, whatever wrote them: what each of them tells before any number is read."""

from __future__ import annotations

from typing import Dict, NamedTuple, Protocol, Tuple

from torch import Tensor

from ipu_vit.errors import UserError
from ipu_vit.weights.shapes import Shape


class Entry(NamedTuple):
    """What a file says of one tensor."""

    shape: Shape
    dtype: str
    floating: bool


class Container(Protocol):
    """An opened file: names, shapes and types are known and cost no memory; numbers are read on demand."""

    path: str
    entries: Dict[str, Entry]
    others: Tuple[str, ...]  # what the file holds besides tensors

    def read(self, name: str) -> Tensor:
        """One tensor, in float32."""


def check_floating(path: str, name: str, entry: Entry) -> None:
    """Refuse integers and truth values where trained weights are expected."""
    if not entry.floating:
        raise UserError(f"weights={path} holds {name} as {entry.dtype}; floating-point numbers are accepted")
