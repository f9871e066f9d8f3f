"""Parameter groups: which weights decay, and what share of the learning rate each layer gets."""

from __future__ import annotations

from typing import Any, Dict, List, Set, Tuple

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ipu_vit.settings import OptimizerSettings

_NORMALISATIONS = (nn.LayerNorm, nn.GroupNorm, _BatchNorm)


def parameter_groups(model: nn.Module, optimizer: OptimizerSettings) -> List[Dict[str, Any]]:
    """The model's parameters that are trained, grouped by whether they decay and by their share of the learning rate.

    That share is a group's `lr_scale`; PopTorch passes over a key that it does not know.
    """
    groups: Dict[Tuple[bool, float], List[nn.Parameter]] = {}
    undecayed = _undecayed(model, optimizer.no_decay)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = optimizer.layer_decay ** _layers_above(name, model)
        groups.setdefault((name in undecayed, scale), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": 0.0 if is_undecayed else optimizer.weight_decay, "lr_scale": scale}
        for (is_undecayed, scale), parameters in sorted(groups.items())
    ]


def _undecayed(model: nn.Module, no_decay: List[str]) -> Set[str]:
    """Names of the parameters that do not decay, by their last name or, for `norm`, by their module."""
    names = {name for name, _ in model.named_parameters() if name.split(".")[-1] in no_decay}
    if "norm" in no_decay:
        for path, module in model.named_modules():
            if isinstance(module, _NORMALISATIONS):
                names.update(f"{path}.{name}" for name, _ in module.named_parameters(recurse=False))
    return names


def _layers_above(name: str, model: Any) -> int:
    """How far a parameter lies below the head: the last layer 1, the first one less than the embedding.

    So BEiT (Bao et al. 2021, arXiv 2106.08254) and MAE's fine-tuning count.
    """
    part, *rest = name.split(".")
    if part == "embedding":
        return len(model.layers) + 1
    return len(model.layers) - int(rest[0]) if part == "layers" else 0
