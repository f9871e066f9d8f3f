"""Operators on point clouds, which PopTorch takes over from torch_cluster."""

from __future__ import annotations

import math
from typing import List, Optional, Union

import numpy as np
import torch
from torch import Tensor

from ipu_vit.emulator.arguments import require, require_type
from ipu_vit.emulator.tape import opaque

Batch = Union[List[int], Tensor]


def fps(src: Tensor, ptr: List[int], ratio: float = 0.5, random_start: bool = False) -> Tensor:
    """`poptorch.fps`: indices of points far from each other, chosen one after the other.

    Points `ptr[i]` to `ptr[i + 1]` are one cloud; of each cloud, `ratio` of the points is chosen.
    """
    require_type(src, Tensor, "fps", "src")
    require_type(ptr, list, "fps", "ptr")
    require_type(ratio, float, "fps", "ratio")
    require_type(random_start, bool, "fps", "random_start")
    require(len(ptr) >= 2, f"fps: ptr must have at least 2 items, unlike {ptr}")
    require(
        all(first < second for first, second in zip([-1, *ptr], ptr)) and ptr[-1] <= len(src),
        f"fps: ptr must increase from 0 to at most the {len(src)} points of src, unlike {ptr}",
    )
    require(0 < ratio <= 1, f"fps: ratio must be above 0 and at most 1, not {ratio}")
    starts = torch.rand(len(ptr) - 1, device=src.device) if random_start else None
    return _fps(src, ptr, ratio, starts)


@opaque
def _fps(src: Tensor, ptr: List[int], ratio: float, starts: Optional[Tensor]) -> Tensor:
    clouds = list(zip(ptr, ptr[1:]))
    chosen = []
    for i, (begin, end) in enumerate(clouds):
        # In float32, as on the device: whether 0.1 * 30 is 3 or a little more depends on it.
        count = math.ceil(np.float32(end - begin) * np.float32(ratio))
        start = torch.zeros(1) if starts is None else starts[i : i + 1]
        chosen.append(begin + _farthest(src[begin:end].detach(), count, (start * (end - begin)).long()))
    return torch.cat(chosen)


def _farthest(points: Tensor, count: int, last: Tensor) -> Tensor:
    points = _wide(points.reshape(len(points), -1))
    distances = torch.full((len(points),), math.inf, dtype=points.dtype)
    chosen = [last]
    while len(chosen) < count:
        distances = torch.minimum(distances, (points - points.index_select(0, last)).square().sum(1))
        last = distances.argmax(0, keepdim=True)
        chosen.append(last)
    return torch.cat(chosen)


def nearest(x: Tensor, y: Tensor, batch_x: Optional[Batch] = None, batch_y: Optional[Batch] = None) -> Tensor:
    """`poptorch.nearest`: for each point of `x`, the index of the nearest point of `y` in the same batch.

    `batch_x` and `batch_y` tell the batch of each point, in ascending order; without one, there is one batch.
    """
    require_type(x, Tensor, "nearest", "x")
    require_type(y, Tensor, "nearest", "y")
    x, y = (points.reshape(-1, 1) if points.dim() == 1 else points for points in (x, y))
    require(
        x.dim() == y.dim() == 2 and x.shape[1] == y.shape[1],
        f"nearest: x and y must be points of equally many coordinates, unlike {tuple(x.shape)} and {tuple(y.shape)}",
    )
    batches = [_batches("batch_x", batch_x, x), _batches("batch_y", batch_y, y)]
    if batches == [None, None]:
        return _nearest(x, y, None, None)
    sides = [[0] * len(points) if batch is None else batch for batch, points in zip(batches, (x, y))]
    if all(isinstance(side, list) for side in sides):
        require(set(sides[0]) == set(sides[1]), "nearest: batch_x and batch_y must name the same batches")
    return _nearest(x, y, *(side if isinstance(side, Tensor) else torch.tensor(side) for side in sides))


def _batches(name: str, batch: Optional[Batch], points: Tensor) -> Optional[Batch]:
    if batch is None or (isinstance(batch, list) and not batch):
        return None
    require(
        isinstance(batch, (list, Tensor)), f"nearest: {name} must be a list or a tensor, not {type(batch).__name__}"
    )
    require(len(batch) == len(points), f"nearest: {name} has {len(batch)} items for {len(points)} points")
    require(isinstance(batch, Tensor) or sorted(batch) == batch, f"nearest: {name} must ascend, unlike {batch}")
    return batch


@opaque
def _nearest(x: Tensor, y: Tensor, batch_x: Optional[Tensor], batch_y: Optional[Tensor]) -> Tensor:
    x, y = _wide(x.detach()), _wide(y.detach())
    distances = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    if batch_x is not None and batch_y is not None:
        distances = distances.masked_fill(batch_x[:, None] != batch_y[None], math.inf)
    return distances.argmin(1)


def _wide(points: Tensor) -> Tensor:
    return points if points.dtype == torch.float64 else points.float()
