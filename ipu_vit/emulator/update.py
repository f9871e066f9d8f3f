"""The weight update: accumulated gradients, optimizer state, new weights.

One `Accumulators` per replica collects the gradients of a weight update in the type the optimizer
asks for, still multiplied by the loss scale (rules 3.4, 3.7); `SGDUpdate` reduces them over
replicas, takes the scale out and changes the weights (rules 3.6, 4.3, 4.9).
"""

from __future__ import annotations

from typing import Any, Dict, Iterable, Iterator, List, Optional, Tuple

import torch
from torch import Tensor

from ipu_vit.emulator.enums import MeanReductionStrategy, ReductionType
from ipu_vit.emulator.optim import Attributes, Group
from ipu_vit.emulator.options import Options
from ipu_vit.emulator.random import BitStream
from ipu_vit.emulator.rounding import store


class Accumulators:
    """Gradients of one replica over the micro batches of one weight update."""

    def __init__(self, dtype: torch.dtype, running: bool, bits: Optional[BitStream]) -> None:
        self.sums: Dict[str, Tensor] = {}
        self._dtype = dtype
        self._running = running
        self._bits = bits
        self._count = 0

    def add(self, names: Iterable[str], gradients: Iterable[Optional[Tensor]]) -> None:
        """Add one micro batch's gradients; parameters that the loss does not depend on have None."""
        kept = self._count / (self._count + 1) if self._running else 1.0
        share = 1 / (self._count + 1) if self._running else 1.0
        self._count += 1
        for name, gradient in zip(names, gradients):
            if gradient is None:
                continue
            total = self.sums.get(name)
            if total is None:
                self.sums[name] = gradient.to(self._dtype)
            else:
                store(total.float().mul_(kept).add_(gradient, alpha=share), total, self._bits)


class SGDUpdate:
    """Stochastic gradient descent with momentum on the device's weights."""

    def __init__(self, attributes: Attributes, options: Options) -> None:
        self.attributes = attributes
        self.velocities: Dict[str, Tensor] = {}
        training = options.Training
        self._mean = training.accumulation_and_replication_reduction_type == ReductionType.Mean
        # Half accumulators of the separate variant hold running means, whatever was asked (rule 3.4).
        self._running = self._mean and (
            training.meanAccumulationAndReplicationReductionStrategy == MeanReductionStrategy.Running
            or (attributes.accumulator_type == torch.float16 and not attributes.combined)
        )
        self._accumulation = training.gradient_accumulation

    def new_accumulators(self, bits: Optional[BitStream]) -> Accumulators:
        return Accumulators(self.attributes.accumulator_type, self._running, bits)

    def apply(self, weights: Dict[str, Tensor], replicas: List[Accumulators], bits: Optional[BitStream]) -> None:
        """Reduce over replicas and update the weights in place."""
        steps = self._steps(weights, replicas, bits)
        clip = 1.0
        if self.attributes.max_grad_norm != float("inf"):
            every_step = list(steps)
            clip = self._clip_factor(step for _, _, step in every_step)
            steps = iter(every_step)
        for group, name, step in steps:
            store(weights[name].float().sub_(step, alpha=group.lr * clip), weights[name], bits)

    def _steps(
        self, weights: Dict[str, Tensor], replicas: List[Accumulators], bits: Optional[BitStream]
    ) -> Iterator[Tuple[Group, str, Tensor]]:
        """What each weight is moved by, before the learning rate."""
        divisor = self.attributes.loss_scaling
        if self._mean:
            divisor *= len(replicas) * (1 if self._running else self._accumulation)
        for group in self.attributes.groups:
            for name in group.parameters:
                if name in replicas[0].sums:
                    gradient = replicas[0].sums[name].float()
                    for other in replicas[1:]:
                        gradient = gradient + other.sums[name]
                    yield group, name, self._step(group, name, weights[name], gradient / divisor, bits)

    def _step(
        self, group: Group, name: str, weight: Tensor, gradient: Tensor, bits: Optional[BitStream]
    ) -> Tensor:
        if group.weight_decay:
            gradient.add_(weight, alpha=group.weight_decay)
        if not self._has_velocity(group):
            return gradient
        # Velocities are stored multiplied by the loss scale, which keeps them in half's range (rule 4.4).
        scale = self.attributes.loss_scaling
        stored = self.velocities.get(name)
        if stored is None:
            stored = self.velocities[name] = torch.zeros_like(weight, dtype=self.attributes.velocity_type)
        store(stored.float().mul_(group.momentum).add_(gradient, alpha=(1 - group.dampening) * scale), stored, bits)
        velocity = stored.float() / scale
        return gradient.add_(velocity, alpha=group.momentum) if group.nesterov else velocity

    def _has_velocity(self, group: Group) -> bool:
        return group.momentum != 0 or "momentum (group 0)" not in self.attributes.constants

    def _clip_factor(self, steps: Iterable[Tensor]) -> float:
        """One factor for all weights, of the scaled norm as PopART takes it (rule 4.9)."""
        bound = self.attributes.max_grad_norm
        squares = sum(float(step.double().square().sum()) for step in steps)
        return bound / max(bound, squares**0.5 * self.attributes.loss_scaling)

    # State ------------------------------------------------------------------------------------

    def state(self) -> Dict[str, Any]:
        """`ipu_state` and `ipu_param` of the optimizer's `state_dict`."""
        return {
            "ipu_state": {f"velocity___{name}": value.clone() for name, value in self.velocities.items()},
            "ipu_param": {"loss_scaling": self.attributes.loss_scaling},
        }

    def load(self, state: Dict[str, Any], weights: Dict[str, Tensor]) -> None:
        """Take over `state()`; RuntimeError for a velocity that belongs to no weight of that shape."""
        for key, value in state["ipu_state"].items():
            name = key.split("___", 1)[1]
            if name not in weights or weights[name].shape != value.shape:
                raise RuntimeError(f"The optimizer state {key} of shape {tuple(value.shape)} fits no parameter")
            self.velocities[name] = value.to(self.attributes.velocity_type).clone()
