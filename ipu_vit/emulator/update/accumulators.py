"""Gradients of one replica, collected over the micro batches of one weight update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence

import torch
from torch import Tensor

from ipu_vit.emulator.buckets import Bucket
from ipu_vit.emulator.random import BitStream
from ipu_vit.emulator.rounding import store


@dataclass
class Accumulation:
    """How the gradients of one bucket are collected.

    They are summed up, or averaged as they come (`running`), in a type of their own (rules 3.3, 3.7);
    or added, multiplied by `factor`, to `start`, the velocity of the combined variant (rule 4.4).
    """

    bucket: Bucket
    dtype: torch.dtype
    running: bool = False
    start: Optional[Tensor] = None
    factor: float = 1.0


class Accumulators:
    """A flat tensor for each bucket."""

    def __init__(self, accumulations: Sequence[Accumulation], bits: Optional[BitStream]) -> None:
        self.sums: List[Tensor] = [
            torch.empty(0) if each.start is None else each.start.clone() for each in accumulations
        ]
        self._accumulations = accumulations
        self._bits = bits
        self._count = 0

    @torch.no_grad()
    def add(self, gradients: Dict[str, Tensor]) -> None:
        """Add one micro batch's gradients."""
        for position, accumulation in enumerate(self._accumulations):
            bucket = accumulation.bucket
            flat = bucket.join([gradients.pop(name) for name in bucket.names])
            if self._count == 0 and accumulation.start is None:
                self.sums[position] = self._first(flat, accumulation)
            else:
                self._add(flat, self.sums[position], accumulation)
        self._count += 1

    def _first(self, flat: Tensor, accumulation: Accumulation) -> Tensor:
        if flat.dtype == accumulation.dtype:
            return flat
        kept = torch.empty_like(flat, dtype=accumulation.dtype)
        store(flat.float(), kept, self._bits)
        return kept

    def _add(self, flat: Tensor, total: Tensor, accumulation: Accumulation) -> None:
        values, share = total.float(), accumulation.factor
        if accumulation.running:
            share = 1 / (self._count + 1)
            values.mul_(1 - share)
        store(values.add_(flat.float(), alpha=share), total, self._bits)
