"""The models of the literature by name: their sizes, and the parameters they are published with.

Sources: ViT (Dosovitskiy et al. 2020, table 1) and AugReg (Steiner et al. 2021, arXiv 2106.10270,
table 2) with vit_jax's `configs/models.py`; Mixer (Tolstikhin et al. 2021, table 1). The numbers of
parameters are those of timm's benchmark tables, for 1000 classes and 224 pixels.
"""

from __future__ import annotations

from typing import Any, Dict, NamedTuple


class NamedModel(NamedTuple):
    """A model of the literature."""

    #: published number of parameters in millions, 1000 classes, 224 pixels
    millions: float
    #: the settings of `model:` that make it
    settings: Dict[str, Any]


TI = {"width": 192, "depth": 12, "heads": 3, "mlp_width": 768}
S = {"width": 384, "depth": 12, "heads": 6, "mlp_width": 1536}
B = {"width": 768, "depth": 12, "heads": 12, "mlp_width": 3072}
L = {"width": 1024, "depth": 24, "heads": 16, "mlp_width": 4096}
H = {"width": 1280, "depth": 32, "heads": 16, "mlp_width": 5120}

MIXER_S = {"width": 512, "depth": 8, "tokens_mlp_width": 256, "mlp_width": 2048}
MIXER_B = {"width": 768, "depth": 12, "tokens_mlp_width": 384, "mlp_width": 3072}
MIXER_L = {"width": 1024, "depth": 24, "tokens_mlp_width": 512, "mlp_width": 4096}


def _vit(sizes: Dict[str, int], patch_size: int) -> Dict[str, Any]:
    return {"kind": "vit", "patch_size": patch_size, **sizes}


def _hybrid(sizes: Dict[str, int], patch_size: int, *resnet_depths: int) -> Dict[str, Any]:
    return {"kind": "hybrid", "patch_size": patch_size, "resnet_depths": list(resnet_depths), **sizes}


def _mixer(sizes: Dict[str, int], patch_size: int) -> Dict[str, Any]:
    return {"kind": "mixer", "patch_size": patch_size, "class_token": False, "pooling": "mean", **sizes}


# The number after the slash is how many pixels a token is wide; the patches of hybrids are of the ResNet's features.
MODELS: Dict[str, NamedModel] = {
    "ViT-Ti/16": NamedModel(5.72, _vit(TI, 16)),
    "ViT-S/32": NamedModel(22.88, _vit(S, 32)),
    "ViT-S/16": NamedModel(22.05, _vit(S, 16)),
    "ViT-B/32": NamedModel(88.22, _vit(B, 32)),
    "ViT-B/16": NamedModel(86.57, _vit(B, 16)),
    "ViT-B/8": NamedModel(86.58, _vit(B, 8)),
    "ViT-L/32": NamedModel(306.54, _vit(L, 32)),
    "ViT-L/16": NamedModel(304.33, _vit(L, 16)),
    "ViT-L/14": NamedModel(304.20, _vit(L, 14)),
    "ViT-H/14": NamedModel(632.05, _vit(H, 14)),
    # vit_jax calls it Ti_16, but its stem makes 4 pixels one feature, and a patch has 8: so tokens are 32 wide.
    "R+ViT-Ti/16": NamedModel(6.34, _hybrid(TI, 8)),
    "R26+ViT-S/32": NamedModel(36.43, _hybrid(S, 1, 2, 2, 2, 2)),
    "R26+ViT-B/32": NamedModel(101.38, _hybrid(B, 1, 2, 2, 2, 2)),
    "R50+ViT-B/16": NamedModel(98.66, _hybrid(B, 1, 3, 4, 9)),
    "R50+ViT-L/32": NamedModel(328.99, _hybrid(L, 1, 3, 4, 6, 3)),
    "Mixer-S/32": NamedModel(19.10, _mixer(MIXER_S, 32)),
    "Mixer-S/16": NamedModel(18.53, _mixer(MIXER_S, 16)),
    "Mixer-B/32": NamedModel(60.29, _mixer(MIXER_B, 32)),
    "Mixer-B/16": NamedModel(59.88, _mixer(MIXER_B, 16)),
    "Mixer-L/32": NamedModel(206.94, _mixer(MIXER_L, 32)),
    "Mixer-L/16": NamedModel(208.20, _mixer(MIXER_L, 16)),
}
