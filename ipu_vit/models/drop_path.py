"""Stochastic depth (Huang et al. 2016, arXiv 1603.09382): leave branches out at random in training."""

from __future__ import annotations

from typing import List

import torch.nn.functional as F
from torch import Tensor, nn


class DropPath(nn.Module):
    """A residual branch (B, N, C), left out for some images of the batch and scaled up for the others."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return branch
        # Dropout of a one per image: PopTorch has it, and draws another mask for each micro batch.
        return branch * F.dropout(branch.new_ones(branch.shape[0], 1, 1), self.rate)


def rising_rates(last: float, depth: int) -> List[float]:
    """The rate of each layer: a line from 0 at the first layer to `last` at the last one."""
    return [last * layer / max(depth - 1, 1) for layer in range(depth)]
