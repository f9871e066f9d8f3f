"""Settings to a PopTorch optimizer: its class, its numbers and number formats."""

from __future__ import annotations

from typing import Any, Dict

import poptorch
import torch
from torch import nn

from ipu_vit.parameter_groups import parameter_groups
from ipu_vit.settings import OptimizerSettings

DTYPES = {"float16": torch.float16, "float32": torch.float32}


def build_optimizer(model: nn.Module, optimizer: OptimizerSettings, lr: float) -> Any:
    """A PopTorch optimizer over the model's parameters.

    What is passed here can change during a run, the rest is compiled in; so the learning rate and the
    loss scale are given, and what is not used is left out: a velocity of no momentum would take memory.
    """
    classes = {
        "sgd": poptorch.optim.SGD,
        "adam": poptorch.optim.Adam,
        "adamw": poptorch.optim.AdamW,
        "lamb": poptorch.optim.LAMB,
        "rmsprop": poptorch.optim.RMSprop,
    }
    built = classes[optimizer.name](
        parameter_groups(model, optimizer),
        lr=lr,
        weight_decay=optimizer.weight_decay,
        loss_scaling=optimizer.loss_scaling,
        accum_type=DTYPES[optimizer.accumulator_type],
        **(_of_sgd(optimizer) if optimizer.name == "sgd" else _of_adaptive(optimizer)),
    )
    set_learning_rate(built, lr)
    return built


def set_learning_rate(optimizer: Any, lr: float) -> None:
    """Change the learning rate, of every group by its share; the executor's `setOptimizer` makes it count."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)  # checkpoints of earlier versions have no shares


def _of_sgd(optimizer: OptimizerSettings) -> Dict[str, Any]:
    arguments: Dict[str, Any] = {
        "use_combined_accum": False,
        "velocity_accum_type": DTYPES[optimizer.velocity_type],
    }
    if optimizer.momentum:
        arguments.update(momentum=optimizer.momentum, nesterov=optimizer.nesterov)
    if optimizer.max_grad_norm is not None:
        arguments["max_grad_norm"] = _bound_of_velocity(optimizer.max_grad_norm, optimizer)
    return arguments


def _bound_of_velocity(max_grad_norm: float, optimizer: OptimizerSettings) -> float:
    """What PopART's SGD has to bound in place of the gradient: the velocity, multiplied by the loss scale.

    Gradients up to a norm add up to a velocity of that norm / (1 - momentum) at most. Without momentum
    the velocity is the gradient and the bound exact.
    """
    return max_grad_norm * optimizer.loss_scaling / (1 - optimizer.momentum)


def _of_adaptive(optimizer: OptimizerSettings) -> Dict[str, Any]:
    arguments: Dict[str, Any] = {
        "eps": optimizer.eps,
        "first_order_momentum_accum_type": DTYPES[optimizer.first_moment_type],
        "second_order_momentum_accum_type": DTYPES[optimizer.second_moment_type],
    }
    if optimizer.name == "rmsprop":
        arguments.update(alpha=optimizer.alpha, centered=optimizer.centered)
        if optimizer.momentum:
            arguments["momentum"] = optimizer.momentum
        return arguments
    arguments["betas"] = optimizer.betas
    if optimizer.name == "lamb":
        arguments["bias_correction"] = optimizer.bias_correction
    if optimizer.max_grad_norm is not None:
        arguments["max_grad_norm"] = optimizer.max_grad_norm
    return arguments
