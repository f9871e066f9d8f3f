"""What forward writes into its inputs."""

from __future__ import annotations

from typing import Any

import poptorch
import pytest
import torch
import torch.nn.functional as F
from operator_models import Calls


@pytest.mark.parametrize("function", [
    lambda x: x.add_(1), lambda x: x[0].add_(1), lambda x: x.view(-1)[1:].mul_(3),
    lambda x: F.relu(x, inplace=True), lambda x: x.t().__setitem__(0, 5.0),
])  # fmt: skip
@pytest.mark.parametrize("half", [False, True])
def test_what_forward_writes_into_its_inputs_arrives_at_the_caller_s(function: Any, half: bool) -> None:
    """Whether it writes into an input or a view of one (PopTorch's `InplaceOps.cpp`)."""
    x = torch.arange(-6.0, 6.0).reshape(6, 2)
    expected = [part.clone() for part in x.split(2)]
    for part in expected:
        function(part)
    if half:
        x, expected = x.half(), [part.half() for part in expected]
    opts = poptorch.Options()
    opts.deviceIterations(3)

    def forward(x: torch.Tensor) -> torch.Tensor:
        function(x)
        return x * 2

    result = poptorch.inferenceModel(Calls(forward), opts)(x)
    assert torch.equal(x, torch.cat(expected)) and torch.equal(result, 2 * x)


def test_inputs_that_are_written_into_have_no_part_in_gradients() -> None:
    def forward(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        x[:, 0].mul_(weight)
        return poptorch.identity_loss(x.sum(), "sum")

    model = Calls(forward, torch.tensor([2.0]))
    opts = poptorch.Options()
    opts.Training.gradientAccumulation(2)
    x = torch.ones(4, 2)
    executor = poptorch.trainingModel(model, opts, poptorch.optim.SGD(model.parameters(), lr=0.25))
    executor(x)
    assert not x.requires_grad and torch.equal(x, torch.tensor([[2.0, 1.0]] * 4))
    assert torch.equal(model.state_dict().popitem()[1], torch.tensor([1.5]))  # the mean of two micro batches' two
    executor(x)
    assert torch.equal(x, torch.tensor([[3.0, 1.0]] * 4))
