"""Position embeddings for another number of patches.

A model trained at 224 pixels has a 14×14 grid of positions; at 384 pixels it needs 24×24. The
learnt grid is resized like an image; the class token's position stays as it is.
"""

from __future__ import annotations

from typing import Tuple

import torch
from torch import Tensor
from torch.nn import functional

from ipu_vit.models.positions import grid_side, layout_of

Grid = Tuple[int, int]


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
