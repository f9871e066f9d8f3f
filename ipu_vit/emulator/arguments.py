"""Checks of what PopTorch's own operators are given."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ipu_vit.emulator.errors import Error

_NAMES = {Tensor: "a torch.Tensor", int: "an int", float: "a float", bool: "a bool", list: "a list"}


def require(holds: bool, message: str) -> None:
    """Raise `poptorch.Error` unless something holds."""
    if not holds:
        raise Error(message)


def require_type(value: Any, kind: type, operator: str, name: str) -> None:
    """Raise `poptorch.Error` unless an operator's argument is of a type."""
    require(isinstance(value, kind), f"{operator}: {name} must be {_NAMES[kind]}, not {type(value).__name__}")
