"""`poptorch.CPU`: Python of the host in the middle of a model."""

from __future__ import annotations

import pickle
from typing import Any, List

import numpy as np
import poptorch
import pytest
import torch
from operator_models import Calls, gradient, infer
from torch import Tensor, nn


class Model(nn.Module):
    """Two layers, of which the host computes the second."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.second = nn.Linear(4, 2)
        self.on_cpu = poptorch.CPU(self.second, "second")

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.on_cpu(self.first(x))
        return result


def test_host_sees_real_values_at_every_micro_batch() -> None:
    seen: List[List[float]] = []

    def host(x: Tensor) -> Tensor:
        seen.append(x.flatten().tolist())
        return torch.from_numpy(np.sort(x.numpy())) if x.sum().item() > 0 else x

    operator = poptorch.CPU(host, "sort")
    x = torch.tensor([[3.0, 1.0, 2.0], [6.0, 5.0, 4.0]])
    found = infer(lambda x: operator(x * 2) + 1, x, micro_batches=2)
    assert torch.equal(found, torch.tensor([[3.0, 5.0, 7.0], [9.0, 11.0, 13.0]]))
    assert [values for values in seen if any(values)] == [[6.0, 2.0, 4.0], [12.0, 10.0, 8.0]]


def test_host_sees_zeros_while_the_model_is_traced() -> None:
    seen: List[List[float]] = []
    operator = poptorch.CPU(lambda x: seen.append(x.tolist()) or x, "note")
    poptorch.inferenceModel(Calls(lambda x: operator(x))).compile(torch.ones(2))
    assert all(values == [0.0, 0.0] for values in seen)


def test_host_operators_compute_what_pytorch_does() -> None:
    """Nothing of the device's reaches into them: here, its form of GELU."""
    operator = poptorch.CPU(nn.functional.gelu, "exact")
    x = torch.linspace(-3, 3, 8)
    assert torch.equal(infer(lambda x: operator(x) + 0, x), nn.functional.gelu(x))


def test_host_operators_may_be_called_again_with_other_shapes() -> None:
    operator = poptorch.CPU(lambda x, y: (x.flip(0) + y, y.long()), "two")

    def forward(x: Tensor) -> Any:
        first, whole = operator(x, x)
        second, _ = operator(first[:, :1], x[:, 1:])
        return first, second, whole

    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    first, second, whole = infer(forward, x)
    assert torch.equal(first, torch.tensor([[4.0, 6.0], [4.0, 6.0]]))
    assert torch.equal(second, torch.tensor([[6.0], [8.0]]))
    assert whole.dtype == torch.int32 and torch.equal(whole, x.int())


def test_host_operators_may_be_modules() -> None:
    model, x = Model(), torch.randn(4, 3)
    assert not any(parameter.requires_grad for parameter in model.second.parameters())
    expected = model.second(model.first(x)).detach()
    executor = poptorch.inferenceModel(model)
    torch.testing.assert_close(executor(x), expected)
    executor.destroy()
    twin = pickle.loads(pickle.dumps(model))
    torch.testing.assert_close(poptorch.inferenceModel(twin)(x), expected)


def test_host_operators_leave_the_devices_tensors_alone() -> None:
    kept = torch.zeros(2)

    def host(x: Tensor) -> Tensor:
        x += 1
        return kept

    operator = poptorch.CPU(host, "writes")
    x = torch.ones(2)
    returned, same = infer(lambda x: (operator(x).add_(5), x * 1), x)
    assert returned.tolist() == [5.0, 5.0] and same.tolist() == [1.0, 1.0] and kept.tolist() == [0.0, 0.0]


def test_host_operators_off_the_device_are_calls() -> None:
    operator = poptorch.CPU(lambda x: (x + 1, 3), "any")
    first, second = operator(torch.ones(1))
    assert first.item() == 2 and second == 3


def test_host_operators_keep_their_shapes() -> None:
    operator = poptorch.CPU(lambda x: x[: 2 if x.sum() > 0 else 3], "shrinks")
    with pytest.raises(poptorch.Error, match=r"CPU\('shrinks'\) returned .*2,.* after .*3,.* was traced: "):
        infer(lambda x: operator(x) * 1, torch.ones(3))


def test_host_operators_take_tensors() -> None:
    operator = poptorch.CPU(lambda x, y: x, "one")
    with pytest.raises(poptorch.Error, match="every argument must be a torch.Tensor, not int"):
        infer(lambda x: operator(x, 3), torch.ones(2))


def test_host_operators_are_for_inference() -> None:
    operator = poptorch.CPU(lambda x: x * 2, "double")
    with pytest.raises(poptorch.Error, match=r"CPU\('double'\) is for inference only"):
        gradient(lambda w: operator(w), torch.ones(2))
