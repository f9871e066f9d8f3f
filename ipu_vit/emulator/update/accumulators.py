"""Gradients of one replica, collected over the micro batches of one weight update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from ipu_vit.emulator.buckets import Bucket
from ipu_vit.emulator.random import BitStream
from ipu_vit.emulator.rounding import store

# Elements that are worked on at a time, so that float32 copies of them stay in a core's cache.
_PIECE = 1 << 19


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
    """A flat tensor for each bucket, in memory of its own for all updates.

    Gradients are added as they come, once those of a whole bucket are there, rather than all kept
    until the end of the backward pass.
    """

    def __init__(self, accumulations: Sequence[Accumulation]) -> None:
        self.sums: List[Tensor] = [torch.empty_like(each.bucket.flat, dtype=each.dtype) for each in accumulations]
        self._positions = {name: i for i, each in enumerate(accumulations) for name in each.bucket.names}
        self.begin(accumulations, None)

    @torch.no_grad()
    def begin(self, accumulations: Sequence[Accumulation], bits: Optional[BitStream]) -> None:
        """Forget what was collected, and collect for the next update."""
        for accumulation, total in zip(accumulations, self.sums):
            if accumulation.start is not None:
                total.copy_(accumulation.start)
        self._accumulations = accumulations
        self._bits = bits
        self._counts = [0] * len(accumulations)  # micro batches whose gradients a bucket has
        self._waiting: List[Dict[str, Tensor]] = [{} for _ in accumulations]

    def add(self, name: str, gradient: Tensor) -> None:
        """Add one weight's gradient of one micro batch. Nobody takes those of weights in no parameter group."""
        position = self._positions.get(name)
        if position is None:
            return
        waiting, bucket = self._waiting[position], self._accumulations[position].bucket
        waiting[name] = gradient
        if len(waiting) == len(bucket.names):
            with _disable_current_modes():
                self._add(position, bucket.join(waiting))
            waiting.clear()

    def _add(self, position: int, flat: Tensor) -> None:
        accumulation, total, count = self._accumulations[position], self.sums[position], self._counts[position]
        self._counts[position] += 1
        first = count == 0 and accumulation.start is None
        share = 1 / (count + 1) if accumulation.running else accumulation.factor
        for target, gradient in zip(total.split(_PIECE), flat.split(_PIECE)):
            if first:
                store(gradient.float(), target, self._bits)
                continue
            values = target.float()
            if accumulation.running:
                values.mul_(1 - share)
            store(values.add_(gradient.float(), alpha=share), target, self._bits)
