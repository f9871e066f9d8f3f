"""Google's weights: `.npz` files of vit_jax (2020–22) and of big_vision (2022 on), which succeeds it.

Both write the arrays of a Flax model under its modules' names, and differ in their numbers: what vit_jax
published was made when Flax counted all modules of a block together, later Flax counts each kind by itself.
vit_jax's own ResNets and Mixers have names without such numbers, or with the same.

The files differ in what they have: a `pre_logits` layer before the head (original ImageNet-21k) or none (what was
fine-tuned from it, AugReg, SAM), a class token or none (big_vision pools the mean by default), a head or none,
learnt positions or fixed ones, which are not in the file (big_vision's `sincos2d`).
"""

from __future__ import annotations

import re
from typing import Dict, Mapping, Optional, Tuple

import torch
from torch import Tensor

from ipu_vit.weights.container import Container, Entry
from ipu_vit.weights.npz import write_npz
from ipu_vit.weights.parameters import CLASS_TOKEN, CLASSIFY, POSITION, REPRESENTATION, has_attention
from ipu_vit.weights.table import Format, Layout, Row, to_format

# Flax multiplies tokens from the left, so its kernels are (inputs, outputs); PyTorch's are (outputs, inputs).
LINEAR = Layout(lambda array: array.T, lambda ours, heads: ours.T)
CONVOLUTION = Layout(lambda array: array.permute(3, 2, 0, 1), lambda ours, heads: ours.permute(2, 3, 1, 0))
# Around attention, Flax keeps an axis for the heads; ours is one axis, heads outermost.
TO_HEADS = Layout(lambda array: array.flatten(1).T, lambda ours, heads: ours.T.reshape(len(ours), heads, -1))
FROM_HEADS = Layout(lambda array: array.flatten(0, 1).T, lambda ours, heads: ours.T.reshape(heads, -1, len(ours)))
BY_HEAD = Layout(lambda array: array.flatten(), lambda ours, heads: ours.reshape(heads, -1))

# Older versions of Flax kept parameters under `target` of the optimizer; models of images and text have them in `img`.
PREFIX = r"(?:opt/target/|params/)?(?:img/)?"
POOLING = "attention pooling (MAP head)"
FOREIGN = {r"MAPHead_0/": POOLING, r"probe$": POOLING}


def _norm(ours: str, theirs: str, shape: str = "C") -> Tuple[Row, Row]:
    return Row(ours + ".weight", theirs + "/scale", shape), Row(ours + ".bias", theirs + "/bias", shape)


def _dense(ours: str, theirs: str, inputs: str, outputs: str) -> Tuple[Row, Row]:
    return (
        Row(ours + ".weight", theirs + "/kernel", f"{inputs} {outputs}", LINEAR),
        Row(ours + ".bias", theirs + "/bias", outputs),
    )


def _convolution(ours: str, theirs: str, size: str, inputs: str, outputs: str) -> Row:
    return Row(ours + ".weight", theirs + "/kernel", f"{size} {size} {inputs} {outputs}", CONVOLUTION)


OUR_UNIT, UNIT = "embedding.stem.stages.{s}.{u}.", "block{s+1}/unit{u+1}/"
OUR_FIRST, FIRST = "embedding.stem.stages.{s}.0.", "block{s+1}/unit1/"
RESNET = (
    _convolution("embedding.stem.root", "conv_root", "7", "3", "W0"),
    *_norm("embedding.stem.root_norm", "gn_root", "W0"),
    _convolution(OUR_FIRST + "projection", FIRST + "conv_proj", "1", "{in}", "4W{s}"),
    *_norm(OUR_FIRST + "projection_norm", FIRST + "gn_proj", "4W{s}"),
    _convolution(OUR_UNIT + "conv1", UNIT + "conv1", "1", "{in}", "W{s}"),
    *_norm(OUR_UNIT + "norm1", UNIT + "gn1", "W{s}"),
    _convolution(OUR_UNIT + "conv2", UNIT + "conv2", "3", "W{s}", "W{s}"),
    *_norm(OUR_UNIT + "norm2", UNIT + "gn2", "W{s}"),
    _convolution(OUR_UNIT + "conv3", UNIT + "conv3", "1", "W{s}", "4W{s}"),
    *_norm(OUR_UNIT + "norm3", UNIT + "gn3", "4W{s}"),
)


def _vit(position: Tuple[str, ...], attention: str, mlp_norm: str, mlp: str) -> Tuple[Row, ...]:
    """The table of ViT; what differs are the places of the positions, and modules' numbers in a block."""
    block = "Transformer/encoderblock_{i}/"
    attention, mlp = f"{block}MultiHeadDotProductAttention_{attention}/", f"{block}MlpBlock_{mlp}/"
    return (
        Row("embedding.class_token", "cls", "1 1 C"),
        _convolution("embedding.patch", "embedding", "P", "{features}", "C"),
        Row("embedding.patch.bias", "embedding/bias", "C"),
        Row("embedding.position", position[0], "1 N C", also=position[1:]),
        *_norm("layers.{i}.attention_norm", block + "LayerNorm_0"),
        Row("layers.{i}.attention.qkv.weight", attention + "{query|key|value}/kernel", "C H C/H", TO_HEADS),
        Row("layers.{i}.attention.qkv.bias", attention + "{query|key|value}/bias", "H C/H", BY_HEAD),
        Row("layers.{i}.attention.output.weight", attention + "out/kernel", "H C/H C", FROM_HEADS),
        Row("layers.{i}.attention.output.bias", attention + "out/bias", "C"),
        *_norm("layers.{i}.mlp_norm", block + f"LayerNorm_{mlp_norm}"),
        *_dense("layers.{i}.mlp.expand", mlp + "Dense_0", "C", "M"),
        *_dense("layers.{i}.mlp.contract", mlp + "Dense_1", "M", "C"),
        *_norm("head.norm", "Transformer/encoder_norm"),
        *_dense("head.representation", "pre_logits", "C", "R"),
        *_dense("head.classify", "head", "F", "K"),
    )


