"""Any optimizer, any reduction, any small model: weights are those of the formulas in float64."""

from __future__ import annotations

import copy
from typing import Any, Dict, List

import poptorch
import torch
import torch.nn.functional as F
from emulator_models import options
from hypothesis import given, settings
from hypothesis import strategies as st
from optimizer_references import (
    REFERENCES,
    Reference,
    Training,
    making,
    random_gradients,
    random_weights,
    referred,
    relative,
)
from torch import Tensor, nn

decays = st.sampled_from([0.0, 0.01, 0.3])
betas = st.tuples(st.sampled_from([0.0, 0.5, 0.9]), st.sampled_from([0.5, 0.9, 0.999]))
momenta = st.sampled_from([0.0, 0.5, 0.9])


def numbers(eps: Any) -> Dict[str, Any]:
    """What each optimizer may be given beside the learning rate."""
    plain = st.fixed_dictionaries(
        {},
        optional={
            "momentum": momenta,
            "dampening": st.sampled_from([0.0, 0.25]),
            "weight_decay": decays,
            "use_combined_accum": st.booleans(),
        },
    )
    nesterov = st.fixed_dictionaries(
        {"momentum": st.sampled_from([0.5, 0.9]), "nesterov": st.just(True)},
        optional={"weight_decay": decays, "use_combined_accum": st.booleans()},
    )
    adam = {"betas": betas, "weight_decay": decays}
    rmsprop = {"alpha": st.sampled_from([0.5, 0.9]), "weight_decay": decays, "momentum": momenta,
               "centered": st.booleans(), "use_tf_variant": st.booleans()}  # fmt: skip
    return {
        "SGD": plain | nesterov,
        "Adam": st.fixed_dictionaries({"eps": eps}, optional=adam),
        "AdamW": st.fixed_dictionaries({"eps": eps}, optional=adam),
        "LAMB": st.fixed_dictionaries(
            {"eps": eps},
            optional={**adam, "bias_correction": st.booleans(), "max_weight_norm": st.sampled_from([0.5, 10.0])},
        ),
        "RMSprop": st.fixed_dictionaries({"eps": eps}, optional=rmsprop),
    }


def optimizers(eps: Any) -> Any:
    """Names of optimizers with what to give them."""
    return st.one_of([st.tuples(st.just(name), values) for name, values in numbers(eps).items()])


class Setting:
    """How gradients are reduced."""

    def __init__(self, accumulation: int, replicas: int, mean: bool, running: bool, iterations: int) -> None:
        self.count = accumulation * replicas
        self.mean = mean
        self.iterations = iterations
        self.options = options(accumulation=accumulation, replicas=replicas, iterations=iterations)
        training = self.options.Training
        if not mean:
            training.accumulationAndReplicationReductionType(poptorch.ReductionType.Sum)
        if running:
            training.setMeanAccumulationAndReplicationReductionStrategy(poptorch.MeanReductionStrategy.Running)


ways = st.builds(
    Setting,
    accumulation=st.integers(1, 4),
    replicas=st.sampled_from([1, 2, 4]),
    mean=st.booleans(),
    running=st.booleans(),
    iterations=st.integers(1, 2),
)


def reference_of(name: str, weights: List[Any], values: Dict[str, Any]) -> Reference:
    """Types and variants that change no number are left out."""
    known = {key: value for key, value in values.items() if key != "use_combined_accum"}
    return REFERENCES[name](weights, **known)


@settings(max_examples=250)
@given(
    optimizer=optimizers(st.sampled_from([1e-8, 1e-3])),
    setting=ways,
    lr=st.floats(1e-4, 0.1),
    calls=st.integers(1, 3),
    loss_scaling=st.sampled_from([None, 1.0, 1024.0]),
    shapes=st.lists(st.lists(st.integers(1, 4), max_size=3).map(tuple), min_size=1, max_size=3),
    seed=st.integers(0, 1000),
)
def test_given_gradients(
    optimizer: Any, setting: Any, lr: float, calls: int, loss_scaling: Any, shapes: Any, seed: int
) -> None:
    """Gradients are the inputs, so that only the update's own rounding is left."""
    name, values = optimizer
    weights = random_weights(seed, shapes)
    gradients = random_gradients(calls * setting.iterations * setting.count, weights, seed + 1)

    make = making(name, lr=lr, loss_scaling=loss_scaling, **values)
    found = Training(weights, make, setting.options).updates(calls, gradients).weights
    reference = reference_of(name, weights, {"lr": lr, **values})
    expected = referred(reference, calls * setting.iterations, gradients, setting.mean)
    assert relative(found, expected, before=weights) < 2e-6


class Perceptron(nn.Module):
    """A perceptron with a squared error."""

    def __init__(self, sizes: List[int], seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:]))

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = torch.tanh(layer(x))
        return F.mse_loss(self.layers[-1](x), y)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        loss: Tensor = poptorch.identity_loss(self.loss(x, y), "none")
        return loss


@settings(max_examples=150)
@given(
    optimizer=optimizers(st.sampled_from([0.05, 0.2])),  # small ones make much of float32's rounding in backward
    setting=ways,
    lr=st.floats(1e-4, 0.02),
    rate_of_second_group=st.sampled_from([None, 0.005]),
    sizes=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    micro_batch=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_small_models(
    optimizer: Any, setting: Any, lr: float, rate_of_second_group: Any, sizes: Any, micro_batch: int, seed: int
) -> None:
    """Forward and backward too, on a twin in float64; weights and biases may be groups of their own."""
    name, values = optimizer
    lr = lr if setting.mean else lr / setting.count
    model = Perceptron(sizes, seed)
    twin = copy.deepcopy(model).double()
    groups = [[p for p in twin.parameters() if p.dim() == 2], [p for p in twin.parameters() if p.dim() == 1]]
    rates = [lr, lr if rate_of_second_group is None else rate_of_second_group]
    references = [
        reference_of(name, [p.detach().numpy() for p in group], {"lr": rate, **values})
        for group, rate in zip(groups, rates)
    ]
    before = [p.detach().numpy().copy() for p in model.parameters()]

    params: Any = [{"params": [p for p in model.parameters() if p.dim() == dims], "lr": rate}
                   for dims, rate in zip((2, 1), rates)]  # fmt: skip
    ours = getattr(poptorch.optim, name)(params, lr=lr, **values)
    executor = poptorch.trainingModel(model, setting.options, ours)
    generator = torch.Generator().manual_seed(seed)
    rows = 2 * setting.iterations * setting.count * micro_batch
    x, y = torch.randn(rows, sizes[0], generator=generator), torch.randn(rows, sizes[-1], generator=generator)
    for inputs, targets in zip(x.chunk(2), y.chunk(2)):
        executor(inputs, targets)
    executor.copyWeightsToHost()

    updates = 2 * setting.iterations
    for inputs, targets in zip(x.double().chunk(updates), y.double().chunk(updates)):
        twin.zero_grad()
        # The micro batches are equally long, so that the mean of their losses is the loss of all rows.
        (twin.loss(inputs, targets) * (1 if setting.mean else setting.count)).backward()
        for group, reference in zip(groups, references):
            reference.update([p.grad.numpy() for p in group])  # type: ignore[union-attr]
            with torch.no_grad():
                for parameter, weight in zip(group, reference.weights):
                    parameter.copy_(torch.as_tensor(weight))
    found, expected = ([p.detach().numpy() for p in each.parameters()] for each in (model, twin))
    assert relative(found, expected, before) < 2e-6
