"""Optimizers written down in float64 numpy, and a model whose gradients are its inputs.

The references follow the formulas of sections 3 and 4 of the rules literally, weight by weight, without
anything that makes the emulator fast: no buckets, no parts, nothing in place.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
import poptorch
import torch
from torch import Tensor, nn

Arrays = List[Any]


class Reference:
    """The weights of one group of parameters, moved by `update`."""

    def __init__(self, weights: Sequence[Any], **values: Any) -> None:
        self.weights: Arrays = [np.asarray(weight, dtype=np.float64) for weight in weights]
        self.values: Dict[str, Any] = {"lr": 0.01, "weight_decay": 0.0, **values}

    def __getattr__(self, name: str) -> Any:
        return self.values[name]

    def zeros(self) -> Arrays:
        return [np.zeros_like(weight) for weight in self.weights]

    def update(self, gradients: Sequence[Any]) -> None:
        raise NotImplementedError


class ReferenceSGD(Reference):
    """Rule 4.3; the velocity always exists and starts at 0."""

    def __init__(self, weights: Sequence[Any], **values: Any) -> None:
        defaults = {"momentum": 0.0, "dampening": 0.0, "nesterov": False}
        super().__init__(weights, **{**defaults, **values})
        self.velocities = self.zeros()

    def update(self, gradients: Sequence[Any]) -> None:
        for i, grad in enumerate(gradients):
            g = grad + self.weight_decay * self.weights[i]
            self.velocities[i] = self.momentum * self.velocities[i] + (1 - self.dampening) * g
            step = g + self.momentum * self.velocities[i] if self.nesterov else self.velocities[i]
            self.weights[i] = self.weights[i] - self.lr * step


class ReferenceAdam(Reference):
    """Rule 4.5: `decoupled` is AdamW's decay."""

    decoupled = False

    def __init__(self, weights: Sequence[Any], **values: Any) -> None:
        defaults = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "bias_correction": True}
        super().__init__(weights, **{**defaults, **values})
        self.m, self.v, self.t = self.zeros(), self.zeros(), 0

    def update(self, gradients: Sequence[Any]) -> None:
        self.t += 1
        for i, grad in enumerate(gradients):
            self.move(i, self.direction(i, grad))

    def direction(self, i: int, grad: Any) -> Any:
        b1, b2 = self.betas
        g = grad if self.decoupled else grad + self.weight_decay * self.weights[i]
        self.m[i] = b1 * self.m[i] + (1 - b1) * g
        self.v[i] = b2 * self.v[i] + (1 - b2) * g**2
        m, v = self.m[i], self.v[i]
        if self.bias_correction:
            m, v = m / (1 - b1**self.t), v / (1 - b2**self.t)
        x = m / (np.sqrt(v) + self.eps)
        return x + self.weight_decay * self.weights[i] if self.decoupled else x

    def move(self, i: int, x: Any) -> None:
        self.weights[i] = self.weights[i] - self.lr * x


class ReferenceAdamW(ReferenceAdam):
    decoupled = True

    def __init__(self, weights: Sequence[Any], **values: Any) -> None:
        super().__init__(weights, **{"weight_decay": 1e-2, **values})


class ReferenceLAMB(ReferenceAdamW):
    """Rule 4.7."""

    def __init__(self, weights: Sequence[Any], **values: Any) -> None:
        super().__init__(weights, **{"max_weight_norm": 65500.0, **values})

    def move(self, i: int, x: Any) -> None:
        length = min(np.sqrt((self.weights[i] ** 2).sum()), self.max_weight_norm)
        step_length = np.sqrt((x**2).sum())
        ratio = 1.0 if length == 0 or step_length == 0 else length / step_length
        self.weights[i] = self.weights[i] - self.lr * ratio * x


class ReferenceRMSprop(Reference):
    """Rule 4.8."""

    def __init__(self, weights: Sequence[Any], **values: Any) -> None:
        defaults = {"alpha": 0.99, "eps": 1e-8, "momentum": 0.0, "centered": False, "use_tf_variant": False}
        super().__init__(weights, **{**defaults, **values})
        self.squares = [np.ones_like(w) if self.use_tf_variant else np.zeros_like(w) for w in self.weights]
        self.means, self.buffers = self.zeros(), self.zeros()

    def update(self, gradients: Sequence[Any]) -> None:
        a = self.alpha
        for i, grad in enumerate(gradients):
            g = grad + self.weight_decay * self.weights[i]
            self.squares[i] = a * self.squares[i] + (1 - a) * g**2
            self.means[i] = a * self.means[i] + (1 - a) * g
            v = self.squares[i] - self.means[i] ** 2 if self.centered else self.squares[i]
            x = g / np.sqrt(v + self.eps) if self.use_tf_variant else g / (np.sqrt(v) + self.eps)
            if self.use_tf_variant:
                self.buffers[i] = self.momentum * self.buffers[i] + self.lr * x
                self.weights[i] = self.weights[i] - self.buffers[i]
            else:
                self.buffers[i] = self.momentum * self.buffers[i] + x
                self.weights[i] = self.weights[i] - self.lr * self.buffers[i]