OLD_POSITION = "Transformer/posembed_input/pos_embedding"
GOOGLE = Format(
    "Google",
    (*RESNET, *_vit((OLD_POSITION,), attention="1", mlp_norm="2", mlp="3")),
    suffix=".npz",
    prefix=PREFIX,
    optional=(CLASS_TOKEN, REPRESENTATION, CLASSIFY),
    foreign=FOREIGN,
)
BIG_VISION = Format(
    "big_vision",
    (
        *RESNET,
        *_vit(("pos_embedding", "Transformer/pos_embedding", OLD_POSITION), attention="0", mlp_norm="1", mlp="0"),
    ),
    suffix=".npz",
    prefix=PREFIX,
    optional=(CLASS_TOKEN, POSITION, REPRESENTATION, CLASSIFY),
    foreign=FOREIGN,
)

MIXER_BLOCK = "MixerBlock_{i}/"
GOOGLE_MIXER = Format(
    "Google",
    (
        _convolution("embedding.patch", "stem", "P", "3", "C"),
        Row("embedding.patch.bias", "stem/bias", "C"),
        *_norm("layers.{i}.tokens_norm", MIXER_BLOCK + "LayerNorm_0"),
        *_dense("layers.{i}.tokens_mlp.expand", MIXER_BLOCK + "token_mixing/Dense_0", "N", "T"),
        *_dense("layers.{i}.tokens_mlp.contract", MIXER_BLOCK + "token_mixing/Dense_1", "T", "N"),
        *_norm("layers.{i}.mlp_norm", MIXER_BLOCK + "LayerNorm_1"),
        *_dense("layers.{i}.mlp.expand", MIXER_BLOCK + "channel_mixing/Dense_0", "C", "M"),
        *_dense("layers.{i}.mlp.contract", MIXER_BLOCK + "channel_mixing/Dense_1", "M", "C"),
        *_norm("head.norm", "pre_head_layer_norm"),
        *_dense("head.classify", "head", "C", "K"),
    ),
    model="Mixer",
    suffix=".npz",
    prefix=PREFIX,
    optional=(CLASSIFY,),
)

_STACKED = re.compile(rf"({PREFIX}Transformer/encoderblock)/(.+)")
_GROUP_NORM = re.compile(r"(?:.*/)?gn(?:\d+|_root|_proj)/(?:scale|bias)")
_MOST_LAYERS = 1000


class FlaxFile:
    """An `.npz` file of a Flax model, where each layer has arrays of its own and each norm's have one axis.

    big_vision with `scan=True` has one array for all layers; vit_jax's group norms are (1, 1, 1, C).
    """

    def __init__(self, file: Container) -> None:
        self.path, self.others = file.path, file.others
        self.entries: Dict[str, Entry] = {}
        self._file = file
        self._places: Dict[str, Tuple[str, int]] = {}
        self._stacks: Dict[str, Tensor] = {}
        for name, entry in file.entries.items():
            stacked = _STACKED.fullmatch(name)
            if stacked and entry.shape and entry.shape[0] <= _MOST_LAYERS:
                for i in range(entry.shape[0]):
                    self.entries[f"{stacked[1]}_{i}/{stacked[2]}"] = entry._replace(shape=entry.shape[1:])
                    self._places[f"{stacked[1]}_{i}/{stacked[2]}"] = name, i
            elif _GROUP_NORM.fullmatch(name) and entry.shape[:-1] == (1, 1, 1):
                self.entries[name] = entry._replace(shape=entry.shape[-1:])
            else:
                self.entries[name] = entry

    def read(self, name: str) -> Tensor:
        """One tensor, in float32."""
        if name not in self._places:
            return self._file.read(name).reshape(self.entries[name].shape)
        stack, i = self._places[name]
        if stack not in self._stacks:  # kept: the next layer is in it too
            self._stacks[stack] = self._file.read(stack)
        return self._stacks[stack][i]


def write_google(
    state: Mapping[str, Tensor], path: str, heads: Optional[int], dtype: torch.dtype = torch.float32
) -> None:
    """Write parameters under our names as a Google `.npz` file, float32 or float16, compressed.

    `heads` means nothing to a Mixer's. Raises UserError for what has no place in the layout.
    """
    if dtype not in (torch.float32, torch.float16):
        raise ValueError(f"{dtype} has no place in a Google .npz; float32 and float16 have")
    if has_attention(state):
        write_npz(to_format(GOOGLE, state, heads, dtype), path)
    else:
        write_npz(to_format(GOOGLE_MIXER, state, None, dtype), path)
