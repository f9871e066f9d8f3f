"""mmclassification's (0.x) and mmpretrain's (1.x) ViT weights.

Both have the same names: those of `VisionTransformer` under `backbone.`, and of
`VisionTransformerClsHead` under `head.`. `LinearClsHead`, which some fine-tunes have in its place,
calls its only layer `fc`. A backbone saved alone has no prefix.
"""

from __future__ import annotations

from ipu_vit.weights.parameters import CLASS_TOKEN, CLASSIFY, REPRESENTATION
from ipu_vit.weights.table import Format, modules

LAYER = "backbone.layers.{i}."
TABLE = modules(
    ("embedding.class_token", "backbone.cls_token"),
    ("embedding.position", "backbone.pos_embed"),
    ("embedding.patch", "backbone.patch_embed.projection"),
    ("layers.{i}.attention_norm", LAYER + "ln1"),
    ("layers.{i}.attention.qkv", LAYER + "attn.qkv"),
    ("layers.{i}.attention.output", LAYER + "attn.proj"),
    ("layers.{i}.mlp_norm", LAYER + "ln2"),
    ("layers.{i}.mlp.expand", LAYER + "ffn.layers.0.0"),
    ("layers.{i}.mlp.contract", LAYER + "ffn.layers.1"),
    ("head.norm", "backbone.ln1", "backbone.ln2"),
    ("head.representation", "head.layers.pre_logits"),
    ("head.classify", "head.layers.head", "head.fc"),
)
MMPRETRAIN = Format(
    "mmpretrain",
    TABLE,
    optional=(CLASS_TOKEN, REPRESENTATION, CLASSIFY),
    prefix=r"backbone\.",
    norm_of_mean="backbone.ln2",
)
