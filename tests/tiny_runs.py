"""A tiny run to test with: class folders of JPEGs, a preset, and the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Sequence, Union

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ipu_vit.config import load_settings
from ipu_vit.device import Device
from ipu_vit.errors import UserError
from ipu_vit.models import build
from ipu_vit.models.image_model import ImageModel
from ipu_vit.settings import Settings
from ipu_vit.tracking.files import read_figures

CPU = Device("cpu", "a test")
CLASSES = ("ant", "bee", "cat")

PRESET = """\
device: cpu
rehearse: never
weights: none
output: {folder}/run
model: {{image_size: 8, patch_size: 4, width: 16, depth: 4, heads: 2, mlp_width: 32, classes: 3, dropout: 0.1}}
data: {{root: {folder}/images, evaluation_resize: 8}}
pipeline: {{layers_per_ipu: [4], available_memory_proportion: [0.3], global_batch: 4, micro_batch: 2}}
schedule: {{lr: 0.05, updates: 4}}
evaluation: {{micro_batch: 2, pictures: 0}}
checkpoint: {{every: 2}}
"""


def tiny_preset(folder: Path) -> Path:
    """Write images of three classes and a preset that trains on them; returns the preset's path."""
    write_images(folder / "images" / "train", [5, 4, 4])
    write_images(folder / "images" / "val", [3, 3, 1])
    preset = folder / "tiny.yml"
    preset.write_text(PRESET.format(folder=folder))
    return preset


def write_images(root: Path, counts: Sequence[int]) -> None:
    """Class folders of noisy JPEGs, each class of another brightness."""
    rng = np.random.default_rng(len(root.name))
    for number, (name, count) in enumerate(zip(CLASSES, counts)):
        (root / name).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(60 * number, 60 * number + 100, size=(12, 14, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.JPEG")


def truncate(image: Path) -> None:
    """Cut an image file off in the middle."""
    content = image.read_bytes()
    image.write_bytes(content[: len(content) // 2])


def settings_of(preset: Path, *overrides: str) -> Settings:
    return load_settings(str(preset), overrides)


def command(preset: Path, *overrides: str) -> List[str]:
    """The `train` command as a user types it."""
    return [sys.executable, "-m", "ipu_vit", "train", str(preset), *overrides]


def run(arguments: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and keep what it prints."""
    return subprocess.run(arguments, capture_output=True, text=True, timeout=300, **options)


def sentence(text: str) -> str:
    """What a user reads on stderr: a single line, which says what is wrong."""
    assert text.startswith("error: ") and text.endswith("\n") and text.count("\n") == 1, text
    return text[len("error: ") : -1]


def complaint(preset: Union[str, Path], *overrides: str) -> str:
    """The one sentence that wrong settings get."""
    with pytest.raises(UserError) as caught:
        load_settings(str(preset), overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def losses(folder: Path) -> List[Dict[str, float]]:
    """What a run has computed in its host steps so far: `update`, `loss`, `accuracy` and `lr` of each."""
    steps = [line for line in read_figures(folder) if "train/loss" in line]
    return [{"update": s["update"], **{name: s[f"train/{name}"] for name in ("loss", "accuracy", "lr")}} for s in steps]


def tensors(value: Any, name: str = "") -> Dict[str, torch.Tensor]:
    """All tensors in a nested value, by their paths."""
    if isinstance(value, torch.Tensor):
        return {name: value}
    found: Dict[str, torch.Tensor] = {}
    for key, item in value.items() if isinstance(value, dict) else ():
        found.update(tensors(item, f"{name}.{key}"))
    return found


def distance(ours: Dict[str, torch.Tensor], theirs: Dict[str, torch.Tensor]) -> float:
    """The difference of all tensors laid end to end, as a share of their length."""
    assert ours.keys() == theirs.keys() and ours
    right = torch.cat([tensor.double().flatten() for tensor in theirs.values()])
    return float((torch.cat([ours[name].double().flatten() for name in theirs]) - right).norm() / right.norm())


def contents(folder: Path) -> Dict[str, bytes]:
    """Every file under a folder with what is in it."""
    return {os.fspath(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def random_weights(model: nn.Module, seed: int = 0) -> None:
    """Give every parameter a value that matters, also those that start as zeros."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def plain_model(settings: Settings, weights: Dict[str, torch.Tensor]) -> ImageModel:
    """The same model in plain PyTorch and float64, with the GELU that IPUs have."""
    model = build(**settings.model.model_dump()).double()
    model.load_state_dict(weights)
    for module in model.modules():
        if isinstance(module, nn.GELU):
            module.approximate = "tanh"
    return model
