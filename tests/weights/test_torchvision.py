"""torchvision's weights: its own models' state dicts, and state dicts for it to load."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Optional

import pytest
import torch
from reference_models import randomise, torchvision_vit
from torch import nn

from ipu_vit.models.vit import VisionTransformer
from ipu_vit.weights.load import load_weights
from ipu_vit.weights.table import to_format
from ipu_vit.weights.torchvision import TORCHVISION

Make = Callable[..., VisionTransformer]


def make(representation: Optional[int]) -> nn.Module:
    model = torchvision_vit(representation_size=representation)
    randomise(model)
    return model.eval()


@pytest.mark.parametrize("representation", [None, 7])
@pytest.mark.parametrize("names", ["in memory", "published"])
def test_what_torchvision_saves(
    vit: Make, same_logits: Any, tmp_path: Path, names: str, representation: Optional[int]
) -> None:
    theirs = make(representation)
    state = theirs.state_dict()
    if names == "published":
        renamed = ((".mlp.0.", ".mlp.linear_1."), (".mlp.3.", ".mlp.linear_2."))
        for new, old in renamed:
            state = {name.replace(new, old): tensor for name, tensor in state.items()}
    torch.save(state, tmp_path / "weights.pth")
    ours = vit(representation=representation)
    report = load_weights(ours, str(tmp_path / "weights.pth"))
    same_logits(ours, theirs)
    assert report.format == "torchvision"
    assert not report.unused


@pytest.mark.parametrize("representation", [None, 7])
def test_torchvision_loads_what_is_written(vit: Make, same_logits: Any, representation: Optional[int]) -> None:
    ours, theirs = vit(representation=representation), make(representation)
    theirs.load_state_dict(to_format(TORCHVISION, ours.state_dict()), strict=True)
    same_logits(ours, theirs)
