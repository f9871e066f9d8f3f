"""Grids of positions, and positions that are computed instead of learnt."""

from __future__ import annotations

import math
from typing import Optional, Sequence

import torch
from torch import Tensor


def grid_side(tokens: int, class_token: bool = True) -> Optional[int]:
    """Side of the square grid behind `tokens` positions, after the class token's, if they are one."""
    patches = max(tokens - class_token, 0)
    side = math.isqrt(patches)
    return side if side and side * side == patches else None


def layout_of(class_token: bool) -> str:
    """What positions have to be, in words."""
    return "a class token and a square grid" if class_token else "a square grid"


def fixed_positions(shape: Sequence[int], class_token: bool = True) -> Tensor:
    """Sines and cosines for a square grid: positions (1, tokens, width) of the given (tokens, width).

    As MoCo v3 (Chen et al. 2021, arXiv 2104.02057) and big_vision's `sincos2d` have them: a quarter of the
    width each for the sine and cosine of the column and those of the row, at frequencies that fall from 1 to
    1/10000 in equal ratios. The class token's position is 0. Raises ValueError where they cannot be made.
    """
    tokens, width = shape
    side = grid_side(tokens, class_token)
    if side is None or width % 4:
        raise ValueError(f"{tokens} positions of width {width} are not {layout_of(class_token)}, in multiples of 4")
    frequencies = 10_000.0 ** -torch.linspace(0, 1, width // 4)
    angles = torch.arange(side)[:, None] * frequencies  # (side, width / 4)
    rows, columns = (angles.unsqueeze(dim).expand(side, side, -1).reshape(side * side, -1) for dim in (1, 0))
    grid = torch.cat([columns.sin(), columns.cos(), rows.sin(), rows.cos()], dim=1)
    return torch.cat([grid.new_zeros(int(class_token), width), grid])[None]
