"""Losses that PopTorch can differentiate.

PopTorch starts its backward pass at a loss operator's own output: whatever arithmetic follows, label
smoothing by hand for example, would silently not be differentiated. So the very last value of every
loss here goes through `identity_loss`.

Targets are class numbers (batch,) or shares of each class (batch, classes), as mixed images have them.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Callable

import poptorch
import torch
import torch.nn.functional as F
from torch import Tensor

from ipu_vit.settings import LossSettings


def build_loss(loss: LossSettings) -> Callable[[Tensor, Tensor], Any]:
    """The settings' loss, of logits and targets."""
    kinds = {"softmax": cross_entropy, "sigmoid": sigmoid_cross_entropy}
    return partial(kinds[loss.kind], label_smoothing=loss.smoothing_share)


def cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Any:
    """Mean cross entropy of float32 logits (batch, classes) against targets.

    With smoothing s the target of each image is (1 - s) on its label and s spread over all classes
    (Szegedy et al. 2016, section 7). PyTorch's own argument for it needs data-dependent shapes.
    """
    if targets.is_floating_point():
        loss = -(targets * torch.log_softmax(logits, dim=-1)).sum(dim=-1).mean()
    else:
        loss = F.cross_entropy(logits, targets)
    if label_smoothing:
        uniform = -torch.log_softmax(logits, dim=-1).mean()
        loss = (1 - label_smoothing) * loss + label_smoothing * uniform
    return poptorch.identity_loss(loss, reduction="none")


def sigmoid_cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Any:
    """Binary cross entropies of float32 logits (batch, classes), summed over classes, averaged over the batch.

    As in AugReg and big_vision (Beyer et al. 2020, arXiv 2006.07159): every class is a question by itself.
    """
    if not targets.is_floating_point():
        targets = F.one_hot(targets, logits.shape[-1]).to(logits.dtype)
    if label_smoothing:
        targets = (1 - label_smoothing) * targets + label_smoothing / logits.shape[-1]
    loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / logits.shape[0]
    return poptorch.identity_loss(loss, reduction="none")
