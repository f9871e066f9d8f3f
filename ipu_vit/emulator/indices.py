"""Indices of 32 bits, which a device's argmax and sort give and all its operators take; PyTorch's older ones do not."""

from __future__ import annotations

from typing import Any, Callable, Dict

import torch
from torch import Tensor

# Functions by the position of their indices, and what these are called.
_INDEXED = {
    (2, "index"): (
        "gather", "index_fill", "index_fill_", "index_reduce", "index_reduce_", "scatter", "scatter_", "scatter_add",
        "scatter_add_", "scatter_reduce", "scatter_reduce_",
    ),
    (1, "indices"): ("take_along_dim",),
}  # fmt: skip


def replacements() -> Dict[Any, Callable[..., Any]]:
    """What calls them with indices of 64 bits."""
    return {
        getattr(owner, name): _widening(getattr(owner, name), position, keyword)
        for (position, keyword), names in _INDEXED.items()
        for name in names
        for owner in (torch, Tensor)
        if hasattr(owner, name)
    }


def _widening(function: Callable[..., Any], position: int, keyword: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        given = args[position] if len(args) > position else kwargs.get(keyword)
        if not isinstance(given, Tensor) or given.dtype != torch.int32:
            return NotImplemented
        if len(args) > position:
            return function(*args[:position], given.long(), *args[position + 1 :], **kwargs)
        return function(*args, **{**kwargs, keyword: given.long()})

    return call
