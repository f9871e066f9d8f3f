"""ClassyVision's checkpoints, against a model written with its modules' names and its order of axes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, Optional

import pytest
import torch
from reference_models import randomise
from torch import Tensor, nn

from ipu_vit.models.vit import VisionTransformer
from ipu_vit.weights.load import load_weights
from ipu_vit.weights.writers import write_weights

Make = Callable[..., VisionTransformer]


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(12, eps=1e-6)
        self.self_attention = nn.MultiheadAttention(12, 3)
        self.ln_2 = nn.LayerNorm(12, eps=1e-6)
        self.mlp = nn.Sequential()
        self.mlp.add_module("linear_1", nn.Linear(12, 20))
        self.mlp.add_module("act", nn.GELU())
        self.mlp.add_module("linear_2", nn.Linear(20, 12))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.ln_1(x)
        x = x + self.self_attention(normed, normed, normed, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Trunk(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_proj = nn.Conv2d(3, 12, 4, 4)
        self.class_token = nn.Parameter(torch.zeros(1, 1, 12))
        self.encoder = nn.Module()
        self.encoder.pos_embedding = nn.Parameter(torch.zeros(10, 1, 12))
        self.encoder.layers = nn.Sequential()
        for i in range(2):
            self.encoder.layers.add_module(f"layer_{i}", Layer())
        self.encoder.ln = nn.LayerNorm(12, eps=1e-6)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.conv_proj(images).flatten(2).permute(2, 0, 1)
        tokens = torch.cat([self.class_token.expand(1, len(images), 12), patches]) + self.encoder.pos_embedding
        return self.encoder.ln(self.encoder.layers(tokens))[0]


class Model(nn.Module):
    def __init__(self, hidden: Optional[int]) -> None:
        super().__init__()
        self.trunk = Trunk()
        self.head = nn.Module()
        self.head.layers = nn.Sequential()
        if hidden is not None:
            self.head.layers.add_module("pre_logits", nn.Linear(12, hidden))
            self.head.layers.add_module("act", nn.Tanh())
        self.head.layers.add_module("head", nn.Linear(hidden or 12, 5))

    def forward(self, images: Tensor) -> Tensor:
        return self.head.layers(self.trunk(images))

    def checkpoint(self, block: str = "trunk_output", name: str = "default_head") -> Dict[str, Any]:
        model = {"trunk": self.trunk.state_dict(), "heads": {block: {name: self.head.state_dict()}}}
        state = {"base_model": {"model": model}, "train_phase_idx": 3, "losses": [0.5], "meters": {}}
        return {"input_args": {"device": "gpu"}, "phase_idx": 3, "classy_state_dict": state}


@pytest.mark.parametrize("hidden", [None, 7])
@pytest.mark.parametrize("names", [(), ("trunk_output", "imagenet-21k head")])
def test_checkpoints(vit: Make, same_logits: Any, tmp_path: Path, hidden: Optional[int], names: Any) -> None:
    theirs = Model(hidden)
    randomise(theirs)
    torch.save(theirs.checkpoint(*names), tmp_path / "checkpoint.torch")
    ours = vit(representation=hidden)
    report = load_weights(ours, str(tmp_path / "checkpoint.torch"))
    same_logits(ours, theirs)
    assert report.summary() == f"weights: {len(report.kept)} tensors from {report.path} (ClassyVision)"


def test_a_trunk_alone(vit: Make, tmp_path: Path) -> None:
    theirs = Model(None)
    randomise(theirs)
    torch.save(theirs.trunk.state_dict(), tmp_path / "trunk.pth")
    report = load_weights(vit(), str(tmp_path / "trunk.pth"))
    assert report.format == "ClassyVision"
    assert report.replaced == {"head.classify": "the file has none"}


@pytest.mark.parametrize("hidden", [None, 7])
def test_their_model_loads_what_is_written(vit: Make, same_logits: Any, tmp_path: Path, hidden: Optional[int]) -> None:
    ours, theirs = vit(representation=hidden), Model(hidden)
    path = str(tmp_path / "checkpoint.torch")
    write_weights("classyvision", ours.state_dict(), path, heads=3, epsilon=1e-6)
    written = torch.load(path)["classy_state_dict"]["base_model"]["model"]
    theirs.trunk.load_state_dict(written["trunk"], strict=True)
    theirs.head.load_state_dict(written["heads"]["trunk_output"]["default_head"], strict=True)
    assert set(written) == {"trunk", "heads"}
    same_logits(ours, theirs)
