"""Weights laid end to end, so that an update is a few long operations instead of many short ones.

A bucket holds one large weight, whose gradients then need not be moved together with others', or small
ones of one parameter group and type, up to a size that keeps temporaries small. The device's weights are
views into their bucket; gradients, accumulators and velocities of the same bucket have the same layout.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Dict, List, Sequence, Tuple

import torch
from torch import Tensor

from ipu_vit.emulator.optim import Group

# Elements of a bucket of small weights, and of a weight that is large: moving a gradient costs more than a call.
_MOST_ELEMENTS = 1 << 20
_LARGE = 1 << 16


class Bucket:
    """Some weights of one parameter group, as one flat tensor."""

    def __init__(self, group: int, names: Sequence[str], weights: Dict[str, Tensor]) -> None:
        self.group = group
        self.names = list(names)
        self._shapes = [weights[name].shape for name in names]
        self._sizes = [weights[name].numel() for name in names]
        self.flat = self.join(weights).clone()

    @property
    def places(self) -> List[Tuple[int, int]]:
        """First element and length of each weight."""
        return list(zip(accumulate([0, *self._sizes]), self._sizes))

    def join(self, tensors: Dict[str, Tensor]) -> Tensor:
        """Tensors shaped as the weights, end to end; a single one is not copied if it is contiguous."""
        flat = [tensors[name].detach().reshape(-1) for name in self.names]
        return flat[0] if len(flat) == 1 else torch.cat(flat)

    def split(self, flat: Tensor) -> Dict[str, Tensor]:
        """Views of a flat tensor, shaped as the weights, by name."""
        views = zip(self.names, flat.split(self._sizes), self._shapes)
        return {name: part.view(shape) for name, part, shape in views}


def make_buckets(groups: Sequence[Group], weights: Dict[str, Tensor], used: Sequence[str]) -> List[Bucket]:
    """Lay out the weights that get gradients; those of `weights` become views of the buckets.

    Weights in no group stay where they are, and get gradients that nobody takes.
    """
    buckets: List[Bucket] = []
    for number, group in enumerate(groups):
        for dtype in (torch.float32, torch.float16):
            names = [name for name in group.parameters if name in used and weights[name].dtype == dtype]
            for some in _runs(names, weights):
                buckets.append(Bucket(number, some, weights))
                weights.update(buckets[-1].split(buckets[-1].flat))
    for name in used:
        weights[name].requires_grad_()
    return buckets


def _runs(names: Sequence[str], weights: Dict[str, Tensor]) -> List[List[str]]:
    """Each large weight by itself; the others in order, cut where their elements add up to a bucket."""
    large = [name for name in names if weights[name].numel() >= _LARGE]
    runs: List[List[str]] = []
    room = 0
    for name in names:
        size = weights[name].numel()
        if size >= _LARGE:
            continue
        if size > room:
            runs.append([])
            room = _MOST_ELEMENTS
        runs[-1].append(name)
        room -= size
    return [[name] for name in large] + runs
