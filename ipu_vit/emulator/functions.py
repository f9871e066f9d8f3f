"""PyTorch functions that behave otherwise on the device than on a CPU.

`DeviceFunctions` is active while a model's forward is traced or run. It reports loss functions,
turns GELU into its tanh form, and draws dropout masks from the device's random numbers.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Set, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ipu_vit.emulator import device
from ipu_vit.emulator.random import DeviceRandom

# Functions that PopTorch recognises as losses: each carries an implicit identity_loss (rule 2.1).
_LOSSES: Set[Callable[..., Tensor]] = {
    F.cross_entropy, F.nll_loss, F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits, F.kl_div, F.ctc_loss, F.poisson_nll_loss, F.hinge_embedding_loss,
    F.margin_ranking_loss, F.soft_margin_loss, F.triplet_margin_loss, F.cosine_embedding_loss,
    F.multilabel_soft_margin_loss,
}  # fmt: skip
# Losses by class index: PyTorch's CPU operators insist on int64 indices, the device has int32.
_INDEXED_LOSSES = {F.cross_entropy, F.nll_loss}


class DeviceFunctions(TorchFunctionMode):
    """While on, calls of the functions above get the device's behaviour."""

    def __init__(self, random: DeviceRandom) -> None:
        super().__init__()
        self._special: Dict[Any, Callable[..., Any]] = {
            F.gelu: _tanh_gelu,
            F.dropout: random.dropout,
            torch.dropout: lambda input, p, train: random.dropout(input, p, train),
        }
        for loss in _LOSSES:
            self._special[loss] = _reporting(loss)

    def __torch_function__(self, func: Any, types: Any, args: Tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        special = self._special.get(func)
        if special is not None:
            return special(*args, **(kwargs or {}))
        return func(*args, **kwargs) if kwargs else func(*args)


def _tanh_gelu(input: Tensor, approximate: str = "none") -> Tensor:
    # Both forms lower to the same device operator (rule 6.9).
    return F.gelu(input, approximate="tanh")


def _reporting(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def call(input: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if loss in _INDEXED_LOSSES and not target.dtype.is_floating_point:
            target = target.long()
        result = loss(input, target, *args, **kwargs)
        context = device.active()
        if context is not None:
            context.on_loss(result)
        return result

    return call
