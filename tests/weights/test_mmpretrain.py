"""mmclassification's and mmpretrain's weights, against a model written with their modules' names."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Optional

import pytest
import torch
from reference_models import randomise
from torch import Tensor, nn
from torch.nn import functional

from ipu_vit.models.vit import VisionTransformer
from ipu_vit.weights.load import load_weights
from ipu_vit.weights.mmpretrain import MMPRETRAIN
from ipu_vit.weights.table import to_format

Make = Callable[..., VisionTransformer]
WIDTH, HEADS = 12, 3


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(WIDTH, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(WIDTH, 3 * WIDTH), "proj": nn.Linear(WIDTH, WIDTH)})
        self.ln2 = nn.LayerNorm(WIDTH, eps=1e-6)
        self.ffn = nn.Module()
        self.ffn.layers = nn.Sequential(
            nn.Sequential(nn.Linear(WIDTH, 20), nn.GELU(), nn.Dropout(0.1)), nn.Linear(20, WIDTH), nn.Dropout(0.1)
        )

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.attn["qkv"](self.ln1(x)).chunk(3, dim=-1)
        size = WIDTH // HEADS
        mixed = []
        for head in range(HEADS):  # one at a time, so that no trick with axes is shared with ours
            part = slice(head * size, (head + 1) * size)
            weights = torch.softmax(query[..., part] @ key[..., part].transpose(1, 2) / size**0.5, dim=-1)
            mixed.append(weights @ value[..., part])
        x = x + self.attn["proj"](torch.cat(mixed, dim=-1))
        return x + self.ffn.layers(self.ln2(x))


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.zeros(1, 10, WIDTH))
        self.patch_embed = nn.ModuleDict({"projection": nn.Conv2d(3, WIDTH, 4, 4)})
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.ln1 = nn.LayerNorm(WIDTH, eps=1e-6)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patch_embed["projection"](images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(images), 1, WIDTH), patches], dim=1) + self.pos_embed
        for layer in self.layers:
            x = layer(x)
        return self.ln1(x)[:, 0]


class Head(nn.Module):
    """`VisionTransformerClsHead`, or `LinearClsHead`."""

    def __init__(self, hidden: Optional[int], linear: bool) -> None:
        super().__init__()
        if linear:
            self.fc = nn.Linear(WIDTH, 5)
        elif hidden is None:
            self.layers = nn.Sequential()
            self.layers.add_module("head", nn.Linear(WIDTH, 5))
        else:
            self.layers = nn.Sequential()
            self.layers.add_module("pre_logits", nn.Linear(WIDTH, hidden))
            self.layers.add_module("act", nn.Tanh())
            self.layers.add_module("head", nn.Linear(hidden, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) if hasattr(self, "fc") else self.layers(x)


class Classifier(nn.Module):
    def __init__(self, hidden: Optional[int] = None, linear: bool = False) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.head = Head(hidden, linear)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))


@pytest.mark.parametrize(("hidden", "linear"), [(None, False), (7, False), (None, True)])
def test_checkpoints(vit: Make, same_logits: Any, tmp_path: Path, hidden: Optional[int], linear: bool) -> None:
    theirs = Classifier(hidden, linear)
    randomise(theirs)
    meta = {"mmcls_version": "0.23.0", "CLASSES": ["a", "b"], "epoch": 5}
    torch.save({"meta": meta, "state_dict": theirs.state_dict()}, tmp_path / "weights.pth")
    ours = vit(representation=hidden)
    report = load_weights(ours, str(tmp_path / "weights.pth"))
    same_logits(ours, theirs)
    assert report.summary() == f"weights: {len(report.kept)} tensors from {report.path} (mmpretrain)"


def test_a_backbone_alone(vit: Make, tmp_path: Path) -> None:
    theirs = Backbone().eval()
    randomise(theirs)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    ours = vit()
    report = load_weights(ours, str(tmp_path / "weights.pth"))
    assert report.format == "mmpretrain"
    assert report.replaced == {"head.classify": "the file has none"}
    ours.head.classify = nn.Identity()
    images = torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        assert functional.l1_loss(ours(images), theirs(images)) <= 1e-5


@pytest.mark.parametrize("hidden", [None, 7])
def test_their_model_loads_what_is_written(vit: Make, same_logits: Any, hidden: Optional[int]) -> None:
    ours, theirs = vit(representation=hidden), Classifier(hidden)
    theirs.load_state_dict(to_format(MMPRETRAIN, ours.state_dict()), strict=True)
    same_logits(ours, theirs)
