"""Small models of other libraries, of the same sizes as a small one of ours, and what tests do with both."""

from __future__ import annotations

from functools import partial
from typing import Any, Dict, Sequence

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from ipu_vit.weights.formats import open_weights

SIZES: Dict[str, Any] = dict(image_size=12, patch_size=4, width=12, depth=2, heads=3, mlp_width=20, classes=5)


@st.composite
def tiny_sizes(draw: Any) -> Dict[str, Any]:
    """Sizes of a tiny model of ours, as its keywords; a `representation` or none."""
    heads, patch_size = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    return dict(
        heads=heads,
        width=heads * draw(st.integers(1, 4)),
        depth=draw(st.integers(1, 12)),
        mlp_width=draw(st.integers(1, 9)),
        classes=draw(st.integers(1, 6)),
        patch_size=patch_size,
        image_size=patch_size * draw(st.integers(1, 3)),
        representation=draw(st.one_of(st.none(), st.integers(1, 6))),
    )


def transformers_config(sizes: Dict[str, Any], **changes: Any) -> Any:
    """Of `ViTModel` and `ViTForImageClassification`, for our sizes; `changes` are keywords of `ViTConfig`."""
    config = dict(
        image_size=sizes["image_size"],
        patch_size=sizes["patch_size"],
        hidden_size=sizes["width"],
        num_hidden_layers=sizes["depth"],
        num_attention_heads=sizes["heads"],
        intermediate_size=sizes["mlp_width"],
        num_labels=sizes["classes"],
        hidden_act="gelu",
        layer_norm_eps=1e-6,
    )
    return pytest.importorskip("transformers").ViTConfig(**{**config, **changes})


def torchvision_vit(**changes: Any) -> nn.Module:
    """`torchvision.models.VisionTransformer`; skips where there is no torchvision that works."""
    try:
        from torchvision.models.vision_transformer import VisionTransformer
    except Exception:  # a torchvision that does not fit its PyTorch has many ways to fail
        pytest.skip("needs torchvision")
    sizes = dict(image_size=12, patch_size=4, num_layers=2, num_heads=3, hidden_dim=12, mlp_dim=20, num_classes=5)
    model: nn.Module = VisionTransformer(**{**sizes, **changes})
    return model


def timm_vit(**changes: Any) -> Any:
    """`timm.models.VisionTransformer`."""
    sizes = dict(img_size=12, patch_size=4, embed_dim=12, depth=2, num_heads=3, mlp_ratio=20 / 12, num_classes=5)
    return pytest.importorskip("timm").models.VisionTransformer(**{**sizes, **changes})


def timm_hybrid(resnet_depths: Sequence[int], patch_size: int, **changes: Any) -> Any:
    """timm's hybrid for 32 pixels, on a ResNet of width 32; its norms have vit_jax's epsilon, not timm's."""
    pytest.importorskip("timm")
    from timm.layers import HybridEmbed, StdConv2dSame
    from timm.models.resnetv2 import ResNetV2, create_resnetv2_stem

    common: Any = dict(stem_type="same", preact=False, conv_layer=partial(StdConv2dSame, eps=1e-8))
    if resnet_depths:
        channels = [128 * 2**stage for stage in range(len(resnet_depths))]
        backbone = ResNetV2(resnet_depths, channels, num_classes=0, global_pool="", stem_chs=32, **common)
    else:
        backbone = create_resnetv2_stem(3, 32, **common)
    embedding = partial(HybridEmbed, backbone=backbone)
    model = timm_vit(**{"img_size": 32, "patch_size": patch_size, "embed_layer": embedding, **changes})
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            module.eps = 1e-6
    return model


def timm_mixer(**changes: Any) -> Any:
    """`timm.models.MlpMixer`, whose perceptrons are 8 wide across tokens and 64 for each token."""
    sizes = dict(num_classes=5, img_size=12, patch_size=4, num_blocks=2, embed_dim=16)
    return pytest.importorskip("timm").models.mlp_mixer.MlpMixer(**{**sizes, **changes})


@torch.no_grad()
def randomise(module: nn.Module, std: float = 0.4, seed: int = 5) -> None:
    """Random weights, large enough that images differ in their logits."""
    torch.manual_seed(seed)
    for parameter in module.parameters():
        parameter.normal_(std=std)
    for norm in module.modules():
        if isinstance(norm, (nn.LayerNorm, nn.GroupNorm)):
            norm.weight.add_(1)


@torch.no_grad()
def difference(ours: nn.Module, theirs: nn.Module, image_size: int = 12) -> float:
    """The largest difference of two models' logits, by images that both tell apart."""
    images = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(3))
    expected = theirs.eval()(images)
    expected = getattr(expected, "logits", expected)
    assert (expected[0] - expected[1]).abs().max() > 0.1, "logits that ignore the image would prove nothing"
    return float((ours.eval()(images) - expected).abs().max())


def state_of(path: str) -> Dict[str, Tensor]:
    """Everything in a file of weights, under our names."""
    file = open_weights(path)
    return {name: file.read(name) for name in file.shapes}
