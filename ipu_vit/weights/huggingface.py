"""Hugging Face's ViT weights: a directory with `config.json` and `model.safetensors`, or older or sharded files.

The names are those of transformers 4, which transformers 5 writes too; in memory the latter has
other ones, which a state dict saved by hand shows. Hybrids (`ViTHybridModel`, on a BiT ResNet) are read
only: transformers 5 no longer has them.
"""

from __future__ import annotations

import os
from typing import Any, Dict, Mapping, Optional

import torch
from torch import Tensor

from ipu_vit.errors import UserError
from ipu_vit.weights.notes import Notes, checked_notes, read_json, write_json
from ipu_vit.weights.parameters import CLASSIFY, REPRESENTATION, model_sizes
from ipu_vit.weights.safetensors_file import write_safetensors
from ipu_vit.weights.shapes import shapes_of
from ipu_vit.weights.table import Format, modules, to_format

OLD = "vit.encoder.layer.{i}."
NEW = "vit.layers.{i}."
BACKBONE = "vit.embeddings.patch_embeddings.backbone.bit."
OUR_UNIT, UNIT = "embedding.stem.stages.{s}.{u}.", BACKBONE + "encoder.stages.{s}.layers.{u}."
OUR_FIRST, FIRST = "embedding.stem.stages.{s}.0.", BACKBONE + "encoder.stages.{s}.layers.0."
RESNET = modules(
    ("embedding.stem.root", BACKBONE + "embedder.convolution"),
    ("embedding.stem.root_norm", BACKBONE + "embedder.norm"),
    (OUR_FIRST + "projection", FIRST + "downsample.conv"),
    (OUR_FIRST + "projection_norm", FIRST + "downsample.norm"),
    *((OUR_UNIT + f"conv{i}", UNIT + f"conv{i}") for i in (1, 2, 3)),
    *((OUR_UNIT + f"norm{i}", UNIT + f"norm{i}") for i in (1, 2, 3)),
    written=False,
)
TABLE = RESNET + modules(
    ("embedding.class_token", "vit.embeddings.cls_token"),
    ("embedding.position", "vit.embeddings.position_embeddings"),
    ("embedding.patch", "vit.embeddings.patch_embeddings.projection"),
    ("layers.{i}.attention_norm", OLD + "layernorm_before", NEW + "layernorm_before"),
    ("layers.{i}.attention.qkv", OLD + "attention.attention.{query|key|value}", NEW + "attention.{q|k|v}_proj"),
    ("layers.{i}.attention.output", OLD + "attention.output.dense", NEW + "attention.o_proj"),
    ("layers.{i}.mlp_norm", OLD + "layernorm_after", NEW + "layernorm_after"),
    ("layers.{i}.mlp.expand", OLD + "intermediate.dense", NEW + "mlp.fc1"),
    ("layers.{i}.mlp.contract", OLD + "output.dense", NEW + "mlp.fc2"),
    ("head.norm", "vit.layernorm"),
    ("head.representation", "vit.pooler.dense"),
    ("head.classify", "classifier"),
)
HUGGING_FACE = Format("Hugging Face", TABLE, prefix=r"vit\.")


def read_config(path: str) -> Notes:
    """What `config.json` beside the file at `path` says of the model."""
    path = os.path.join(os.path.dirname(path), "config.json")
    config = read_json(path)
    if "hidden_act" in config and config["hidden_act"] != "gelu":
        raise UserError(f"{path} has hidden_act={config['hidden_act']!r}; 'gelu' is accepted")
    # These classes ignore the pooler that some files have.
    classifies = config.get("architectures") in (["ViTForImageClassification"], ["ViTHybridForImageClassification"])
    return checked_notes(
        path,
        config.get("num_attention_heads"),
        config.get("layer_norm_eps"),
        (REPRESENTATION,) if classifies else (),
    )


def write_huggingface(
    state: Mapping[str, Tensor], folder: str, heads: Optional[int], epsilon: float, dtype: torch.dtype = torch.float32
) -> None:
    """Write parameters under our names as a directory that `transformers` loads.

    With classes it is for `ViTForImageClassification`, without for `ViTModel`. Raises UserError for
    a representation before the classes, which neither class has.
    """
    if f"{REPRESENTATION}.weight" in state and f"{CLASSIFY}.weight" in state:
        raise UserError(
            f"{REPRESENTATION} cannot be written: transformers has no tanh layer before the classes of a ViT; "
            f"google, mmpretrain and onnx have a place for it"
        )
    tensors = to_format(HUGGING_FACE, state, heads, dtype)
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror or error}") from error
    write_json(_config(state, heads, epsilon, dtype), os.path.join(folder, "config.json"))
    write_safetensors(tensors, os.path.join(folder, "model.safetensors"))


def _config(state: Mapping[str, Tensor], heads: Optional[int], epsilon: float, dtype: torch.dtype) -> Dict[str, Any]:
    sizes = model_sizes(shapes_of(state))
    classes = sizes.get("classes")
    config: Dict[str, Any] = {
        "architectures": ["ViTModel" if classes is None else "ViTForImageClassification"],
        "model_type": "vit",
        "image_size": sizes["image_size"],
        "patch_size": sizes["patch_size"],
        "num_channels": 3,
        "hidden_size": sizes["width"],
        "num_hidden_layers": sizes["depth"],
        "num_attention_heads": heads,
        "intermediate_size": sizes["mlp_width"],
        "hidden_act": "gelu",
        "layer_norm_eps": epsilon,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "qkv_bias": True,
        "torch_dtype": str(dtype).replace("torch.", ""),
    }
    if "representation" in sizes:
        config["pooler_output_size"] = sizes["representation"]
        config["pooler_act"] = "tanh"
    if classes is not None:  # transformers counts them by their names
        config["id2label"] = {str(i): f"LABEL_{i}" for i in range(classes)}
        config["label2id"] = {f"LABEL_{i}": i for i in range(classes)}
    return config
