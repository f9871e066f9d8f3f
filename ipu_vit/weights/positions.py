"""Position embeddings for another number of patches.

A model trained at 224 pixels has a 14×14 grid of positions; at 384 pixels it needs 24×24. The
learnt grid is resized like an image; the class token's position stays as it is.
"""

from __future__ import annotations

import math
from typing import Optional, Tuple

from torch import Tensor, cat
from torch.nn import functional

Grid = Tuple[int, int]


def grid_side(tokens: int) -> Optional[int]:
    """Side of the square grid behind `tokens` positions, one of them the class token's, if there is one."""
    side = math.isqrt(max(tokens - 1, 0))
    return side if side and side * side == tokens - 1 else None


def resize_positions(positions: Tensor, grid: Grid, mode: str = "bilinear", antialias: bool = False) -> Tensor:
    """Position embeddings (1, 1 + g², C) on a grid of (height, width): (1, 1 + height·width, C).

    `bilinear` is the default because the published fine-tunes from 224 to 384 pixels were made with
    it: vit_jax zooms with `scipy.ndimage.zoom(order=1)`, which lets the corners of both grids
    coincide (`align_corners`). `bicubic` is what timm (with antialias) and Hugging Face (without)
    do, where the edges coincide.
    """
    if mode not in ("bilinear", "bicubic"):
        raise ValueError(f"mode={mode!r} is not one of bilinear, bicubic")
    if mode == "bilinear" and antialias:
        raise ValueError("antialias=True needs mode='bicubic': grids whose corners coincide have no area to average")
    side = grid_side(positions.shape[1])
    if side is None:
        raise ValueError(f"{positions.shape[1]} positions are not a class token and a square grid")
    if (side, side) == tuple(grid):
        return positions
    class_token, patches = positions[:, :1], positions[:, 1:]
    # In float32, because float16 cannot be resized on every CPU build of PyTorch.
    image = patches.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    corners = True if mode == "bilinear" else None
    resized = functional.interpolate(image, size=tuple(grid), mode=mode, align_corners=corners, antialias=antialias)
    return cat([class_token, resized.flatten(2).transpose(1, 2).to(positions.dtype)], dim=1)
