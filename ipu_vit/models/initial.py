"""Initial weights that several models have in common."""

from __future__ import annotations

from torch import Tensor, nn


def lecun_normal(weight: Tensor) -> None:
    """Truncated normal of variance 1 / fan-in (LeCun et al. 1998), cut at two deviations."""
    fan_in = weight[0].numel()
    # A normal cut at ±2 has deviation 0.8796; dividing by it restores variance 1 / fan-in.
    std = fan_in**-0.5 / 0.87962566103423978
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
