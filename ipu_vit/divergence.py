"""How a run is known to have diverged: numbers that are none, and a loss scale that has nowhere left to fall."""

from __future__ import annotations

from typing import Any, Dict, Optional

import torch
from torch import Tensor

# PopART's name for the factor that automatic loss scaling puts on optimizer.loss_scaling.
_FACTOR = "lossScaleUpdateFactor"

# PopART halves the scale while gradients are above an eighth of what float16 holds. At this scale the gradients
# themselves are above all of that, so no scale can help.
_LEAST_SCALE = 1 / 8


def not_finite(tensors: Dict[str, Tensor]) -> Optional[str]:
    """The name of a tensor that holds infinities or no numbers at all, if there is one."""
    return next((name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()), None)


def collapsed_loss_scale(optimizer_state: Dict[str, Any], loss_scaling: float) -> Optional[float]:
    """The loss scale of an optimizer's `state_dict`, if it is automatic and has fallen below use."""
    factor = optimizer_state.get("ipu_state", {}).get(_FACTOR)
    if factor is None:
        return None
    scale = float(factor) * loss_scaling
    return scale if scale < _LEAST_SCALE else None
