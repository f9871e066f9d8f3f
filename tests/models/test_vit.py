"""The Vision Transformer against PyTorch's own encoder layer, its size, and its initial weights."""

from __future__ import annotations

from typing import Any, Dict

import pytest
import timm_names
import torch
import torch.nn.functional as F
from reference_models import randomise, timm_vit
from torch import Tensor, nn

from ipu_vit.models.head import Head
from ipu_vit.models.positions import fixed_positions
from ipu_vit.models.vit import EncoderLayer, VisionTransformer
from ipu_vit.parameter_groups import parameter_groups
from ipu_vit.settings import OptimizerSettings


def small(**changes: Any) -> VisionTransformer:
    sizes: Dict[str, Any] = dict(image_size=8, patch_size=4, width=12, depth=2, heads=3, mlp_width=20, classes=5)
    return VisionTransformer(**{**sizes, **changes})


def test_b16_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        model = VisionTransformer(
            image_size=224, patch_size=16, width=768, depth=12, heads=12, mlp_width=3072, classes=1000
        )
    assert sum(parameter.numel() for parameter in model.parameters()) == 86_567_656


@torch.no_grad()
def test_encoder_layer_equals_pytorch_s() -> None:
    torch.manual_seed(0)
    ours = EncoderLayer(12, 3, 20, 0.0, 0.0, 1e-6).eval()
    randomise(ours)
    theirs = nn.TransformerEncoderLayer(
        12, 3, 20, 0.0, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    ).eval()
    pairs = (
        (theirs.norm1, ours.attention_norm),
        (theirs.self_attn.out_proj, ours.attention.output),
        (theirs.norm2, ours.mlp_norm),
        (theirs.linear1, ours.mlp.expand),
        (theirs.linear2, ours.mlp.contract),
    )
    for target, source in pairs:
        target.load_state_dict(source.state_dict())
    theirs.self_attn.in_proj_weight.copy_(ours.attention.qkv.weight)
    theirs.self_attn.in_proj_bias.copy_(ours.attention.qkv.bias)
    tokens = torch.randn(2, 7, 12)
    torch.testing.assert_close(ours(tokens), theirs(tokens), rtol=0, atol=1e-5)


def test_fixed_positions_are_not_trained() -> None:
    model = small(fixed_positions=True)
    groups = parameter_groups(model, OptimizerSettings())
    assert not any(parameter is model.embedding.position for group in groups for parameter in group["params"])
    assert torch.equal(model.embedding.position, fixed_positions((5, 12)))
    model(torch.randn(2, 3, 8, 8)).square().mean().backward()
    assert model.embedding.position.grad is None and model.embedding.patch.bias.grad is not None


@torch.no_grad()
def test_patches_are_read_row_by_row_after_the_class_token() -> None:
    embedding = small(width=48).embedding
    # A convolution that hands each pixel of a patch on: (channel, row, column).
    embedding.patch.load_state_dict({"weight": torch.eye(48).reshape(48, 3, 4, 4), "bias": torch.zeros(48)})
    embedding.position.zero_()
    embedding.class_token.fill_(7)
    images = torch.randn(2, 3, 8, 8)
    tokens = embedding(images)
    assert torch.equal(tokens[:, 0], torch.full((2, 48), 7.0))
    for token, (row, column) in enumerate(((0, 0), (0, 4), (4, 0), (4, 4)), start=1):
        patch = images[:, :, row : row + 4, column : column + 4]
        torch.testing.assert_close(tokens[:, token], patch.flatten(1))


@torch.no_grad()
def test_without_a_class_token_there_are_patches_only() -> None:
    with_token, without = small(width=48).embedding, small(width=48, class_token=False, pooling="mean").embedding
    without.load_state_dict(
        {**with_token.patch.state_dict(prefix="patch."), "position": with_token.position[:, 1:]}, strict=True
    )
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(without(images), with_token(images)[:, 1:])


@torch.no_grad()
@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("pool_norm", ["before", "after"])
def test_mean_is_that_of_the_patches(class_token: bool, pool_norm: str) -> None:
    head = Head(6, 4, None, 1e-6, "mean", class_token, pool_norm)
    randomise(head)
    tokens = torch.randn(2, 5, 6)
    patches = tokens[:, 1:] if class_token else tokens
    norm = (head.norm.weight, head.norm.bias, 1e-6)
    if pool_norm == "before":
        features = torch.stack([F.layer_norm(patch, (6,), *norm) for patch in patches.unbind(1)]).mean(0)
    else:
        features = F.layer_norm(sum(patches.unbind(1)) / patches.shape[1], (6,), *norm)
    torch.testing.assert_close(head(tokens), F.linear(features, head.classify.weight, head.classify.bias))


@pytest.mark.parametrize("pool_norm", ["before", "after"])
@pytest.mark.parametrize(
    "class_token, pooling, global_pool", [(True, "class", "token"), (True, "mean", "avg"), (False, "mean", "avg")]
)
def test_logits_equal_timm_s(class_token: bool, pooling: str, global_pool: str, pool_norm: str) -> None:
    after = pool_norm == "after"
    theirs = timm_vit(class_token=class_token, global_pool=global_pool, fc_norm=after)
    ours = small(image_size=12, class_token=class_token, pooling=pooling, pool_norm=pool_norm)
    renames = ((r"head\.norm", "fc_norm" if after else "norm"), *timm_names.VIT)
    assert timm_names.difference(ours, theirs, renames) <= 1e-5


@pytest.mark.parametrize("representation", [None, 7])
def test_training_starts_from_equal_class_probabilities(representation: object) -> None:
    logits = small(representation=representation)(torch.randn(2, 3, 8, 8))
    assert logits.shape == (2, 5)
    assert not logits.any()


@torch.no_grad()
def test_initial_deviations_are_vit_jax_s() -> None:
    torch.manual_seed(0)
    model = small(width=192, heads=3, mlp_width=768, depth=1, representation=256, image_size=32)
    layer = model.layers[0]

    def xavier(inputs: int, outputs: int) -> float:
        return (2 / (inputs + outputs)) ** 0.5

    assert isinstance(layer, EncoderLayer) and model.head.representation is not None
    query, key, value = layer.attention.qkv.weight.chunk(3)
    # vit_jax has query, key and value as matrices of their own, so the fan-out of each is the width.
    expected = [
        (query, xavier(192, 192)),
        (key, xavier(192, 192)),
        (value, xavier(192, 192)),
        (layer.attention.output.weight, xavier(192, 192)),
        (layer.mlp.expand.weight, xavier(192, 768)),
        (layer.mlp.contract.weight, xavier(768, 192)),
        (layer.mlp.expand.bias, 1e-6),
        (model.embedding.patch.weight, (3 * 4 * 4) ** -0.5),
        (model.head.representation.weight, 192**-0.5),
        (model.embedding.position, 0.02),
    ]
    for tensor, deviation in expected:
        assert tensor.std().item() == pytest.approx(deviation, rel=0.06)
    zeros = (layer.attention.qkv.bias, layer.attention_norm.bias, model.embedding.class_token, model.head.classify.bias)
    assert not any(tensor.any() for tensor in zeros)
    assert torch.equal(layer.attention_norm.weight, torch.ones(192))


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    model = small(dropout=0.5, attention_dropout=0.5)
    randomise(model)
    images = torch.randn(2, 3, 8, 8)

    def differs(first: Tensor, second: Tensor) -> bool:
        return not torch.equal(first, second)

    assert differs(model(images), model(images))
    model.eval()
    assert not differs(model(images), model(images))
