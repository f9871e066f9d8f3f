"""torchvision's ViT weights: state dicts of `torchvision.models.VisionTransformer`."""

from __future__ import annotations

from ipu_vit.weights.table import Format, modules

LAYER = "encoder.layers.encoder_layer_{i}."
TABLE = modules(
    ("embedding.class_token", "class_token"),
    ("embedding.position", "encoder.pos_embedding"),
    ("embedding.patch", "conv_proj"),
    ("layers.{i}.attention_norm", LAYER + "ln_1"),
    ("layers.{i}.attention.qkv.weight", LAYER + "self_attention.in_proj_weight"),
    ("layers.{i}.attention.qkv.bias", LAYER + "self_attention.in_proj_bias"),
    ("layers.{i}.attention.output", LAYER + "self_attention.out_proj"),
    ("layers.{i}.mlp_norm", LAYER + "ln_2"),
    ("layers.{i}.mlp.expand", LAYER + "mlp.0", LAYER + "mlp.linear_1"),  # the published files have the second
    ("layers.{i}.mlp.contract", LAYER + "mlp.3", LAYER + "mlp.linear_2"),
    ("head.norm", "encoder.ln"),
    ("head.representation", "heads.pre_logits"),
    ("head.classify", "heads.head"),
)
TORCHVISION = Format("torchvision", TABLE)
