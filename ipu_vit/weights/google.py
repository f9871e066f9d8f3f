"""Google's ViT weights: the `.npz` files of vit_jax, original (2020) and AugReg (2021).

The original ImageNet-21k files have a `pre_logits` layer before the head, the others have not;
both are read and written.
"""

from __future__ import annotations

from typing import Dict, Mapping

import torch
from torch import Tensor

from ipu_vit.weights.npz import Npz, write_npz
from ipu_vit.weights.table import CLASS_TOKEN, REPRESENTATION, Format, Layout, Row, TableFile, to_format

# Flax multiplies tokens from the left, so its kernels are (inputs, outputs); PyTorch's are (outputs, inputs).
LINEAR = Layout(lambda array: array.T, lambda ours, heads: ours.T)
CONVOLUTION = Layout(lambda array: array.permute(3, 2, 0, 1), lambda ours, heads: ours.permute(2, 3, 1, 0))
# Around attention, Flax keeps an axis for the heads; ours is one axis, heads outermost.
TO_HEADS = Layout(lambda array: array.flatten(1).T, lambda ours, heads: ours.T.reshape(len(ours), heads, -1))
FROM_HEADS = Layout(lambda array: array.flatten(0, 1).T, lambda ours, heads: ours.T.reshape(heads, -1, len(ours)))
BY_HEAD = Layout(lambda array: array.flatten(), lambda ours, heads: ours.reshape(heads, -1))

BLOCK = "Transformer/encoderblock_{i}/"
ATTENTION = BLOCK + "MultiHeadDotProductAttention_1/"
TABLE = (
    Row("embedding.class_token", "cls", "1 1 C"),
    Row("embedding.patch.weight", "embedding/kernel", "P P 3 C", CONVOLUTION),
    Row("embedding.patch.bias", "embedding/bias", "C"),
    Row("embedding.position", "Transformer/posembed_input/pos_embedding", "1 N C"),
    Row("layers.{i}.attention_norm.weight", BLOCK + "LayerNorm_0/scale", "C"),
    Row("layers.{i}.attention_norm.bias", BLOCK + "LayerNorm_0/bias", "C"),
    Row("layers.{i}.attention.qkv.weight", ATTENTION + "{query|key|value}/kernel", "C H C/H", TO_HEADS),
    Row("layers.{i}.attention.qkv.bias", ATTENTION + "{query|key|value}/bias", "H C/H", BY_HEAD),
    Row("layers.{i}.attention.output.weight", ATTENTION + "out/kernel", "H C/H C", FROM_HEADS),
    Row("layers.{i}.attention.output.bias", ATTENTION + "out/bias", "C"),
    Row("layers.{i}.mlp_norm.weight", BLOCK + "LayerNorm_2/scale", "C"),
    Row("layers.{i}.mlp_norm.bias", BLOCK + "LayerNorm_2/bias", "C"),
    Row("layers.{i}.mlp.expand.weight", BLOCK + "MlpBlock_3/Dense_0/kernel", "C M", LINEAR),
    Row("layers.{i}.mlp.expand.bias", BLOCK + "MlpBlock_3/Dense_0/bias", "M"),
    Row("layers.{i}.mlp.contract.weight", BLOCK + "MlpBlock_3/Dense_1/kernel", "M C", LINEAR),
    Row("layers.{i}.mlp.contract.bias", BLOCK + "MlpBlock_3/Dense_1/bias", "C"),
    Row("head.norm.weight", "Transformer/encoder_norm/scale", "C"),
    Row("head.norm.bias", "Transformer/encoder_norm/bias", "C"),
    Row("head.representation.weight", "pre_logits/kernel", "C R", LINEAR),
    Row("head.representation.bias", "pre_logits/bias", "R"),
    Row("head.classify.weight", "head/kernel", "F K", LINEAR),
    Row("head.classify.bias", "head/bias", "K"),
)
GOOGLE = Format("Google", TABLE, suffix=".npz", optional=(CLASS_TOKEN, REPRESENTATION))


def read_google(path: str) -> Dict[str, Tensor]:
    """All parameters of a Google `.npz` file, under our names, in float32."""
    file = TableFile(GOOGLE, Npz(path))
    return {name: file.read(name) for name in file.shapes}


def write_google(state: Mapping[str, Tensor], path: str, heads: int, dtype: torch.dtype = torch.float32) -> None:
    """Write parameters under our names as a Google `.npz` file, float32 or float16, compressed."""
    if dtype not in (torch.float32, torch.float16):
        raise ValueError(f"{dtype} has no place in a Google .npz; float32 and float16 have")
    write_npz(to_format(GOOGLE, state, heads, dtype), path)
