"""torchvision's weights: its own models' state dicts, and state dicts for it to load."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Optional

import pytest
import torch

from ipu_vit.models.vit import VisionTransformer
from ipu_vit.weights.load import load_weights
from ipu_vit.weights.table import to_format
from ipu_vit.weights.torchvision import TORCHVISION

try:
    from torchvision.models.vision_transformer import VisionTransformer as Theirs
except Exception:  # a torchvision that does not fit its PyTorch has many ways to fail
    pytest.skip("needs torchvision", allow_module_level=True)

Make = Callable[..., VisionTransformer]


def make(randomise: Callable[..., None], representation: Optional[int] = None) -> Any:
    model = Theirs(
        image_size=12,
        patch_size=4,
        num_layers=2,
        num_heads=3,
        hidden_dim=12,
        mlp_dim=20,
        num_classes=5,
        representation_size=representation,
    )
    randomise(model)
    return model.eval()


@pytest.mark.parametrize("representation", [None, 7])
@pytest.mark.parametrize("names", ["in memory", "published"])
def test_what_torchvision_saves(
    vit: Make, randomise: Any, same_logits: Any, tmp_path: Path, names: str, representation: Optional[int]
) -> None:
    theirs = make(randomise, representation)
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
def test_torchvision_loads_what_is_written(
    vit: Make, randomise: Any, same_logits: Any, representation: Optional[int]
) -> None:
    ours, theirs = vit(representation=representation), make(randomise, representation)
    theirs.load_state_dict(to_format(TORCHVISION, ours.state_dict()), strict=True)
    same_logits(ours, theirs)
