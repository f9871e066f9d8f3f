"""Training on the emulator against plain PyTorch on the whole batch at once."""

from __future__ import annotations

from typing import Any

import poptorch
import pytest
import torch
import torch.nn.functional as F
from emulator_models import Layers, data, largest_difference, options, plain_twin
from hypothesis import given, settings
from hypothesis import strategies as st

HYPERPARAMETERS = {"lr": 0.3, "momentum": 0.9, "weight_decay": 0.01}


def train_plainly(model: torch.nn.Module, updates: int, x: torch.Tensor, y: torch.Tensor, **hyper: Any) -> None:
    optimizer = torch.optim.SGD(model.parameters(), **{**HYPERPARAMETERS, **hyper})
    for images, labels in zip(x.double().chunk(updates), y.chunk(updates)):
        optimizer.zero_grad()
        F.cross_entropy(model.logits(images), labels).backward()  # type: ignore[operator]
        optimizer.step()


@settings(max_examples=40)
@given(
    ipus=st.sampled_from([1, 2, 4]),
    replicas=st.sampled_from([1, 2, 4]),
    accumulation=st.integers(7, 9),
    micro_batch=st.integers(1, 5),
    iterations=st.integers(1, 3),
    loss_scaling=st.sampled_from([1.0, 128.0]),
    nesterov=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_updates_equal_those_of_plain_pytorch(
    ipus: int,
    replicas: int,
    accumulation: int,
    micro_batch: int,
    iterations: int,
    loss_scaling: float,
    nesterov: bool,
    seed: int,
) -> None:
    model = Layers(ipus, seed)
    twin = plain_twin(model)
    optimizer = poptorch.optim.SGD(model.parameters(), **HYPERPARAMETERS, nesterov=nesterov, loss_scaling=loss_scaling)
    executor = poptorch.trainingModel(
        model, options(accumulation=accumulation, replicas=replicas, iterations=iterations), optimizer
    )
    x, y = data(2 * iterations * replicas * accumulation * micro_batch, seed)
    for images, labels in zip(x.chunk(2), y.chunk(2)):
        logits, losses = executor(images, labels)
        assert logits.shape == (len(images), 3)
        assert losses.shape == (iterations * replicas * accumulation,)
    executor.copyWeightsToHost()
    train_plainly(twin, 2 * iterations, x, y, nesterov=nesterov)
    assert largest_difference(model, twin) < 2e-6


def test_learning_rate_of_set_optimizer_counts_from_the_next_call() -> None:
    model = Layers()
    twin = plain_twin(model)
    optimizer = poptorch.optim.SGD(model.parameters(), lr=0.1)
    executor = poptorch.trainingModel(model, options(), optimizer)
    x, y = data(8)
    plain = torch.optim.SGD(twin.parameters(), lr=0.1)
    for images, labels, lr in zip(x.chunk(4), y.chunk(4), (0.1, 0.5, 0.0, 0.2)):
        optimizer.param_groups[0]["lr"] = lr
        executor.setOptimizer(optimizer)
        executor(images, labels)
        plain.param_groups[0]["lr"] = lr
        plain.zero_grad()
        F.cross_entropy(twin.logits(images.double()), labels).backward()  # type: ignore[operator]
        plain.step()
    executor.copyWeightsToHost()
    assert largest_difference(model, twin) < 1e-6


def test_groups_have_their_own_weight_decay() -> None:
    model = Layers()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    decaying, others = list(model.layers[0].parameters()), list(model.layers[1:].parameters())
    optimizer = poptorch.optim.SGD(
        [{"params": decaying, "weight_decay": 0.5}, {"params": others, "weight_decay": 0.0}], lr=1.0, weight_decay=0.0
    )

    class NoGradient(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
            return poptorch.identity_loss(F.cross_entropy(self.inner.logits(x) * 0.0, y), "none")

    executor = poptorch.trainingModel(NoGradient(), options(), optimizer)
    executor(*data(4))
    executor.copyWeightsToHost()
    for name, value in model.state_dict().items():
        expected = before[name] * (0.5 if name.startswith("layers.0") else 1.0)
        torch.testing.assert_close(value, expected)


def test_constant_attributes_cannot_change() -> None:
    model = Layers()
    optimizer = poptorch.optim.SGD(model.parameters(), lr=0.1)
    executor = poptorch.trainingModel(model, options(), optimizer)
    executor(*data(4))
    optimizer.param_groups[0]["weight_decay"] = 0.1
    with pytest.raises(poptorch.Error, match="weight_decay"):
        executor.setOptimizer(optimizer)


def test_optimizer_state_travels_to_another_executor() -> None:
    x, y = data(12)
    whole, first = Layers(), Layers()

    def wrapped(model: Layers) -> Any:
        optimizer = poptorch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, loss_scaling=8.0)
        return poptorch.trainingModel(model, options(), optimizer), optimizer

    executor, _ = wrapped(whole)
    for images, labels in zip(x.chunk(6), y.chunk(6)):
        executor(images, labels)
    executor.copyWeightsToHost()

    executor, optimizer = wrapped(first)
    for images, labels in zip(x.chunk(6)[:3], y.chunk(6)[:3]):
        executor(images, labels)
    state, weights = optimizer.state_dict(), first.state_dict()
    second = Layers(seed=9)
    second.load_state_dict(weights)
    executor, optimizer = wrapped(second)
    optimizer.load_state_dict(state)
    for images, labels in zip(x.chunk(6)[3:], y.chunk(6)[3:]):
        executor(images, labels)
    executor.copyWeightsToHost()
    for name, value in whole.state_dict().items():
        assert torch.equal(second.state_dict()[name], value)


def test_only_a_poptorch_state_loads() -> None:
    model = Layers()
    with pytest.raises(RuntimeError, match="PopTorch"):
        poptorch.optim.SGD(model.parameters(), lr=0.1).load_state_dict(
            torch.optim.SGD(model.parameters(), lr=0.1).state_dict()
        )
