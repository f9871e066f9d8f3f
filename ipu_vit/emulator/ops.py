"""PopTorch's own operators, for a model's forward. On a CPU they compute what the device would."""

from __future__ import annotations

from typing import Any, Callable, Dict

import torch
from torch import Tensor

from ipu_vit.emulator import device


def identity_loss(x: Tensor, reduction: str) -> Tensor:
    """`poptorch.identity_loss`: mark a value as the loss to differentiate (rules 2.3, 2.5)."""
    reductions: Dict[str, Callable[[Tensor], Tensor]] = {"sum": torch.sum, "mean": torch.mean, "none": torch.clone}
    assert reduction in reductions, f"Unsupported reduction {reduction!r}: use 'sum', 'mean' or 'none'"
    loss = reductions[reduction](x)
    context = device.active()
    if context is not None:
        context.on_loss(loss)
    return loss


def recomputationCheckpoint(*tensors: Any) -> Any:
    """`poptorch.recomputationCheckpoint`: store these values for the backward pass (rule 5.17).

    One tensor returns a tensor, several a tuple, a list or tuple its own type; anything else is a
    ValueError. Values never change.
    """
    single = len(tensors) == 1
    marked = [_mark(item) for item in tensors]
    return marked[0] if single else tuple(marked)


def _mark(item: Any) -> Any:
    if isinstance(item, (list, tuple)):
        return type(item)(_mark(inner) for inner in item)
    if not isinstance(item, Tensor):
        raise ValueError(f"recomputationCheckpoint takes tensors, not {type(item).__name__}")
    context = device.active()
    if context is not None:
        context.on_checkpoint(item)
    return item


def nop(tensor: Tensor) -> Tensor:
    """`poptorch.nop`: an identity that PopART does not remove."""
    return tensor.clone()


def set_available_memory(tensor: Tensor, available_memory_proportion: float) -> Tensor:
    """`poptorch.set_available_memory`: a hint for the operator that made this tensor (rule 9.10)."""
    return tensor
