"""ClassyVision's ViT checkpoints: `vision_transformer` with a `vision_transformer_head`.

The model is at `classy_state_dict`, `base_model`, `model`, parted in `trunk` and in `heads`, which
are filed under the block they follow and their own name, both at the user's choice.
"""

from __future__ import annotations

from ipu_vit.weights.parameters import CLASS_TOKEN, CLASSIFY, REPRESENTATION
from ipu_vit.weights.table import Format, Layout, Row, modules

# ClassyVision's tokens come first and its batch second.
TOKENS_FIRST = Layout(lambda array: array.transpose(0, 1), lambda ours, heads: ours.transpose(0, 1))

LAYER = "trunk.encoder.layers.layer_{i}."
HEAD = "heads.trunk_output.default_head.layers."
TABLE = (
    Row("embedding.position", "trunk.encoder.pos_embedding", "N 1 C", TOKENS_FIRST),
    *modules(
        ("embedding.class_token", "trunk.class_token"),
        ("embedding.patch", "trunk.conv_proj"),
        ("layers.{i}.attention_norm", LAYER + "ln_1"),
        ("layers.{i}.attention.qkv.weight", LAYER + "self_attention.in_proj_weight"),
        ("layers.{i}.attention.qkv.bias", LAYER + "self_attention.in_proj_bias"),
        ("layers.{i}.attention.output", LAYER + "self_attention.out_proj"),
        ("layers.{i}.mlp_norm", LAYER + "ln_2"),
        ("layers.{i}.mlp.expand", LAYER + "mlp.linear_1"),
        ("layers.{i}.mlp.contract", LAYER + "mlp.linear_2"),
        ("head.norm", "trunk.encoder.ln"),
        ("head.representation", HEAD + "pre_logits"),
        ("head.classify", HEAD + "head"),
    ),
)
CLASSYVISION = Format(
    "ClassyVision",
    TABLE,
    prefix=r"trunk\.|_?heads\.[^.]+\.[^.]+\.",
    optional=(CLASS_TOKEN, REPRESENTATION, CLASSIFY),
)
