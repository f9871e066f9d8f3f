"""`poptorch.optim.SGD`."""

from __future__ import annotations

from typing import Optional

import torch

from ipu_vit.emulator.log import logger
from ipu_vit.emulator.optim.base import Optimizer, Params


class SGD(Optimizer, torch.optim.SGD):
    """Stochastic gradient descent (rules 4.3, 4.4). What is passed here is variable, the rest constant."""

    _child_vars = ["loss_scaling"]
    _child_only = [
        "loss_scaling",
        "velocity_scaling",
        "use_combined_accum",
        "accum_type",
        "velocity_accum_type",
        "max_grad_norm",
    ]
    _group_vars = ["lr", "momentum", "dampening", "weight_decay", "nesterov", "velocity_scaling"]

    def __init__(
        self,
        params: Params,
        lr: float,
        momentum: Optional[float] = None,
        dampening: Optional[float] = None,
        weight_decay: Optional[float] = None,
        nesterov: Optional[bool] = None,
        maximize: Optional[bool] = None,
        foreach: Optional[bool] = None,
        differentiable: Optional[bool] = None,
        loss_scaling: Optional[float] = None,
        velocity_scaling: Optional[float] = None,
        use_combined_accum: Optional[bool] = None,
        accum_type: Optional[torch.dtype] = None,
        velocity_accum_type: Optional[torch.dtype] = None,
        max_grad_norm: Optional[float] = None,
    ) -> None:
        if velocity_scaling is not None and not use_combined_accum:
            logger.warning("velocity_scaling is ignored, as it follows loss_scaling, unless use_combined_accum=True")
        self._construct(locals())
