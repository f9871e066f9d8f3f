"""What a checkpoint tells of a run's health: how long its weights and gradients are.

Gradients stay on the IPUs: to stream them to the host at every update would cost as much as the weights
take, and make another program of the one that trains. But each checkpoint brings the weights to the host
anyway, and with them what the optimizer has made of the gradients.
"""

from __future__ import annotations

import math
from typing import Any, Dict, Iterable, Optional

import torch
from torch import Tensor

from ipu_vit.checkpoint import Checkpoint
from ipu_vit.settings import OptimizerSettings


def health(
    checkpoint: Checkpoint, before: Optional[Dict[str, Tensor]], optimizer: OptimizerSettings
) -> Dict[str, float]:
    """Euclidean norms over all weights, and the loss scale.

    `health/weights`, `health/change` since the weights `before`, `health/gradient` (see `_gradient`) and
    `health/loss_scale`; what cannot be told is left out.
    """
    weights = {name: tensor for name, tensor in checkpoint.model.items() if tensor.is_floating_point()}
    figures = {"weights": _norm(weights.values())}
    if before is not None:
        figures["change"] = _norm(tensor.float() - before[name].float() for name, tensor in weights.items())
    state = checkpoint.optimizer["ipu_state"]
    gradient = _gradient(state, optimizer, checkpoint.update)
    if gradient is not None:
        figures["gradient"] = gradient
    figures["loss_scale"] = optimizer.loss_scaling * float(state.get("lossScaleUpdateFactor", 1.0))
    return {f"health/{name}": value for name, value in figures.items()}


def _gradient(state: Dict[str, Any], optimizer: OptimizerSettings, updates: int) -> Optional[float]:
    """The norm of the gradient's average over the last updates, as the optimizer keeps it; none if it keeps none.

    sgd: the velocity, a sum of gradients times `loss_scaling`. adam, adamw, lamb: the first moment. rmsprop:
    the root of the mean square. Each is corrected for its start at 0.
    """
    kept = [tensor for name, tensor in state.items() if name.startswith("Accl1___")]
    if not kept:
        return None
    if optimizer.name == "rmsprop":
        return math.sqrt(sum(float(tensor.float().sum()) for tensor in kept) / (1 - optimizer.alpha**updates))
    if optimizer.name == "sgd":
        share = optimizer.momentum
        return _norm(kept) / optimizer.loss_scaling * (1 - share) / (1 - share**updates)
    return _norm(kept) / (1 - optimizer.betas[0] ** updates)


def _norm(tensors: Iterable[Tensor]) -> float:
    return math.sqrt(sum(float(torch.linalg.vector_norm(tensor.float())) ** 2 for tensor in tensors))
