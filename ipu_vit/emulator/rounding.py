"""Rounding float32 values to the type they are stored in: to nearest, or at random without bias."""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor

from ipu_vit.emulator.random import BitStream

# Half keeps 10 of float32's 23 fraction bits; the other 13 decide the rounding.
_DROPPED = (1 << 13) - 1
_SMALLEST_NORMAL = 2.0**-14
_SUBNORMAL_STEP = 2.0**-24
_PIECE = 1 << 18


def store(values: Tensor, target: Tensor, bits: Optional[BitStream]) -> Tensor:
    """Write float32 `values` into `target`; into float16 at random if there are bits to draw from.

    Returns what is stored, in float32. `values` may be the target itself.
    """
    if bits is not None and target.dtype == torch.float16:
        values = round_stochastically(values, bits)
    if values is not target:
        target.copy_(values)
    return target.float()


def round_stochastically(values: Tensor, bits: BitStream) -> Tensor:
    """Round float32 to float16, up or down with the probabilities that keep the expectation."""
    rounded = torch.empty_like(values, dtype=torch.float16, memory_format=torch.contiguous_format)
    # The many short passes below are faster over pieces that stay in a core's cache.
    for source, target in zip(values.reshape(-1).split(_PIECE), rounded.view(-1).split(_PIECE)):
        target.copy_(_on_half_grid(source, bits.int16(source.numel())))
    return rounded


def _on_half_grid(values: Tensor, random: Tensor) -> Tensor:
    """The values, rounded to numbers that half can represent, still in float32.

    Adding uniform noise below the last kept bit and cutting off carries into that bit exactly as
    often as the cut-off part demands. Below half's normal range the grid is uniform, and rounding
    happens there on the numbers themselves. Overflow goes to infinity as with any rounding;
    infinities and NaN stay what they are.
    """
    noise = random.bitwise_and_(_DROPPED).int()
    rounded = (values.view(torch.int32) + noise).bitwise_and_(~_DROPPED).view(torch.float32)
    small = values.abs() < _SMALLEST_NORMAL
    if bool(small.any()):
        uniform = noise.float().div_(_DROPPED + 1)
        on_grid = (values / _SUBNORMAL_STEP).add_(uniform).floor_().mul_(_SUBNORMAL_STEP)
        rounded = torch.where(small, on_grid, rounded)
    return rounded
