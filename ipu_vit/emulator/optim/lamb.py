"""`poptorch.optim.LAMB`."""

from __future__ import annotations

from typing import Any, Callable, Dict, Optional, Tuple

import torch
from torch import Tensor

from ipu_vit.emulator.optim.base import DEFAULTS, Optimizer, Params


class _TorchLAMB(torch.optim.Optimizer):
    """The part of LAMB that torch would have if it had LAMB."""

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: Tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        max_weight_norm: float = DEFAULTS["max_weight_norm"],
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "max_weight_norm": max_weight_norm,
        }
        super().__init__(params, defaults)  # type: ignore[arg-type]


class LAMB(Optimizer, _TorchLAMB):
    """LAMB: Adam whose steps are as long as the weights, times the learning rate (rule 4.7)."""

    _child_vars = ["loss_scaling"]
    _child_only = [
        "loss_scaling",
        "bias_correction",
        "accum_type",
        "first_order_momentum_accum_type",
        "second_order_momentum_accum_type",
    ]
    _group_vars = ["lr", "weight_decay", "betas", "eps", "max_weight_norm"]

    def __init__(
        self,
        params: Params,
        lr: Optional[float] = None,
        betas: Optional[Tuple[float, float]] = None,
        eps: Optional[float] = None,
        weight_decay: Optional[float] = None,
        bias_correction: Optional[bool] = None,
        loss_scaling: Optional[float] = None,
        max_weight_norm: Optional[float] = None,
        accum_type: Optional[torch.dtype] = None,
        first_order_momentum_accum_type: Optional[torch.dtype] = None,
        second_order_momentum_accum_type: Optional[torch.dtype] = None,
    ) -> None:
        self._construct(locals())

    @torch.no_grad()
    def step(self, closure: Optional[Callable[[], Any]] = None) -> Any:
        """One step on the host, for weights that have gradients there, as those of a plain PyTorch program."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._step(weight, weight.grad, group, self.state[weight])
        return loss

    def _step(self, weight: Tensor, gradient: Tensor, group: Dict[str, Any], state: Dict[str, Any]) -> None:
        if not state:
            state.update(step=0, exp_avg=torch.zeros_like(weight), exp_avg_sq=torch.zeros_like(weight))
        state["step"] += 1
        first, second = group["betas"]
        mean = state["exp_avg"].mul_(first).add_(gradient, alpha=1 - first)
        square = state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        if self.bias_correction:  # type: ignore[attr-defined]
            mean, square = mean / (1 - first ** state["step"]), square / (1 - second ** state["step"])
        step = (mean / (square.sqrt() + group["eps"])).add_(weight, alpha=group["weight_decay"])
        length, step_length = weight.norm().clamp(max=group["max_weight_norm"]), step.norm()
        trust = float(length / step_length) if length > 0 and step_length > 0 else 1.0
        weight.sub_(step, alpha=group["lr"] * trust)
