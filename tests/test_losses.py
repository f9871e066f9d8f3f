"""The losses against PyTorch's own and closed forms, in value and, through the pipeline, in gradient."""

from __future__ import annotations

from typing import Any, Callable

import poptorch
import pytest
import torch
import torch.nn.functional as F
from emulator_models import options
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ipu_vit.losses import build_loss, cross_entropy, sigmoid_cross_entropy
from ipu_vit.settings import LossSettings

Loss = Callable[[Tensor, Tensor], Any]


def examples(batch: int, classes: int, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return 5 * torch.randn(batch, classes, generator=generator), torch.randint(classes, (batch,), generator=generator)


def mixed(batch: int, classes: int, seed: int) -> Tensor:
    """Targets of images that are mixed of two: shares that add up to 1."""
    generator = torch.Generator().manual_seed(seed)
    first, second = (F.one_hot(torch.randint(classes, (batch,), generator=generator), classes) for _ in range(2))
    share = torch.rand(batch, 1, generator=generator)
    return share * first + (1 - share) * second


cases = (st.integers(1, 9), st.integers(2, 20), st.floats(0, 0.99), st.integers(0, 1000))


@given(*cases)
def test_value_is_pytorchs(batch: int, classes: int, smoothing: float, seed: int) -> None:
    logits, labels = examples(batch, classes, seed)
    expected = F.cross_entropy(logits.double(), labels, label_smoothing=smoothing)
    assert float(cross_entropy(logits, labels, smoothing)) == pytest.approx(float(expected), rel=1e-5, abs=1e-6)


@given(*cases)
def test_value_of_shares_is_pytorchs(batch: int, classes: int, smoothing: float, seed: int) -> None:
    logits, targets = examples(batch, classes, seed)[0], mixed(batch, classes, seed)
    expected = F.cross_entropy(logits.double(), targets.double(), label_smoothing=smoothing)
    assert float(cross_entropy(logits, targets, smoothing)) == pytest.approx(float(expected), rel=1e-5, abs=1e-6)


@given(*cases)
def test_sigmoid_value_is_big_visions(batch: int, classes: int, smoothing: float, seed: int) -> None:
    """-(t log p + (1 - t) log(1 - p)), summed over classes, then the mean over images."""
    logits, labels = examples(batch, classes, seed)
    smoothed = (1 - smoothing) * F.one_hot(labels, classes) + smoothing / classes
    p, not_p = F.logsigmoid(logits.double()), F.logsigmoid(-logits.double())
    expected = pytest.approx(float(-(smoothed * p + (1 - smoothed) * not_p).sum(-1).mean()), rel=1e-5, abs=1e-6)
    assert float(sigmoid_cross_entropy(logits, labels, smoothing)) == expected
    assert float(sigmoid_cross_entropy(logits, F.one_hot(labels, classes).float(), smoothing)) == expected


# --- gradients ---------------------------------------------------------------------------------------


class Weighted(nn.Module):
    """Logits that are parameters, so that the update shows their gradient."""

    def __init__(self, logits: Tensor, loss: Loss) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.clone())
        self.loss = loss

    def forward(self, targets: Tensor) -> Any:
        return self.loss(self.logits, targets)


def gradient(loss: Loss, logits: Tensor, targets: Tensor) -> Tensor:
    """What the device takes off the logits with a learning rate of 1."""
    model = Weighted(logits, loss)
    executor = poptorch.trainingModel(model, options(), poptorch.optim.SGD(model.parameters(), lr=1.0))
    executor(targets)
    executor.copyWeightsToHost()
    return (logits - model.logits.detach()).double()


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_gradient_is_pytorchs(smoothing: float) -> None:
    """Only what leads to the loss operator is differentiated, so smoothing must lie before it."""
    logits, labels = examples(6, 5, seed=3)
    plain = logits.double().requires_grad_()
    F.cross_entropy(plain, labels, label_smoothing=smoothing).backward()
    assert plain.grad is not None
    ours = gradient(build_loss(LossSettings(label_smoothing=smoothing)), logits, labels)
    torch.testing.assert_close(ours, plain.grad, rtol=1e-4, atol=1e-6)


KINDS = {"softmax": lambda logits: logits.softmax(-1), "sigmoid": torch.sigmoid}
# What a target becomes with smoothing s and K classes: Szegedy's rule, and ClassyVision's.
RULES = {
    "original": lambda target, s: (1 - s) * target + s / target.shape[-1],
    "classy_vision": lambda target, s: (target + s / target.shape[-1]) / (1 + s),
}


@pytest.mark.parametrize("as_shares", [False, True])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_what_is_predicted_less_the_target(kind: str, rule: str, as_shares: bool) -> None:
    logits, labels = examples(6, 5, seed=4)
    shares = mixed(6, 5, seed=4) if as_shares else F.one_hot(labels, 5).float()
    loss = build_loss(LossSettings(kind=kind, label_smoothing=0.2, smoothing_rule=rule))
    expected = (KINDS[kind](logits.double()) - RULES[rule](shares.double(), 0.2)) / 6
    ours = gradient(loss, logits, shares if as_shares else labels)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_large_logits_stay_finite(kind: str) -> None:
    logits, labels = torch.tensor([[300.0, -300.0], [-300.0, 300.0]]), torch.tensor([0, 0])
    found = gradient(build_loss(LossSettings(kind=kind)), logits, labels)
    softmax = [[0, 0], [-0.5, 0.5]]
    torch.testing.assert_close(found, torch.tensor(softmax).double(), rtol=0, atol=1e-4)
