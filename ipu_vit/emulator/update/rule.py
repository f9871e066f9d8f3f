"""What the weight updates of all optimizers have in common.

A rule is the mathematics of one optimizer for the weights of one bucket. The bucket is worked on in
parts that stay in a core's cache while several operations pass over them. For each part a rule takes
three steps, because the norm that `max_grad_norm` bounds is over all weights, and what it is the norm
of differs (rule 4.9): it absorbs the gradient into state that clipping leaves alone, names the tensor
that is clipped, and moves the weights by that tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, Optional, Tuple

import torch
from torch import Tensor

from ipu_vit.emulator.buckets import Bucket
from ipu_vit.emulator.optim import Attributes
from ipu_vit.emulator.random import BitStream
from ipu_vit.emulator.rounding import store
from ipu_vit.emulator.update.accumulators import Accumulation

# Elements of a part: an update's half dozen float32 tensors then stay in the caches; fewer cost more calls.
_PART = 1 << 18


@dataclass
class Part:
    """Matching slices of a bucket's weights, gradients (float32, to be written over) and state."""

    weights: Tensor
    gradient: Tensor
    state: Dict[str, Tensor]
    bits: Optional[BitStream]

    def keep(self, values: Tensor, name: str) -> Tensor:
        """Store float32 values as state; returns them as they were stored."""
        return store(values, self.state[name], self.bits)

    def keep_weights(self, values: Tensor) -> Tensor:
        """Store float32 values as the new weights; returns them as they were stored."""
        return store(values, self.weights, self.bits)


class Rule:
    """One optimizer's mathematics for one bucket."""

    #: whether parts have to be whole weights
    by_weight = False
    #: whether gradients are added to the velocity as they come, without an accumulator of their own (rule 4.4)
    accumulates_velocity = False

    def __init__(self, bucket: Bucket, attributes: Attributes, accumulates: bool) -> None:
        self.bucket = bucket
        self.use(attributes)
        #: tensors as long as the bucket, or of one element, by PopART's prefixes for their names
        self.state: Dict[str, Tensor] = {}
        self._accumulates = accumulates
        # Without accumulation there is no accumulator, and gradients keep the weights' type.
        self._accumulator_type = attributes.accumulator_type if accumulates else bucket.flat.dtype

    def use(self, attributes: Attributes) -> None:
        """Take the numbers of these attributes from now on."""
        self.group = attributes.groups[self.bucket.group]

    def accumulation(self, running: bool, divisor: float) -> Accumulation:
        """How gradients are collected; their sum over the steps is the gradient times `divisor`."""
        return Accumulation(self.bucket, self._accumulator_type, running)

    def begin(self) -> None:
        """One more update."""

    def clip_scale(self, loss_scale: float) -> float:
        """What the norm of the clippable tensors is multiplied by."""
        return 1.0

    def absorb(self, part: Part) -> None:
        """Take the gradient into state that clipping does not change."""

    def clippable(self, part: Part) -> Tensor:
        """The tensor that `max_grad_norm` is about; called again if there is such a bound."""
        return part.gradient

    def move(self, part: Part, clippable: Tensor, factor: float) -> None:
        """Change the weights by the clippable tensor, times a factor."""
        raise NotImplementedError

    def cuts(self) -> List[Tuple[int, int]]:
        """First elements and lengths of the bucket's parts."""
        if self.by_weight:
            return self.bucket.places
        return [(start, min(_PART, len(self.bucket.flat) - start)) for start in range(0, len(self.bucket.flat), _PART)]

    def slices(self, start: int, length: int) -> Dict[str, Tensor]:
        """The state of a part."""
        return {
            name: tensor.narrow(0, start, length) if tensor.dim() else tensor for name, tensor in self.state.items()
        }

    def _zeros(self, dtype: torch.dtype) -> Tensor:
        return torch.zeros_like(self.bucket.flat, dtype=dtype)
