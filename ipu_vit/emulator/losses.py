"""Loss functions while a model is traced: each tells the trace of its value (section 2).

PopTorch puts an identity_loss behind every loss operator that it recognises. Losses that PyTorch takes
apart before PopTorch sees them carry none, or carry it in the middle.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Optional

import torch.nn.functional as F
from torch import Tensor

from ipu_vit.emulator import device
from ipu_vit.emulator.errors import Error
from ipu_vit.emulator.tape import is_fake, opaque
from ipu_vit.emulator.user_code import current_line

# Functions that PopTorch recognises as losses: each carries an implicit identity_loss (rule 2.1).
_LOSSES = (
    F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.binary_cross_entropy, F.binary_cross_entropy_with_logits, F.kl_div,
    F.poisson_nll_loss, F.hinge_embedding_loss, F.margin_ranking_loss, F.soft_margin_loss,
    F.triplet_margin_loss, F.cosine_embedding_loss, F.multilabel_soft_margin_loss,
)  # fmt: skip


def replacements() -> Dict[Any, Callable[..., Any]]:
    """What the device does instead of PyTorch's loss functions."""
    return {
        **{loss: _reporting(opaque(loss)) for loss in _LOSSES},
        F.nll_loss: _nll_loss,
        F.cross_entropy: _cross_entropy,
        F.ctc_loss: _reporting(_ctc_loss),
    }


def _reporting(compute: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A loss function that tells the trace of its value."""

    def call(*args: Any, **kwargs: Any) -> Tensor:
        loss = compute(*args, **kwargs)
        context = device.active()
        if context is not None:
            context.on_loss(loss)
        return loss

    return call


@opaque
def _ctc_loss(log_probs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if not is_fake(log_probs):
        return F.ctc_loss(log_probs, *args, **kwargs)
    # PyTorch's operator wants to see the lengths; any loss of the same shape will do for the trace.
    reduction = kwargs.get("reduction", args[4] if len(args) > 4 else "mean")
    losses = log_probs.sum((0, -1))
    return losses if reduction == "none" else losses.sum()


def _by_class(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A loss by class index; PyTorch's CPU operators insist on int64 indices, the device has int32."""

    def call(input: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return loss(input, target.long(), *args, **kwargs)

    call.__name__ = loss.__name__
    return _reporting(opaque(call))


_class_nll = _by_class(F.nll_loss)
_class_cross_entropy = _by_class(F.cross_entropy)
_taken_apart = opaque(F.cross_entropy)


def _nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Optional[Tensor] = None,
    size_average: Optional[bool] = None,
    ignore_index: int = -100,
    reduce: Optional[bool] = None,
    reduction: str = "mean",
) -> Tensor:
    _refuse_class_weights(weight)
    return _class_nll(input, target, None, size_average, ignore_index, reduce, reduction)


def _cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Optional[Tensor] = None,
    size_average: Optional[bool] = None,
    ignore_index: int = -100,
    reduce: Optional[bool] = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    if target.dtype.is_floating_point:
        # Class probabilities: PyTorch takes it apart, and no loss operator is left (rule 2.4).
        return _taken_apart(input, target, weight, size_average, ignore_index, reduce, reduction, label_smoothing)
    _refuse_class_weights(weight)
    if not label_smoothing:
        return _class_cross_entropy(input, target, None, size_average, ignore_index, reduce, reduction)
    if reduction == "mean":
        raise Error(
            "cross_entropy with label_smoothing and reduction 'mean' needs masked_select, which a device cannot have: "
            f"write the smoothing out and wrap its result in poptorch.identity_loss ({current_line()})"
        )
    # What follows the loss operator is computed, but not differentiated (rule 2.3).
    classes = 1 if input.dim() > 1 else 0
    logs = F.log_softmax(input, classes)
    loss = F.nll_loss(logs, target, ignore_index=ignore_index, reduction=reduction)
    smooth = -logs.sum(classes).masked_fill(target == ignore_index, 0.0)
    if reduction == "sum":
        smooth = smooth.sum()
    return (1 - label_smoothing) * loss + label_smoothing / input.shape[classes] * smooth


def _refuse_class_weights(weight: Optional[Tensor]) -> None:
    if weight is not None:
        raise Error(
            "Class weights of cross_entropy and nll_loss are not supported: multiply the losses of reduction='none' "
            f"by their classes' weights, and wrap the result in poptorch.identity_loss ({current_line()})"
        )
