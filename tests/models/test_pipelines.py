"""Every kind of model trains in a pipeline as it does in plain PyTorch."""

from __future__ import annotations

from functools import lru_cache
from typing import List, Tuple

import poptorch
import pytest
import torch
import torch.nn.functional as F
from tiny_kinds import CLASSES, IMAGE_SIZE, KINDS, kind_settings
from tiny_runs import CPU, plain_model, random_weights
from torch import Tensor

from ipu_vit.build import build_model
from ipu_vit.models.image_model import ImageModel
from ipu_vit.optim import build_optimizer
from ipu_vit.options import training_options
from ipu_vit.parallel import place
from ipu_vit.settings import Settings
from ipu_vit.steps import TrainingStep

UPDATES, LR, MOMENTUM = 2, 0.05, 0.9


def batches() -> List[Tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    size = (14, 3, IMAGE_SIZE, IMAGE_SIZE)
    return [
        (
            torch.randint(0, 256, size, generator=generator, dtype=torch.uint8),
            torch.randint(0, CLASSES, (14,), generator=generator),
        )
        for _ in range(UPDATES)
    ]


def initial_model(settings: Settings) -> ImageModel:
    model = build_model(settings).train()
    random_weights(model)
    return model


@lru_cache(maxsize=None)
def plain_losses(kind: str) -> List[float]:
    """The loss of each update of plain PyTorch in float64, the whole batch at once."""
    settings = kind_settings(kind, [4])
    model = plain_model(settings, initial_model(settings).state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
    mean, std = (torch.tensor(values).double().view(3, 1, 1) for values in (settings.data.mean, settings.data.std))
    losses = []
    for pixels, labels in batches():
        loss = F.cross_entropy(model((pixels.double() - mean) / std), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def emulated_losses(settings: Settings) -> List[float]:
    """The loss of each update of the pipeline."""
    model = initial_model(settings)
    place(model, settings.pipeline)
    optimizer = build_optimizer(model, settings.optimizer, LR)
    executor = poptorch.trainingModel(TrainingStep(model, settings), training_options(settings, CPU), optimizer)
    losses = [executor(*batch)[0].mean().item() for batch in batches()]
    assert len(executor.program.stages) == len(settings.pipeline.layers_per_ipu)
    return losses


@pytest.mark.parametrize(
    "kind, layers_per_ipu",
    [*((kind, [1, 1, 1, 1]) for kind in KINDS), *((kind, [1, 3]) for kind in ("vit", "hybrid", "mixer"))],
    ids=str,
)
def test_losses_equal_plain_pytorch_s(kind: str, layers_per_ipu: List[int]) -> None:
    expected = plain_losses(kind)
    assert len(set(expected)) == UPDATES
    assert emulated_losses(kind_settings(kind, layers_per_ipu)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", ["vit", "hybrid", "mixer"])
def test_float16_is_near(kind: str) -> None:
    assert emulated_losses(kind_settings(kind, [1, 1, 1, 1], "float16")) == pytest.approx(plain_losses(kind), rel=0.05)


@pytest.mark.parametrize("kind", ["vit", "mixer"])
def test_stochastic_depth_acts_in_a_pipeline(kind: str) -> None:
    losses = emulated_losses(kind_settings(kind, [2, 2], drop_path=0.5))
    assert all(loss == loss for loss in losses)
    assert losses[0] != pytest.approx(plain_losses(kind)[0], rel=1e-3)
