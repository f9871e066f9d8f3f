"""`poptorch.optim.RMSprop`."""

from __future__ import annotations

from typing import Optional

import torch

from ipu_vit.emulator.optim.base import Optimizer, Params


class RMSprop(Optimizer, torch.optim.RMSprop):
    """RMSprop, also as TensorFlow has it (rule 4.8)."""

    _child_vars = ["loss_scaling"]
    _child_only = [
        "loss_scaling",
        "accum_type",
        "first_order_momentum_accum_type",
        "second_order_momentum_accum_type",
        "use_tf_variant",
    ]
    _group_vars = ["lr", "momentum", "weight_decay", "alpha", "eps", "centered"]

    def __init__(
        self,
        params: Params,
        lr: Optional[float] = None,
        alpha: Optional[float] = None,
        eps: Optional[float] = None,
        weight_decay: Optional[float] = None,
        momentum: Optional[float] = None,
        centered: Optional[bool] = None,
        foreach: Optional[bool] = None,
        maximize: Optional[bool] = None,
        differentiable: Optional[bool] = None,
        loss_scaling: Optional[float] = None,
        accum_type: Optional[torch.dtype] = None,
        first_order_momentum_accum_type: Optional[torch.dtype] = None,
        second_order_momentum_accum_type: Optional[torch.dtype] = None,
        use_tf_variant: Optional[bool] = None,
    ) -> None:
        self._construct(locals())