REFERENCES = {
    "SGD": ReferenceSGD,
    "Adam": ReferenceAdam,
    "AdamW": ReferenceAdamW,
    "RMSprop": ReferenceRMSprop,
    "LAMB": ReferenceLAMB,
}


CLASSES = list(REFERENCES)


# --- a model whose gradients are its inputs ----------------------------------------------------------


class Given(nn.Module):
    """Weights whose gradients are the sums of the inputs' rows: the loss is the sum of their products."""

    def __init__(self, *weights: Any, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weights = nn.ParameterList(
            nn.Parameter(torch.as_tensor(np.asarray(weight)).to(dtype).clone()) for weight in weights
        )

    def forward(self, *gradients: Tensor) -> Tensor:
        products = [(weight * gradient.to(weight.dtype)).sum() for weight, gradient in zip(self.weights, gradients)]
        total = sum(products[1:], products[0])
        loss: Tensor = poptorch.identity_loss(total, "none")
        return loss


def random_weights(seed: int = 0, shapes: Sequence[Tuple[int, ...]] = ((5, 3), (4,))) -> Arrays:
    generator = np.random.default_rng(seed)
    return [generator.normal(size=shape) for shape in shapes]


def random_gradients(count: int, weights: Sequence[Any], seed: int = 1, scale: float = 1.0) -> Arrays:
    """`count` micro batches' gradients for each weight, stacked."""
    generator = np.random.default_rng(seed)
    return [generator.normal(size=(count, *np.shape(weight))) * scale for weight in weights]


class Training:
    """A `Given` model on the emulator."""

    def __init__(self, weights: Sequence[Any], optimizer: Any, opts: Optional[Any] = None, **how: Any) -> None:
        """`optimizer` makes one from the model's parameters."""
        self.model = Given(*weights, **how)
        self.optimizer = optimizer(self.model.parameters())
        self.executor: Any = poptorch.trainingModel(self.model, opts, self.optimizer)

    def run(self, gradients: Sequence[Any]) -> Any:
        """One call; what it returns."""
        return self.executor(*(torch.as_tensor(np.asarray(gradient), dtype=torch.float32) for gradient in gradients))

    def updates(self, count: int, gradients: Sequence[Any]) -> Training:
        """That many calls, each with its share of the micro batches' gradients."""
        for shares in zip(*(np.split(gradient, count) for gradient in gradients)):
            self.run(shares)
        return self

    @property
    def weights(self) -> Arrays:
        self.executor.copyWeightsToHost()
        return [weight.detach().numpy().copy() for weight in self.model.weights]

    @property
    def state(self) -> Dict[str, Any]:
        return {name: tensor.numpy() for name, tensor in self.optimizer.state_dict()["ipu_state"].items()}


def referred(reference: Reference, updates: int, gradients: Sequence[Any], mean: bool = True) -> Arrays:
    """The reference's weights after its own updates with the same gradients."""
    for shares in zip(*(np.split(gradient, updates) for gradient in gradients)):
        reference.update([share.mean(0) if mean else share.sum(0) for share in shares])
    return reference.weights


def relative(found: Sequence[Any], expected: Sequence[Any], before: Optional[Sequence[Any]] = None) -> float:
    """The largest difference, relative to the largest number of each array, expected or before.

    Rounding errors are relative to what weights have been on their way, should they end near 0.
    """
    return max(
        float(np.abs(a - b).max() / np.maximum(np.abs(b).max(), np.abs(c).max()))
        for a, b, c in zip(found, expected, expected if before is None else before)
    )


def making(name: str, module: Any = poptorch.optim, **values: Any) -> Callable[[Any], Any]:
    """Something that makes an optimizer of parameters."""
    return lambda params: getattr(module, name)(params, **{"lr": 0.01, **values})


def sgd(**values: Any) -> Callable[[Any], Any]:
    return making("SGD", **values)
