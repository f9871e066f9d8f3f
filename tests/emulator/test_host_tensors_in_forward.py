"""Tensors of the host that forward uses: PopTorch refuses them unless they are moved, or a module's own."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np
import poptorch
import pytest
import torch
from operator_models import Calls, infer
from torch import Tensor

X, HOST = torch.arange(6.0).reshape(2, 3), torch.tensor([1.0, 2.0, 3.0])


@pytest.mark.parametrize("moved", [
    lambda x: HOST.to(x.device), lambda x: HOST.to("ipu"), lambda x: HOST.to(x), lambda x: HOST.type_as(x),
    lambda x: HOST.to(device="ipu", dtype=torch.int32), lambda x: HOST.half().float().to(x.device),
    lambda x: torch.from_numpy(HOST.numpy()).to(x.device), lambda x: torch.tensor([1.0, 2.0, 3.0]),
    lambda x: x.new_tensor(np.array([1, 2, 3])), lambda x: torch.as_tensor([1, 2, 3], device=x.device),
])  # fmt: skip
def test_what_is_moved_is_welcome(moved: Callable[[Tensor], Tensor], log: pytest.LogCaptureFixture) -> None:
    assert torch.equal(infer(lambda x: x * moved(x), X), X * HOST)
    assert "Expected an IPU tensor" not in log.text


@pytest.mark.parametrize("function", [lambda x: x * HOST, lambda x: torch.maximum(HOST, x)])
def test_what_is_not_is_compiled_in_with_a_warning(function: Any, log: pytest.LogCaptureFixture) -> None:
    assert torch.equal(infer(function, X), function(X))
    assert "Expected an IPU tensor" in log.text and f"{__file__}:" in log.text


def test_what_is_moved_is_a_copy() -> None:
    def forward(x: Tensor) -> Tensor:
        moved = HOST.to(x.device)
        moved += 1
        return x * moved

    executor = poptorch.inferenceModel(Calls(forward))
    for _ in range(2):
        assert torch.equal(executor(X), X * (HOST + 1))
    assert HOST.tolist() == [1, 2, 3]
