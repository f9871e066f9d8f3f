"""Small models and a plain-PyTorch twin, for comparing the emulator with."""

from __future__ import annotations

import copy
from typing import Any, Callable, Tuple

import poptorch
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Layers(nn.Module):
    """Four perceptron layers with a GELU, one on each of `ipus` IPUs, ending in a loss."""

    def __init__(self, ipus: int = 1, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        sizes = [(6, 8), (8, 8), (8, 8), (8, 3)]
        self.layers = nn.ModuleList(nn.Linear(*size) for size in sizes)
        if ipus > 1:
            for position, layer in enumerate(self.layers):
                if position % (4 // ipus) == 0:
                    poptorch.BeginBlock(layer, f"layer {position}", position // (4 // ipus))

    def logits(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.gelu(layer(x), approximate="tanh")
        out: Tensor = self.layers[-1](x)
        return out

    def forward(self, x: Tensor, y: Tensor) -> Tuple[Tensor, Tensor]:
        logits = self.logits(x)
        return logits, poptorch.identity_loss(F.cross_entropy(logits.float(), y), "none")


def options(*, accumulation: int = 1, replicas: int = 1, iterations: int = 1, seed: int = 0) -> Any:
    result = poptorch.Options()
    result.Training.gradientAccumulation(accumulation)
    result.replicationFactor(replicas)
    result.deviceIterations(iterations)
    result.outputMode(poptorch.OutputMode.All)
    result.randomSeed(seed)
    return result


def training(model: nn.Module, opts: Any = None, lr: float = 0.1) -> Any:
    """An executor that trains with plain SGD."""
    return poptorch.trainingModel(model, opts or options(), poptorch.optim.SGD(model.parameters(), lr=lr))


def inference(forward: Callable[..., Any], opts: Any = None) -> Any:
    """An executor of a model whose forward is a function, with the function's own parameters."""
    model = nn.Module()
    model.forward = forward
    return poptorch.inferenceModel(model, opts)


def data(count: int, seed: int = 1) -> Tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 6, generator=generator), torch.randint(0, 3, (count,), generator=generator)


def plain_twin(model: nn.Module) -> nn.Module:
    """A copy in float64 that plain PyTorch trains."""
    twin = copy.deepcopy(model)
    poptorch.removeBlocks(twin)
    return twin.double()


def largest_difference(model: nn.Module, twin: nn.Module) -> float:
    """The largest difference of two models' weights, relative to the largest weight of each tensor."""
    ours, theirs = model.state_dict(), twin.state_dict()
    return max(
        float((ours[name].double() - theirs[name].double()).abs().max() / theirs[name].double().abs().max())
        for name in theirs
    )
