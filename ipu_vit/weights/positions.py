"""Position embeddings for another number of patches, and those that are computed for any.

A model trained at 224 pixels has a 14×14 grid of positions; at 384 pixels it needs 24×24. The
learnt grid is resized like an image; the class token's position stays as it is.
"""

from __future__ import annotations

import math
from typing import Optional, Sequence, Tuple

import torch
from torch import Tensor
from torch.nn import functional

Grid = Tuple[int, int]


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
    rows, columns = angles.repeat_interleave(side, dim=0), angles.repeat(side, 1)
    grid = torch.cat([columns.sin(), columns.cos(), rows.sin(), rows.cos()], dim=1)
    return torch.cat([grid.new_zeros(int(class_token), width), grid])[None]


def resize_positions(
    positions: Tensor, grid: Grid, mode: str = "bilinear", antialias: bool = False, class_token: bool = True
) -> Tensor:
    """Position embeddings (1, 1 + g², C) on a grid of (height, width): (1, 1 + height·width, C).

    Without a class token, there is no position for it either: (1, g², C) to (1, height·width, C).

    `bilinear` is the default because the published fine-tunes from 224 to 384 pixels were made with
    it: vit_jax zooms with `scipy.ndimage.zoom(order=1)`, which lets the corners of both grids
    coincide (`align_corners`). `bicubic` is what timm (with antialias) and Hugging Face (without)
    do, where the edges coincide.
    """
    if mode not in ("bilinear", "bicubic"):
        raise ValueError(f"mode={mode!r} is not one of bilinear, bicubic")
    if mode == "bilinear" and antialias:
        raise ValueError("antialias=True needs mode='bicubic': grids whose corners coincide have no area to average")
    side = grid_side(positions.shape[1], class_token)
    if side is None:
        raise ValueError(f"{positions.shape[1]} positions are not {layout_of(class_token)}")
    if (side, side) == tuple(grid):
        return positions
    first, patches = positions[:, : int(class_token)], positions[:, int(class_token) :]
    # In float32, because float16 cannot be resized on every CPU build of PyTorch.
    image = patches.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    corners = True if mode == "bilinear" else None
    resized = functional.interpolate(image, size=tuple(grid), mode=mode, align_corners=corners, antialias=antialias)
    return torch.cat([first, resized.flatten(2).transpose(1, 2).to(positions.dtype)], dim=1)
