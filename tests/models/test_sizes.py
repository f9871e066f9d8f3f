"""The named models have the published numbers of parameters, and the document lists them all."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any, Dict

import pytest
import torch

from ipu_vit.models import build
from ipu_vit.models.sizes import MODELS
from ipu_vit.settings import ModelSettings

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "models.md"

# timm's benchmark tables, at 384 pixels: positions are what grows.
AT_384 = {
    "ViT-Ti/16": 5.79,
    "ViT-S/32": 22.92,
    "ViT-S/16": 22.20,
    "ViT-B/32": 88.30,
    "ViT-B/16": 86.86,
    "ViT-L/32": 306.63,
    "ViT-L/16": 304.72,
    "R+ViT-Ti/16": 6.36,
    "R26+ViT-S/32": 36.47,
    "R50+ViT-B/16": 98.95,
    "R50+ViT-L/32": 329.09,
}


def millions(**settings: Any) -> float:
    """The parameters of the model that such settings make, counted without taking memory."""
    with torch.device("meta"):
        model = build(**ModelSettings(**settings).model_dump())
    return round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2)


@pytest.mark.parametrize("name", MODELS)
def test_named_models_have_the_published_number_of_parameters(name: str) -> None:
    assert millions(**MODELS[name].settings) == MODELS[name].millions


@pytest.mark.parametrize("name", AT_384)
def test_larger_images_need_more_positions(name: str) -> None:
    assert millions(**MODELS[name].settings, image_size=384) == AT_384[name]


def test_document_lists_the_named_models() -> None:
    rows = re.findall(r"^\| (\S+/\d+) \| ([\d.]+) M \| `(.+?)` \|$", DOCUMENT.read_text(encoding="utf-8"), re.M)
    defaults = ModelSettings().model_dump()
    expected = [
        (name, f"{model.millions:.2f}", _written({k: v for k, v in model.settings.items() if defaults[k] != v}))
        for name, model in MODELS.items()
    ]
    assert rows == expected


def test_example_in_the_document_is_true() -> None:
    example = re.search(
        r"\n((?:    .*\n|\n)+)    (balanced_layers\(.*\))    # (\[.*\])", DOCUMENT.read_text(encoding="utf-8")
    )
    assert example
    names: Dict[str, Any] = {}
    exec(textwrap.dedent(example[1]), names)
    assert str(eval(example[2], names)) == example[3]


def _written(settings: Any) -> str:
    """Settings as a preset has them, on one line."""
    pairs = ", ".join(f"{key}: {str(value).lower()}" for key, value in settings.items())
    return f"model: {{{pairs}}}"
