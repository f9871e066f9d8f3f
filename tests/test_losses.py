"""The loss against PyTorch's own, in value and, through the pipeline, in gradient."""

from __future__ import annotations

from typing import Any

import poptorch
import pytest
import torch
import torch.nn.functional as F
from emulator_models import options
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ipu_vit.losses import cross_entropy


def examples(batch: int, classes: int, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return 5 * torch.randn(batch, classes, generator=generator), torch.randint(classes, (batch,), generator=generator)


@hypothesis_settings(deadline=None)
@given(st.integers(1, 9), st.integers(2, 20), st.floats(0, 0.99), st.integers(0, 1000))
def test_value_is_pytorchs(batch: int, classes: int, smoothing: float, seed: int) -> None:
    logits, labels = examples(batch, classes, seed)
    expected = F.cross_entropy(logits.double(), labels, label_smoothing=smoothing)
    assert float(cross_entropy(logits, labels, smoothing)) == pytest.approx(float(expected), rel=1e-5, abs=1e-6)


class Weighted(nn.Module):
    """Logits that are parameters, so that the update shows their gradient."""

    def __init__(self, logits: Tensor, smoothing: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.clone())
        self.smoothing = smoothing

    def forward(self, labels: Tensor) -> Any:
        return cross_entropy(self.logits, labels, self.smoothing)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_gradient_is_pytorchs(smoothing: float) -> None:
    """Only what leads to the loss operator is differentiated, so smoothing must lie before it."""
    logits, labels = examples(6, 5, seed=3)
    model = Weighted(logits, smoothing)
    executor = poptorch.trainingModel(model, options(), poptorch.optim.SGD(model.parameters(), lr=1.0))
    executor(labels)
    executor.copyWeightsToHost()

    plain = logits.double().requires_grad_()
    F.cross_entropy(plain, labels, label_smoothing=smoothing).backward()
    assert plain.grad is not None
    torch.testing.assert_close((logits - model.logits.detach()).double(), plain.grad, rtol=1e-4, atol=1e-6)
