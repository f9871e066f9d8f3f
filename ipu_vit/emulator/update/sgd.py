"""Stochastic gradient descent as the device computes it (rules 4.3, 4.4, 4.9).

With gradient g, weights w, velocity v, momentum mm, dampening dm and weight decay wd,

    v = mm*v + (1 - dm)*(g + wd*w)
    w = w - lr*v                        or, with nesterov, w - lr*(g + wd*w + mm*v)

where v starts at 0. Without momentum there is no velocity to keep. The separate variant keeps it next
to the accumulator, multiplied by vs, which is the loss scale. The combined variant has one tensor for
both: gradients are added to the velocity as they come, so mm*v + (1 - dm)*wd*w must be there before
them. It is computed at the end of the update before, with the numbers of that update: a changed
momentum, dampening or weight decay therefore meets the velocity one update late, a changed learning
rate at once. The first time it is computed at compilation, from v = 0.
"""

from __future__ import annotations

from torch import Tensor

from ipu_vit.emulator.buckets import Bucket
from ipu_vit.emulator.optim import Attributes, Group, Kind
from ipu_vit.emulator.update.accumulators import Accumulation
from ipu_vit.emulator.update.rule import Part, Rule


class PlainSGD(Rule):
    """No momentum, hence no state."""

    def __init__(self, bucket: Bucket, attributes: Attributes, accumulates: bool) -> None:
        super().__init__(bucket, attributes, accumulates)
        if attributes.kind == Kind.SGD_COMBINED:
            self._accumulator_type = bucket.flat.dtype  # accum_type is for the separate variant

    def clip_scale(self, loss_scale: float) -> float:
        return float(self.group["velocity_scaling"]) if self._accumulates else loss_scale

    def clippable(self, part: Part) -> Tensor:
        """The gradient; with accumulation what would be the velocity."""
        if not self._accumulates:
            return part.gradient
        undamped = 1 - self.group["dampening"]
        return part.gradient.mul_(undamped).add_(part.weights, alpha=undamped * self.group["weight_decay"])

    def move(self, part: Part, clippable: Tensor, factor: float) -> None:
        lr = self.group["lr"]
        weights = part.weights.float()
        if not self._accumulates:
            lr *= 1 - self.group["dampening"]
            weights.mul_(1 - lr * self.group["weight_decay"])
        part.keep_weights(weights.sub_(clippable, alpha=lr * factor))


class SeparateSGD(Rule):
    """Momentum, in a tensor of its own type."""

    def __init__(self, bucket: Bucket, attributes: Attributes, accumulates: bool) -> None:
        super().__init__(bucket, attributes, accumulates)
        self._nesterov = bool(self.group["nesterov"])  # cannot change: it is another program
        self.state["Accl1"] = self._zeros(attributes.first_type)

    def absorb(self, part: Part) -> None:
        group, velocity = self.group, part.state["Accl1"].float()
        share = (1 - group["dampening"]) * group["velocity_scaling"]
        velocity.mul_(group["momentum"]).add_(part.weights, alpha=share * group["weight_decay"])
        part.keep(velocity.add_(part.gradient, alpha=share), "Accl1")

    def clippable(self, part: Part) -> Tensor:
        velocity = part.state["Accl1"].float()
        return _nesterov(part.gradient, part.weights, velocity, self.group) if self._nesterov else velocity

    def move(self, part: Part, clippable: Tensor, factor: float) -> None:
        step = self.group["lr"] * factor / self.group["velocity_scaling"]
        part.keep_weights(part.weights.float().sub_(clippable, alpha=step))


class CombinedSGD(Rule):
    """Momentum, in the tensor that gradients are accumulated in."""

    accumulates_velocity = True

    def __init__(self, bucket: Bucket, attributes: Attributes, accumulates: bool) -> None:
        super().__init__(bucket, attributes, accumulates)
        self._nesterov = bool(self.group["nesterov"])
        self.state["Accl"] = (bucket.flat.detach().float() * self._decay()).to(bucket.flat.dtype)

    def accumulation(self, running: bool, divisor: float) -> Accumulation:
        share = (1 - self.group["dampening"]) * self.group["velocity_scaling"]
        return Accumulation(self.bucket, self.bucket.flat.dtype, start=self.state["Accl"], factor=share / divisor)

    def clippable(self, part: Part) -> Tensor:
        """The velocity that has come in the gradient's place."""
        if not self._nesterov:
            return part.gradient
        # Nesterov excludes dampening, so what was added to the velocity is the gradient times vs.
        gradient = (part.gradient - part.state["Accl"]).div_(self.group["velocity_scaling"])
        return _nesterov(gradient, part.weights, part.gradient, self.group)

    def move(self, part: Part, clippable: Tensor, factor: float) -> None:
        step = self.group["lr"] * factor / self.group["velocity_scaling"]
        weights = part.keep_weights(part.weights.float().sub_(clippable, alpha=step))
        part.keep(part.gradient.mul_(self.group["momentum"]).add_(weights, alpha=self._decay()), "Accl")

    def _decay(self) -> float:
        group = self.group
        return float((1 - group["dampening"]) * group["velocity_scaling"] * group["weight_decay"])


def _nesterov(gradient: Tensor, weights: Tensor, velocity: Tensor, group: Group) -> Tensor:
    """What nesterov moves the weights by, times vs as the velocity is; written over the gradient."""
    scale = group["velocity_scaling"]
    gradient.mul_(scale).add_(weights, alpha=scale * group["weight_decay"])
    return gradient.add_(velocity, alpha=group["momentum"])
