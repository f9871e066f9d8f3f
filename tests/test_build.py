"""From settings to a model with its first weights."""

from __future__ import annotations

from pathlib import Path
from typing import List

import pytest
import torch

from ipu_vit.build import build_model, start_from_weights
from ipu_vit.config import load_settings
from ipu_vit.weights.native import write_native
from ipu_vit.weights.positions import resize_positions

SIZES = ["model.image_size=24", "model.patch_size=4", "model.width=12", "model.heads=3", "model.mlp_width=20"]


def overrides(path: Path) -> List[str]:
    return [*SIZES, f"weights={path}", "precision=float32", "data.evaluation_resize=none"]


@pytest.mark.parametrize("resize", ["bilinear", "bicubic"])
def test_positions_are_resized_as_the_settings_say(tmp_path: Path, resize: str) -> None:
    path = tmp_path / "weights.safetensors"
    source = build_model(load_settings("quickstart", overrides(path)))
    write_native(source.state_dict(), str(path))
    changes = ["model.image_size=40", f"weights_resize={resize}"]
    settings = load_settings("quickstart", [*overrides(path), *changes])
    model = build_model(settings)
    assert "positions resized from 6×6 to 10×10" in start_from_weights(model, settings)
    expected = resize_positions(source.state_dict()["embedding.position"], (10, 10), resize)
    assert torch.equal(model.state_dict()["embedding.position"], expected)


def test_a_head_for_other_classes_starts_from_the_bias_of_the_settings(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    write_native(build_model(load_settings("quickstart", overrides(path))).state_dict(), str(path))
    changes = ["model.classes=7", "model.head_bias=-6.9"]
    settings = load_settings("quickstart", [*overrides(path), *changes])
    model = build_model(settings)
    assert "head.classify starts anew" in start_from_weights(model, settings)
    assert not model.head.classify.weight.any()
    assert torch.equal(model.head.classify.bias, torch.full((7,), -6.9))
