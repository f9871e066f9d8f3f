"""Settings to an optimizer: parameter groups, number formats, and the learning rate of each update."""

from __future__ import annotations

import math
from typing import Any, Dict, List

import poptorch
import torch
from torch import nn

from ipu_vit.settings import OptimizerSettings, ScheduleSettings

DTYPES = {"float16": torch.float16, "float32": torch.float32}


def learning_rate(schedule: ScheduleSettings, update: int) -> float:
    """The learning rate of a weight update, counted from 0.

    `cosine_times_warmup` is mmcv 1.x's: a cosine over all updates, multiplied by a line from
    `warmup_start` to 1 during warm-up, so that it never reaches the peak. `warmup_then_cosine` is
    the usual one: a line from `warmup_start` to the peak, then a cosine over the rest.
    """
    warming = update < schedule.warmup
    if schedule.curve == "cosine_times_warmup":
        rate = schedule.lr * _half_cosine(update / schedule.updates)
        return rate * _line(schedule, update) if warming else rate
    if warming:
        return schedule.lr * _line(schedule, update)
    return schedule.lr * _half_cosine((update - schedule.warmup) / (schedule.updates - schedule.warmup))


def _half_cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def _line(schedule: ScheduleSettings, update: int) -> float:
    return 1 - (1 - update / schedule.warmup) * (1 - schedule.warmup_start)


def build_optimizer(model: nn.Module, optimizer: OptimizerSettings, lr: float) -> Any:
    """A PopTorch optimizer over the model's parameters.

    What is passed here can change during a run, the rest is compiled in; so the number formats
    and the loss scale are given, and what is not used (dampening, clipping) is left out.
    """
    options: Dict[str, Any] = {} if optimizer.max_grad_norm is None else {"max_grad_norm": optimizer.max_grad_norm}
    return poptorch.optim.SGD(
        _parameter_groups(model, optimizer),
        lr=lr,
        momentum=optimizer.momentum,
        nesterov=optimizer.nesterov,
        weight_decay=optimizer.weight_decay,
        loss_scaling=optimizer.loss_scaling,
        use_combined_accum=False,
        accum_type=DTYPES[optimizer.accumulator_type],
        velocity_accum_type=DTYPES[optimizer.velocity_type],
        **options,
    )


def set_learning_rate(optimizer: Any, lr: float) -> None:
    """Change the learning rate of every group; the executor's `setOptimizer` makes it count."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def _parameter_groups(model: nn.Module, optimizer: OptimizerSettings) -> List[Dict[str, Any]]:
    decaying: List[nn.Parameter] = []
    others: List[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (others if name.split(".")[-1] in optimizer.no_decay else decaying).append(parameter)
    groups = [{"params": decaying, "weight_decay": optimizer.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
