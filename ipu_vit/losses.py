"""Losses that PopTorch can differentiate.

PopTorch starts its backward pass at a loss operator's own output: whatever arithmetic follows, label
smoothing by hand for example, would silently not be differentiated. So the very last value of every
loss here goes through `identity_loss`.
"""

from __future__ import annotations

from typing import Any

import poptorch
import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Any:
    """Mean cross entropy of float32 logits (batch, classes) against integer labels (batch,).

    With smoothing s the target of each image is (1 - s) on its label and s spread over all classes
    (Szegedy et al. 2016, section 7). PyTorch's own argument for it needs data-dependent shapes.
    """
    loss = F.cross_entropy(logits, labels)
    if label_smoothing:
        uniform = -torch.log_softmax(logits, dim=-1).mean()
        loss = (1 - label_smoothing) * loss + label_smoothing * uniform
    return poptorch.identity_loss(loss, reduction="none")
