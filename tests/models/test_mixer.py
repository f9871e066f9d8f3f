"""MLP-Mixer against timm's, and its initial weights."""

from __future__ import annotations

from typing import Any

import pytest
import timm_names
import torch
from reference_models import timm_mixer

from ipu_vit.models.mixer import Mixer


def small(**changes: Any) -> Mixer:
    sizes: Any = dict(
        image_size=12, patch_size=4, width=16, depth=2, tokens_mlp_width=8, mlp_width=64, classes=5, **changes
    )
    return Mixer(**sizes)


def test_logits_equal_timm_s() -> None:
    assert timm_names.difference(small(), timm_mixer(), timm_names.MIXER) <= 1e-5


@torch.no_grad()
def test_tokens_mlp_sees_each_channel_alone_and_mlp_each_token_alone() -> None:
    torch.manual_seed(0)
    layer = small().layers[0]
    for parameter in layer.parameters():
        parameter.normal_(std=0.3)
    tokens = torch.randn(1, 9, 16)
    token_norm, mixed = layer.tokens_norm(tokens), tokens.clone()
    for channel in range(16):
        mixed[:, :, channel] += layer.tokens_mlp(token_norm[:, :, channel])
    expected = mixed.clone()
    for token in range(9):
        expected[:, token] += layer.mlp(layer.mlp_norm(mixed[:, token]))
    torch.testing.assert_close(layer(tokens), expected)


@torch.no_grad()
def test_initial_deviations_are_vit_jax_s() -> None:
    torch.manual_seed(0)
    model = Mixer(image_size=64, patch_size=4, width=192, depth=1, tokens_mlp_width=96, mlp_width=768, classes=5)
    layer = model.layers[0]
    expected = [
        (model.embedding.patch.weight, 3 * 4 * 4),
        (layer.tokens_mlp.expand.weight, 256),
        (layer.tokens_mlp.contract.weight, 96),
        (layer.mlp.expand.weight, 192),
        (layer.mlp.contract.weight, 768),
    ]
    for tensor, fan_in in expected:
        assert tensor.std().item() == pytest.approx(fan_in**-0.5, rel=0.06)
    assert not any(parameter.any() for name, parameter in model.named_parameters() if name.endswith(".bias"))
    assert not model(torch.randn(2, 3, 64, 64)).any()
