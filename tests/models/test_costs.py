"""Costs in closed form are what a trace of the model counts."""

from __future__ import annotations

import poptorch
import pytest
import torch
from tiny_kinds import IMAGE_SIZE, KINDS, kind_settings
from tiny_runs import CPU

from ipu_vit.build import build_model
from ipu_vit.evaluate import EvaluationStep
from ipu_vit.models.costs import costs
from ipu_vit.models.sizes import MODELS
from ipu_vit.options import evaluation_options
from ipu_vit.parallel import place


@pytest.mark.parametrize("kind", KINDS)
def test_costs_are_what_a_trace_counts(kind: str) -> None:
    settings = kind_settings(kind, [1, 1, 1, 1])
    model = build_model(settings).eval()
    place(model, settings.pipeline)
    executor = poptorch.inferenceModel(EvaluationStep(model, settings).eval(), evaluation_options(settings, CPU))
    executor.compile(torch.zeros(4, 3, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8))
    found = [stage.multiply_adds for stage in executor.program.stages]
    expected = costs(**settings.model.model_dump())
    first, second, third, fourth = expected.layers
    assert found == [expected.embedding + first, second, third, fourth + expected.head]
    assert sum(found) == expected.total


def test_b16_costs_what_is_published() -> None:
    """17.58 billion multiply-adds in timm's tables, which count a little more than products."""
    total = costs(image_size=224, classes=1000, **MODELS["ViT-B/16"].settings).total
    assert total == pytest.approx(17.58e9, rel=0.002)
