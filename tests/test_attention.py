"""Attention rollout against the paper's formula in NumPy, and the picture of it read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image
from tiny_runs import random_weights

from ipu_vit.attention import attention_weights, draw_attention, rollout
from ipu_vit.models.vit import VisionTransformer
from ipu_vit.weights.load import load_weights

SIZES: Dict[str, Any] = dict(image_size=12, patch_size=4, width=12, depth=3, heads=3, mlp_width=20, classes=5)


def by_the_paper(layers: List[np.ndarray]) -> np.ndarray:
    """Section 3 of the paper: identity added, rows normalised, layers multiplied from the first on."""
    image = np.eye(layers[0].shape[-1])
    for heads in layers:
        mean = sum(heads[h] for h in range(len(heads))) / len(heads)
        mixed = np.empty_like(mean)
        for row in range(len(mean)):
            line = mean[row].copy()
            line[row] += 1
            mixed[row] = line / line.sum()
        image = mixed @ image
    return image[0, 1:]


@hypothesis_settings(max_examples=30)
@given(depth=st.integers(1, 4), heads=st.integers(1, 3), side=st.integers(1, 4), seed=st.integers(0, 99))
def test_rollout_is_that_of_the_paper(depth: int, heads: int, side: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens = side * side + 1
    layers = [torch.randn(2, heads, tokens, tokens, generator=generator).softmax(-1) for _ in range(depth)]
    maps = rollout(layers)
    assert maps.shape == (2, side, side)
    for image in range(2):
        expected = by_the_paper([layer[image].double().numpy() for layer in layers])
        assert np.allclose(maps[image].flatten(), expected, atol=1e-6)
    assert (maps >= 0).all() and (maps.sum(dim=(1, 2)) < 1).all()


@pytest.mark.parametrize("depth", [1, 5])
def test_even_attention_gives_an_even_map(depth: int) -> None:
    """Each layer keeps half and spreads half evenly, so 2^-depth of the class token stays where it was."""
    even = torch.full((1, 2, 10, 10), 0.1)
    assert torch.allclose(rollout([even] * depth), torch.full((1, 3, 3), (1 - 0.5**depth) / 10))


def test_weights_are_those_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        image_size=12, patch_size=4, hidden_size=12, num_hidden_layers=3, num_attention_heads=3, intermediate_size=20,
        layer_norm_eps=1e-6, num_labels=5, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.ViTForImageClassification(config).eval()
    random_weights(theirs)
    theirs.save_pretrained(tmp_path)
    ours = VisionTransformer(**SIZES).eval()
    load_weights(ours, str(tmp_path))
    images = torch.randn(2, 3, 12, 12)
    with torch.no_grad(), attention_weights(ours) as weights:
        ours(images)
        expected = theirs(images, output_attentions=True).attentions
    assert len(weights) == len(expected) == 3
    for mine, other in zip(weights, expected):
        assert mine.shape == (2, 3, 10, 10) and torch.allclose(mine, other, atol=1e-5)
    with torch.no_grad():
        ours(images)
    assert len(weights) == 3, "nothing is kept any more"


def test_the_picture_glows_where_the_map_is_high(tmp_path: Path) -> None:
    image = np.full((64, 64, 3), (0, 200, 0), np.uint8)
    weights = np.zeros((4, 4))
    weights[0, 3] = 1
    draw_attention(image, weights, "$5 _^{", tmp_path / "map.png")
    pixels = np.asarray(Image.open(tmp_path / "map.png").convert("RGB")).astype(int)
    height, width = pixels.shape[:2]
    plain = np.abs(pixels - (0, 200, 0)).max(axis=-1) <= 2
    assert plain[:, : width // 2].sum() > 0.3 * height * width / 2
    assert not plain[:, width // 2 :].any()
    rows, columns = np.nonzero(plain)
    size = rows.max() - rows.min() + 1  # of a picture, with the same rows in the right one
    top, left = rows.min(), width // 2 + columns.min()
    red = pixels[top : top + size, left : left + size, 0]
    assert red[: size // 4, -size // 4 :].mean() > 3 * red[size // 2 :, : size // 2].mean()
