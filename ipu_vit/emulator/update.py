"""The weight update: accumulated gradients, optimizer state, new weights.

One `Accumulators` per replica collects the gradients of a weight update in the type the optimizer
asks for, still multiplied by the loss scale (rules 3.4, 3.7); `SGDUpdate` reduces them over
replicas, takes the scale out and changes the weights (rules 3.6, 4.3, 4.9).
"""

from __future__ import annotations

from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from ipu_vit.emulator.buckets import Bucket, make_buckets
from ipu_vit.emulator.enums import MeanReductionStrategy, ReductionType
from ipu_vit.emulator.optim import Attributes, Group
from ipu_vit.emulator.options import Options
from ipu_vit.emulator.random import BitStream
from ipu_vit.emulator.rounding import store


class Accumulators:
    """Gradients of one replica over the micro batches of one weight update, a flat tensor per bucket."""

    def __init__(self, buckets: Sequence[Bucket], dtype: torch.dtype, running: bool, bits: Optional[BitStream]) -> None:
        self.sums: List[Tensor] = []
        self._buckets = buckets
        self._dtype = dtype
        self._running = running
        self._bits = bits
        self._count = 0

    def add(self, gradients: Dict[str, Tensor]) -> None:
        """Add one micro batch's gradients."""
        kept = self._count / (self._count + 1) if self._running else 1.0
        share = 1 / (self._count + 1) if self._running else 1.0
        for position, bucket in enumerate(self._buckets):
            flat = bucket.join([gradients.pop(name) for name in bucket.names])
            if self._count == 0:
                self.sums.append(flat.to(self._dtype))
            else:
                total = self.sums[position]
                store(total.float().mul_(kept).add_(flat.float(), alpha=share), total, self._bits)
        self._count += 1


class SGDUpdate:
    """Stochastic gradient descent with momentum on the device's weights."""

    def __init__(
        self, attributes: Attributes, options: Options, weights: Dict[str, Tensor], used: Sequence[str]
    ) -> None:
        self.attributes = attributes
        training = options.Training
        self._mean = training.accumulation_and_replication_reduction_type == ReductionType.Mean
        # Half accumulators of the separate variant hold running means, whatever was asked (rule 3.4).
        self._running = self._mean and (
            training.meanAccumulationAndReplicationReductionStrategy == MeanReductionStrategy.Running
            or (attributes.accumulator_type == torch.float16 and not attributes.combined)
        )
        self._accumulation = training.gradient_accumulation
        self._buckets = make_buckets(attributes.groups, weights, used)
        self._velocities = [
            torch.zeros_like(bucket.flat, dtype=attributes.velocity_type) if self._has_velocity(bucket) else None
            for bucket in self._buckets
        ]

    @property
    def loss_scale(self) -> float:
        return self.attributes.loss_scaling

    def observe_gradients(self, gradients: Dict[str, Tensor]) -> None:
        pass

    def new_accumulators(self, bits: Optional[BitStream]) -> Accumulators:
        return Accumulators(self._buckets, self.attributes.accumulator_type, self._running, bits)

    @torch.no_grad()
    def apply(self, replicas: List[Accumulators], bits: Optional[BitStream]) -> None:
        """Reduce over replicas and update the weights in place."""
        steps = self._steps(replicas, bits)
        clip = 1.0
        if self.attributes.max_grad_norm != float("inf"):
            every_step = list(steps)
            clip = self._clip_factor(step for _, step in every_step)
            steps = iter(every_step)
        for bucket, step in steps:
            moved = bucket.flat.float().sub(step, alpha=self._group(bucket).lr * clip)
            store(moved, bucket.flat, bits)

    def _steps(self, replicas: List[Accumulators], bits: Optional[BitStream]) -> Iterator[Tuple[Bucket, Tensor]]:
        """What each bucket is moved by, before the learning rate."""
        divisor = self.attributes.loss_scaling
        if self._mean:
            divisor *= len(replicas) * (1 if self._running else self._accumulation)
        for position, bucket in enumerate(self._buckets):
            gradient = replicas[0].sums[position].float()
            for other in replicas[1:]:
                gradient = gradient + other.sums[position].float()
            yield bucket, self._step(bucket, self._velocities[position], gradient / divisor, bits)

    def _step(self, bucket: Bucket, stored: Optional[Tensor], gradient: Tensor, bits: Optional[BitStream]) -> Tensor:
        group = self._group(bucket)
        if group.weight_decay:
            gradient.add_(bucket.flat.float(), alpha=group.weight_decay)
        if stored is None:
            return gradient
        # Velocities are stored multiplied by the loss scale, which keeps them in half's range (rule 4.4).
        scale = self.attributes.loss_scaling
        store(stored.float().mul_(group.momentum).add_(gradient, alpha=(1 - group.dampening) * scale), stored, bits)
        velocity = stored.float() / scale
        return gradient.add_(velocity, alpha=group.momentum) if group.nesterov else velocity

    def _group(self, bucket: Bucket) -> Group:
        return self.attributes.groups[bucket.group]

    def _has_velocity(self, bucket: Bucket) -> bool:
        constant = f"momentum (group {bucket.group})" in self.attributes.constants
        return self._group(bucket).momentum != 0 or not constant

    def _clip_factor(self, steps: Iterable[Tensor]) -> float:
        """One factor for all weights, of the scaled norm as PopART takes it (rule 4.9)."""
        bound = self.attributes.max_grad_norm
        squares = sum(float(step.double().square().sum()) for step in steps)
        return bound / max(bound, squares**0.5 * self.attributes.loss_scaling)

    # State ------------------------------------------------------------------------------------

    def state(self) -> Dict[str, Any]:
        """`ipu_state` and `ipu_param` of the optimizer's `state_dict`."""
        velocities = {name: view.clone() for name, view in self._velocity_views().items()}
        return {"ipu_state": velocities, "ipu_param": {"loss_scaling": self.attributes.loss_scaling}}

    def load(self, state: Dict[str, Any]) -> None:
        """Take over `state()`; RuntimeError for a velocity that belongs to no weight of that shape."""
        views = self._velocity_views()
        for name, value in state["ipu_state"].items():
            if name not in views or views[name].shape != value.shape:
                raise RuntimeError(f"The optimizer state {name} of shape {tuple(value.shape)} fits no parameter")
            views[name].copy_(value)

    def _velocity_views(self) -> Dict[str, Tensor]:
        return {
            f"velocity___{name}": view
            for bucket, velocity in zip(self._buckets, self._velocities)
            if velocity is not None
            for name, view in bucket.split(velocity).items()
        }


WeightUpdate = SGDUpdate
