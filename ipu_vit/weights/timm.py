"""timm's ViT weights: state dicts of `timm.models.VisionTransformer`, and DeiT's, which are the same."""

from __future__ import annotations

from ipu_vit.weights.table import CLASS_TOKEN, CLASSIFY, REPRESENTATION, Format, modules

TABLE = modules(
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
) + modules(("head.representation", "pre_logits.fc"), written=False)  # timm dropped it in 0.8

TIMM = Format(
    "timm",
    TABLE,
    optional=(CLASS_TOKEN, REPRESENTATION, CLASSIFY),
    remarks={"fc_norm.weight": "fc_norm, which timm has after the mean of the patches, is read as head.norm"},
)
