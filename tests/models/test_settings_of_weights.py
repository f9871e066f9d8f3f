"""Tensors tell the settings of the model that they are of."""

from __future__ import annotations

from typing import Any, Dict

import pytest
from tiny_kinds import KINDS, kind_settings

from ipu_vit.models import build
from ipu_vit.weights.parameters import model_sizes
from ipu_vit.weights.shapes import shapes_of

NOT_IN_SHAPES = {"heads", "norm_epsilon", "pooling", "pool_norm"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_what_is_told_has_the_same_tensors(kind: str) -> None:
    wanted: Dict[str, Any] = kind_settings(kind, [4]).model.model_dump()
    shapes = shapes_of(build(**wanted).state_dict())
    found = model_sizes(shapes)
    assert all(wanted[name] == value for name, value in found.items() if name not in NOT_IN_SHAPES)
    rebuilt = {**found, **{name: wanted[name] for name in NOT_IN_SHAPES}}
    assert shapes_of(build(**rebuilt).state_dict()) == shapes
