"""Our models' weights under timm's names, for comparing the two."""

from __future__ import annotations

import re
from typing import Any, Dict, Sequence, Tuple

import reference_models
from reference_models import randomise
from torch import Tensor, nn

Renames = Sequence[Tuple[str, str]]

VIT: Renames = (
    (r"embedding\.patch", "patch_embed.proj"),
    (r"embedding\.class_token", "cls_token"),
    (r"embedding\.position", "pos_embed"),
    (r"layers\.", "blocks."),
    (r"attention_norm", "norm1"),
    (r"attention\.qkv", "attn.qkv"),
    (r"attention\.output", "attn.proj"),
    (r"mlp_norm", "norm2"),
    (r"mlp\.expand", "mlp.fc1"),
    (r"mlp\.contract", "mlp.fc2"),
    (r"head\.norm", "norm"),
    (r"head\.classify", "head"),
)
HYBRID: Renames = (
    (r"embedding\.stem\.root_norm", "patch_embed.backbone.stem.norm"),
    (r"embedding\.stem\.root", "patch_embed.backbone.stem.conv"),
    (r"embedding\.stem\.stages\.(\d+)\.(\d+)", r"patch_embed.backbone.stages.\1.blocks.\2"),
    (r"projection_norm", "downsample.norm"),
    (r"projection", "downsample.conv"),
    *VIT,
)
STEM_ALONE: Renames = (
    (r"embedding\.stem\.root_norm", "patch_embed.backbone.norm"),
    (r"embedding\.stem\.root", "patch_embed.backbone.conv"),
    *VIT,
)
MIXER: Renames = (
    (r"embedding\.patch", "stem.proj"),
    (r"layers\.", "blocks."),
    (r"tokens_norm", "norm1"),
    (r"tokens_mlp\.expand", "mlp_tokens.fc1"),
    (r"tokens_mlp\.contract", "mlp_tokens.fc2"),
    (r"mlp_norm", "norm2"),
    (r"mlp\.expand", "mlp_channels.fc1"),
    (r"mlp\.contract", "mlp_channels.fc2"),
    (r"head\.norm", "norm"),
    (r"head\.classify", "head"),
)


def difference(ours: nn.Module, theirs: nn.Module, renames: Renames, image_size: int = 12) -> float:
    """The largest difference of two models' logits when theirs has random weights of ours."""
    randomise(ours)
    theirs.load_state_dict(_renamed(ours.state_dict(), renames))
    return reference_models.difference(ours, theirs, image_size)


def _renamed(state: Dict[str, Any], renames: Renames) -> Dict[str, Tensor]:
    renamed = {}
    for name, tensor in state.items():
        for ours, theirs in renames:
            name = re.sub(ours, theirs, name)
        renamed[name] = tensor
    return renamed
