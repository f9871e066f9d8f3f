"""Adam, AdamW and LAMB as the device computes them (rules 4.5 to 4.7).

With gradient g, weights w, moments m and v and the number t of this update,

    m = b1*m + (1 - b1)*g               v = b2*v + (1 - b2)*g^2
    x = m/(1 - b1^t) / (sqrt(v/(1 - b2^t)) + eps)

Adam adds wd*w to the gradient, AdamW and LAMB to x. Adam and AdamW move w by lr*x, LAMB by lr*x times
the ratio of the norms of w, bounded by max_weight_norm, and of x; 1 if either is 0. LAMB can leave out
the corrections by 1 - b^t. AdamW cannot: PopTorch passes bias_correction=False on, but the device's
optimizer for it is the same (rule 4.6).
"""

from __future__ import annotations

from typing import Tuple

import torch
from torch import Tensor

from ipu_vit.emulator.buckets import Bucket
from ipu_vit.emulator.optim import Attributes, Kind
from ipu_vit.emulator.update.rule import Part, Rule


class Adam(Rule):
    """Adam and, with decoupled decay, AdamW."""

    def __init__(self, bucket: Bucket, attributes: Attributes, accumulates: bool) -> None:
        super().__init__(bucket, attributes, accumulates)
        self._decays_gradient = attributes.kind == Kind.ADAM
        self._corrects_bias = attributes.kind != Kind.LAMB_NO_BIAS
        self.state["Accl1"] = self._zeros(attributes.first_type)
        self.state["Accl2"] = self._zeros(attributes.second_type)
        if self._corrects_bias:
            self.state["Step"] = torch.zeros(())  # float32, as on the device

    def begin(self) -> None:
        if self._corrects_bias:
            self.state["Step"] += 1

    def clippable(self, part: Part) -> Tensor:
        if self._decays_gradient and self.group["weight_decay"]:
            part.gradient.add_(part.weights, alpha=self.group["weight_decay"])
        return part.gradient

    def move(self, part: Part, clippable: Tensor, factor: float) -> None:
        mean, root, first, root_of_second = self._moments(part, clippable, factor)
        weights = part.weights.float()
        if not self._decays_gradient:
            weights.mul_(1 - self.group["lr"] * self.group["weight_decay"])
        part.keep_weights(weights.addcdiv_(mean, root, value=-self.group["lr"] * root_of_second / first))

    def _moments(self, part: Part, gradient: Tensor, factor: float) -> Tuple[Tensor, Tensor, float, float]:
        """Update the moments. Then x is the first tensor by the second, times the second number by the first."""
        beta, gamma = self.group["betas"]
        if factor != 1:
            gradient.mul_(factor)
        mean = part.keep(part.state["Accl1"].float().lerp_(gradient, 1 - beta), "Accl1")
        square = part.state["Accl2"].float().mul_(gamma).addcmul_(gradient, gradient, value=1 - gamma)
        square = part.keep(square, "Accl2")
        first, second = 1.0, 1.0
        if self._corrects_bias:
            step = float(self.state["Step"])
            first, second = 1 - beta**step, (1 - gamma**step) ** 0.5
        # sqrt(v / c^2) + eps = (sqrt(v) + c*eps) / c saves a pass.
        return mean, square.sqrt().add_(second * self.group["eps"]), first, second


class LAMB(Adam):
    """Adam whose steps are as long as the weight they are for, times the learning rate."""

    by_weight = True

    def move(self, part: Part, clippable: Tensor, factor: float) -> None:
        mean, root, first, root_of_second = self._moments(part, clippable, factor)
        weights = part.weights.float()
        step = (mean / root).mul_(root_of_second / first).add_(weights, alpha=self.group["weight_decay"])
        length = min(float(torch.linalg.vector_norm(weights)), self.group["max_weight_norm"])
        step_length = float(torch.linalg.vector_norm(step))
        trust = length / step_length if length and step_length else 1.0
        part.keep_weights(weights.sub_(step, alpha=self.group["lr"] * trust))
