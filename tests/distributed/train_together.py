"""A PopTorch program of several processes, as for IPUs but for nothing: run by `python -m ipu_vit.emulator`.

    train_together.py FOLDER REPLICAS

Trains a perceptron on generated images in several ways; process 0 writes the weights, and all compare theirs.
"""

from __future__ import annotations

import sys
from typing import Any, Dict

import poptorch
import torch
from torch import nn

BATCH, ACCUMULATION, UPDATES, TOTAL = 2, 2, 10, 3


class Model(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 3))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        logits = self.layers(x)
        return logits, nn.functional.cross_entropy(logits, y)


def examples(processes: int = 1) -> torch.utils.data.TensorDataset:
    """All updates' images, in parts for the processes: whatever their number, each update has the same ones."""
    generator = torch.Generator().manual_seed(7)
    shape = (UPDATES, ACCUMULATION, processes, TOTAL // processes * BATCH)
    numbers = torch.arange(UPDATES * ACCUMULATION * TOTAL * BATCH).view(shape).permute(2, 0, 1, 3).flatten()
    x, y = torch.randn(len(numbers), 6, generator=generator), torch.randint(0, 3, numbers.shape, generator=generator)
    return torch.utils.data.TensorDataset(x[numbers], y[numbers])


def optimizer_of(name: str, model: nn.Module) -> Any:
    if name == "adamw":
        return poptorch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1, max_grad_norm=0.3)
    return poptorch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, use_combined_accum=name == "combined")


def train(name: str, replicas: int, reduction: Any = poptorch.ReductionType.Mean) -> Dict[str, Any]:
    import horovod.torch as hvd  # not there for whoever only imports the model

    options = poptorch.Options()
    options.Distributed.configureProcessId(hvd.rank(), hvd.size())
    options.replicationFactor(replicas)
    options.autoRoundNumIPUs(True)
    options.Training.gradientAccumulation(ACCUMULATION)
    options.Training.accumulationAndReplicationReductionType(reduction)
    if name != "halves":  # they have no seed, on which the processes then have to agree
        options.randomSeed(5)
    model = Model(0.5 if name in ("dropout", "halves") else 0.0)
    if name == "halves":
        options.Precision.enableStochasticRounding(True)
        options.Training.setAutomaticLossScaling(True)
        model = model.half()
    executor = poptorch.trainingModel(model, options, optimizer_of(name, model))
    for x, y in poptorch.DataLoader(options, examples(hvd.size()), batch_size=BATCH):
        executor(x.half() if name == "halves" else x, y)
    executor.copyWeightsToHost()
    return {key: tensor.detach().clone() for key, tensor in model.state_dict().items()}


if __name__ == "__main__":
    import horovod.torch as hvd

    hvd.init()
    folder, replicas = sys.argv[1], int(sys.argv[2])
    found = {name: train(name, replicas) for name in ("sgd", "combined", "adamw", "dropout", "halves")}
    found["sum"] = train("sgd", replicas, poptorch.ReductionType.Sum)
    for name, weights in found.items():
        for key, tensor in weights.items():
            everybody = hvd.allgather(tensor.reshape(1, -1), name=f"{name} {key}")
            assert all(torch.equal(one, everybody[0]) for one in everybody), (name, key)
    if hvd.rank() == 0:
        torch.save(found, f"{folder}/{hvd.size()}.pt")
