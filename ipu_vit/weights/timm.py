"""timm's weights: state dicts of `VisionTransformer`, with hybrids and DeiT's, and of `MlpMixer`."""

from __future__ import annotations

from typing import Dict, Mapping

import torch
from torch import Tensor

from ipu_vit.weights.parameters import CLASS_TOKEN, CLASSIFY, REPRESENTATION, has_attention, repeats_of
from ipu_vit.weights.table import Format, modules, to_format

BACKBONE = "patch_embed.backbone."
OUR_UNIT, UNIT = "embedding.stem.stages.{s}.{u}.", BACKBONE + "stages.{s}.blocks.{u}."
OUR_FIRST, FIRST = "embedding.stem.stages.{s}.0.", BACKBONE + "stages.{s}.blocks.0."
RESNET = modules(
    ("embedding.stem.root", BACKBONE + "stem.conv", BACKBONE + "conv"),  # the second is that of a stem alone
    ("embedding.stem.root_norm", BACKBONE + "stem.norm", BACKBONE + "norm"),
    (OUR_FIRST + "projection", FIRST + "downsample.conv"),
    (OUR_FIRST + "projection_norm", FIRST + "downsample.norm"),
    *((OUR_UNIT + f"conv{i}", UNIT + f"conv{i}") for i in (1, 2, 3)),
    *((OUR_UNIT + f"norm{i}", UNIT + f"norm{i}") for i in (1, 2, 3)),
)
TABLE = (
    *RESNET,
    *modules(
        ("embedding.class_token", "cls_token"),
        ("embedding.position", "pos_embed"),
        ("embedding.patch", "patch_embed.proj"),
        ("layers.{i}.attention_norm", "blocks.{i}.norm1"),
        ("layers.{i}.attention.qkv", "blocks.{i}.attn.qkv"),
        ("layers.{i}.attention.output", "blocks.{i}.attn.proj"),
        ("layers.{i}.mlp_norm", "blocks.{i}.norm2"),
        ("layers.{i}.mlp.expand", "blocks.{i}.mlp.fc1"),
        ("layers.{i}.mlp.contract", "blocks.{i}.mlp.fc2"),
        ("head.norm", "norm", "fc_norm"),
        ("head.classify", "head"),
    ),
    *modules(("head.representation", "pre_logits.fc"), written=False),  # timm dropped it in 0.8
)
TIMM = Format(
    "timm",
    TABLE,
    optional=(CLASS_TOKEN, REPRESENTATION, CLASSIFY),
    norm_of_mean="fc_norm",
    foreign={
        r"blocks\.\d+\.ls1\.": "layer scale",
        r"blocks\.\d+\.attn\.[qk]_norm\.": "norms of queries and keys",
        r"norm_pre\.": "a norm before the first layer",
        r"attn_pool\.": "attention pooling",
        r"reg_token$": "register tokens",
    },
)

TIMM_MIXER = Format(
    "timm",
    modules(
        ("embedding.patch", "stem.proj"),
        ("layers.{i}.tokens_norm", "blocks.{i}.norm1"),
        ("layers.{i}.tokens_mlp.expand", "blocks.{i}.mlp_tokens.fc1"),
        ("layers.{i}.tokens_mlp.contract", "blocks.{i}.mlp_tokens.fc2"),
        ("layers.{i}.mlp_norm", "blocks.{i}.norm2"),
        ("layers.{i}.mlp.expand", "blocks.{i}.mlp_channels.fc1"),
        ("layers.{i}.mlp.contract", "blocks.{i}.mlp_channels.fc2"),
        ("head.norm", "norm"),
        ("head.classify", "head"),
    ),
    model="Mixer",
    optional=(CLASSIFY,),
    foreign={r"stem\.norm\.": "a norm of the patches"},
)


def to_timm(state: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> Dict[str, Tensor]:
    """Parameters under our names as timm's state dict. Raises UserError for what has no place in it."""
    tensors = to_format(TIMM if has_attention(state) else TIMM_MIXER, state, dtype=dtype)
    if repeats_of(state).units == ():  # a stem alone is the whole backbone, not a part of it
        return {name.replace(BACKBONE + "stem.", BACKBONE): tensor for name, tensor in tensors.items()}
    return tensors
