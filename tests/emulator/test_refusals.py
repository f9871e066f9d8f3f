"""What PopTorch refuses, refused at the same moment."""

from __future__ import annotations

from typing import Any

import poptorch
import pytest
import torch
import torch.nn.functional as F
from emulator_models import Layers, data, options
from torch import nn


def training(model: nn.Module, opts: Any = None) -> Any:
    return poptorch.trainingModel(model, opts or options(), poptorch.optim.SGD(model.parameters(), lr=0.1))


def test_rule_2_1_training_needs_a_loss() -> None:
    class NoLoss(Layers):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
            return self.logits(x).sum()

    with pytest.raises(poptorch.Error, match="Couldn't find a loss"):
        training(NoLoss()).compile(*data(1))


def test_rule_2_1_two_losses_need_a_common_one() -> None:
    class TwoLosses(Layers):
        join = False

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
            logits = self.logits(x)
            total = F.cross_entropy(logits, y) + F.mse_loss(logits, logits.detach() + 1)
            return poptorch.identity_loss(total, "none") if self.join else total

    with pytest.raises(poptorch.Error, match="Multiple independent losses"):
        training(TwoLosses()).compile(*data(1))
    joined = TwoLosses()
    joined.join = True
    training(joined).compile(*data(1))


@pytest.mark.parametrize(
    "change",
    [lambda x, y: (x[:-1], y[:-1]), lambda x, y: (x.double(), y), lambda x, y: (x, y, 1)],
    ids=["shape", "type", "count"],
)
def test_rule_1_10_what_was_compiled_stays(change: Any) -> None:
    executor = training(Layers())
    x, y = data(4)
    executor(x, y)
    with pytest.raises(poptorch.Error):
        executor(*change(x, y))


def test_rule_1_1_batches_divide() -> None:
    with pytest.raises(AssertionError, match="7 rows"):
        training(Layers(), options(accumulation=3)).compile(*data(7))


def test_rule_1_12_no_zero_sized_tensors() -> None:
    with pytest.raises(poptorch.Error, match="zero-sized"):
        training(Layers()).compile(*data(0))


def test_rule_1_14_inference_does_not_accumulate() -> None:
    with pytest.raises(poptorch.Error, match="gradientAccumulation"):
        poptorch.inferenceModel(Layers(), options(accumulation=2))


def test_rule_12_1_forward_cannot_look_at_values() -> None:
    class Looks(Layers):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
            return super().forward(x if x.sum().item() > 0 else -x, y)

    with pytest.raises(poptorch.Error, match="only supported in eager mode"):
        training(Looks()).compile(*data(1))
