"""RMSprop as the device computes it (rule 4.8).

With gradient g (which weight decay is added to), a mean square v and, if centred, a mean u,

    v = a*v + (1 - a)*g^2               u = a*u + (1 - a)*g
    x = g / (sqrt(v - u^2) + eps)

and with momentum m, b = m*b + x, w = w - lr*b, else w = w - lr*x. TensorFlow's variant has eps inside
the root, starts v at 1 and takes lr into b, so that it is that of the time the gradient came.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ipu_vit.emulator.buckets import Bucket
from ipu_vit.emulator.optim import Attributes, Kind
from ipu_vit.emulator.update.rule import Part, Rule


class RMSprop(Rule):
    """Gradients over the root of their mean square."""

    def __init__(self, bucket: Bucket, attributes: Attributes, accumulates: bool) -> None:
        super().__init__(bucket, attributes, accumulates)
        self._tf_variant = attributes.tf_variant
        self.state["Accl1"] = self._zeros(attributes.first_type)
        if self._tf_variant:
            self.state["Accl1"].fill_(1)
        if attributes.kind == Kind.RMSPROP_CENTERED:
            self.state["Accl2"] = self._zeros(attributes.second_type)
        if self.group["momentum"] or "momentum" not in self.group.constants:
            self.state["Accl3"] = self._zeros(torch.float32)

    def clippable(self, part: Part) -> Tensor:
        if self.group["weight_decay"]:
            part.gradient.add_(part.weights, alpha=self.group["weight_decay"])
        return part.gradient

    def move(self, part: Part, clippable: Tensor, factor: float) -> None:
        step, lr = clippable.div_(self._root(part, clippable)), self.group["lr"]
        if "Accl3" in part.state:
            buffer = part.state["Accl3"].mul_(self.group["momentum"])
            step = part.keep(buffer.add_(step, alpha=lr if self._tf_variant else 1), "Accl3")
            lr = 1 if self._tf_variant else lr
        part.keep_weights(part.weights.float().sub_(step, alpha=lr))

    def _root(self, part: Part, gradient: Tensor) -> Tensor:
        alpha, eps = self.group["alpha"], self.group["eps"]
        square = part.state["Accl1"].float().mul_(alpha).addcmul_(gradient, gradient, value=1 - alpha)
        square = part.keep(square, "Accl1")
        if "Accl2" in part.state:
            mean = part.keep(part.state["Accl2"].float().lerp_(gradient, 1 - alpha), "Accl2")
            square = square.addcmul(mean, mean, value=-1)
        return (square + eps).sqrt_() if self._tf_variant else square.sqrt().add_(eps)
