"""The file that a run writes in the end, for every kind of model."""

from __future__ import annotations

from pathlib import Path
from typing import List

import pytest
import torch
from reference_models import state_of
from tiny_runs import settings_of, tiny_preset

from ipu_vit.__main__ import main
from ipu_vit.build import build_model
from ipu_vit.checkpoint import read_checkpoint
from ipu_vit.weights.formats import open_weights
from ipu_vit.weights.load import load_weights

KINDS = {
    "vit": ["model.norm_epsilon=1e-5"],
    "mixer": ["model.kind=mixer", "model.tokens_mlp_width=8", "model.class_token=false", "model.pooling=mean",
              "model.dropout=0"],
    "hybrid": ["model.kind=hybrid", "model.resnet_depths=[]", "model.resnet_width=32", "model.patch_size=1"],
}  # fmt: skip


@pytest.mark.parametrize("overrides", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_it_holds_the_last_weights(tmp_path: Path, overrides: List[str], precision: str) -> None:
    preset = tiny_preset(tmp_path)
    path = str(tmp_path / "out" / "weights.npz")
    overrides = [*overrides, f"export={path}", f"export_precision={precision}"]
    assert main(["train", str(preset), *overrides]) == 0
    expected = read_checkpoint(tmp_path / "run" / "checkpoints" / "update-00000004.safetensors").model
    found = state_of(path)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name].to(getattr(torch, precision)).float()) for name in expected)

    settings = settings_of(preset, *overrides)
    assert not load_weights(build_model(settings), path).remarks
    assert open_weights(path).epsilon == settings.model.norm_epsilon
