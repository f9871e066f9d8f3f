"""The first bias of the head, in every kind of model and number type."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from tiny_kinds import CLASSES, KINDS, kind_settings

from ipu_vit.build import build_model


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_every_class_starts_with_it(kind: str, precision: str) -> None:
    head = build_model(kind_settings(kind, [4], precision, head_bias=-6.9)).head
    assert not head.classify.weight.any()
    assert torch.equal(head.classify.bias, torch.full((CLASSES,), -6.9).to(head.classify.bias))
    features = torch.randn(2, head.classify.in_features)
    logits = F.linear(features, head.classify.weight.float(), head.classify.bias.float())
    # One of K classes is right: −ln(1 − p) for each of the others, −ln p for that one.
    probability = 1 / (1 + math.exp(6.9))
    expected = -(CLASSES - 1) * math.log1p(-probability) - math.log(probability)
    labels = F.one_hot(torch.tensor([0, 2]), CLASSES).float()
    loss = F.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / 2
    assert loss.item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_else_changes_by_it(kind: str) -> None:
    plain, biased = (build_model(kind_settings(kind, [4], head_bias=bias)).state_dict() for bias in (0.0, -10.0))
    changed = [name for name in plain if not torch.equal(plain[name], biased[name])]
    assert plain.keys() == biased.keys()
    assert changed == ["head.classify.bias"]
