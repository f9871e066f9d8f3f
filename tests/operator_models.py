"""Running a function as a model on the emulated device."""

from __future__ import annotations

from typing import Any, Callable

import poptorch
import torch
from torch import Tensor, nn


class Calls(nn.Module):
    """A model whose forward is a function of the inputs, or of the weight and the inputs if there is one."""

    def __init__(self, function: Callable[..., Any], weight: Any = None) -> None:
        super().__init__()
        self.function = function
        self.weight = None if weight is None else nn.Parameter(weight.clone())

    def forward(self, *inputs: Any) -> Any:
        return self.function(*inputs) if self.weight is None else self.function(self.weight, *inputs)


def options(micro_batches: int) -> Any:
    result = poptorch.Options()
    result.deviceIterations(micro_batches)
    return result


def infer(function: Callable[..., Any], *inputs: Any, micro_batches: int = 1) -> Any:
    """What the device computes of these inputs, cut into micro batches."""
    return poptorch.inferenceModel(Calls(function), options(micro_batches))(*inputs)


def gradient(function: Callable[..., Tensor], weight: Tensor, *inputs: Any) -> Tensor:
    """The gradient of the sum of a function's values by its first argument, as the device computes it."""
    model = Calls(lambda *given: poptorch.identity_loss(function(*given), "sum"), weight)
    # One step with a learning rate of 1 takes the gradient off the weight.
    trainer = poptorch.trainingModel(model, optimizer=torch.optim.SGD(model.parameters(), lr=1.0))
    trainer(*inputs)
    trainer.copyWeightsToHost()
    assert model.weight is not None
    return weight - model.weight.detach()
