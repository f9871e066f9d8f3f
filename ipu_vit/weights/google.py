"""Google's ViT weights: the `.npz` files of vit_jax, original (2020) and AugReg (2021).

`TABLE` says everything about the layout and serves both directions. The original ImageNet-21k
files have a `pre_logits` layer before the head, the others have not; both are read and written.
"""

from __future__ import annotations

import re
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Tuple, Union

import numpy
import torch
from torch import Tensor

from ipu_vit.errors import UserError
from ipu_vit.weights.atomic import replacing
from ipu_vit.weights.npz import Npz
from ipu_vit.weights.shapes import Shape, listed


class Layout(NamedTuple):
    """How an array of the file becomes a tensor of ours, and back (which needs the number of heads)."""

    read: Callable[[Tensor], Tensor]
    write: Callable[[Tensor, int], Tensor]


# Flax multiplies tokens from the left, so its kernels are (inputs, outputs); PyTorch's are (outputs, inputs).
SAME = Layout(lambda array: array, lambda ours, heads: ours)
LINEAR = Layout(lambda array: array.T, lambda ours, heads: ours.T)
CONVOLUTION = Layout(lambda array: array.permute(3, 2, 0, 1), lambda ours, heads: ours.permute(2, 3, 1, 0))
# Around attention, Flax keeps an axis for the heads; ours is one axis, heads outermost.
TO_HEADS = Layout(lambda array: array.flatten(1).T, lambda ours, heads: ours.T.reshape(len(ours), heads, -1))
FROM_HEADS = Layout(lambda array: array.flatten(0, 1).T, lambda ours, heads: ours.T.reshape(heads, -1, len(ours)))
BY_HEAD = Layout(lambda array: array.flatten(), lambda ours, heads: ours.reshape(heads, -1))


class Row(NamedTuple):
    """One parameter of ours, and the array or arrays of the file that hold it.

    `{i}` is the number of the layer. `{qkv}` stands for query, key and value: three arrays in the
    file, one tensor of ours that has them one after another. `shape` is the array's, in letters.
    """

    ours: str
    google: str
    shape: str
    layout: Layout = SAME

    def numbered(self, i: int) -> Row:
        """The row for layer `i`."""
        return self._replace(ours=self.ours.replace("{i}", str(i)), google=self.google.replace("{i}", str(i)))

    def arrays(self) -> List[str]:
        """The array or arrays of the file."""
        if "{qkv}" not in self.google:
            return [self.google]
        return [self.google.replace("{qkv}", part) for part in ("query", "key", "value")]


# C width, P patch size, N tokens, H heads, M MLP width, R representation, F features of the head, K classes.
BLOCK = "Transformer/encoderblock_{i}/"
ATTENTION = BLOCK + "MultiHeadDotProductAttention_1/"
TABLE = (
    Row("embedding.class_token", "cls", "1 1 C"),
    Row("embedding.patch.weight", "embedding/kernel", "P P 3 C", CONVOLUTION),
    Row("embedding.patch.bias", "embedding/bias", "C"),
    Row("embedding.position", "Transformer/posembed_input/pos_embedding", "1 N C"),
    Row("layers.{i}.attention_norm.weight", BLOCK + "LayerNorm_0/scale", "C"),
    Row("layers.{i}.attention_norm.bias", BLOCK + "LayerNorm_0/bias", "C"),
    Row("layers.{i}.attention.qkv.weight", ATTENTION + "{qkv}/kernel", "C H C/H", TO_HEADS),
    Row("layers.{i}.attention.qkv.bias", ATTENTION + "{qkv}/bias", "H C/H", BY_HEAD),
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


class GoogleFile:
    """An opened file: names and shapes are known and agree with each other; no numbers are read yet."""

    format = "Google .npz"

    def __init__(self, path: str) -> None:
        self._npz = Npz(path)
        headers = self._npz.headers
        layers = (re.match(r"Transformer/encoderblock_(\d+)/", name) for name in headers)
        depth = len({layer[1] for layer in layers if layer})
        representation = any(name.startswith("pre_logits/") for name in headers)
        # At least one layer, so that a file without any is told what it lacks.
        rows = _rows(max(depth, 1), representation)
        arrays = [(name, row.shape) for row in rows for name in row.arrays()]

        missing = [name for name, _ in arrays if name not in headers]
        if missing:
            raise UserError(f"weights={path} is not a ViT in Google's layout: it lacks {listed(missing)}")
        sizes = _Sizes(representation)
        wrong = []
        for name, axes in arrays:
            found = headers[name].shape
            expected = sizes.expect(axes, found)
            if found != expected:
                wrong.append(f"{name} is {found} but {_shown(expected)} is expected")
        if wrong:
            raise UserError(f"weights={path} has shapes that do not fit each other: {listed(wrong)}")

        self._rows = {row.ours: row for row in rows}
        self.heads: Optional[int] = headers[ATTENTION.replace("{i}", "0") + "query/kernel"].shape[1]
        self.shapes: Dict[str, Shape] = {row.ours: self._shape(row) for row in rows}
        self.unused = tuple(sorted(set(headers) - {name for name, _ in arrays})) + self._npz.others

    @staticmethod
    def recognises(path: str) -> bool:
        """Whether the file is a zip archive whose first member is an array."""
        with open(path, "rb") as file:
            start = file.read(30)
            name = file.read(int.from_bytes(start[26:28], "little"))
        return start.startswith(b"PK\x03\x04") and name.endswith(b".npy")

    def read(self, name: str) -> Tensor:
        """One parameter under our name, in float32."""
        row = self._rows[name]
        return _join(row, [torch.from_numpy(self._npz.read(array)) for array in row.arrays()])

    def _shape(self, row: Row) -> Shape:
        shapes = (self._npz.headers[array].shape for array in row.arrays())
        return tuple(_join(row, [torch.empty(shape, device="meta") for shape in shapes]).shape)


def read_google(path: str) -> Dict[str, Tensor]:
    """All parameters of a Google `.npz` file, under our names, in float32."""
    file = GoogleFile(path)
    return {name: file.read(name) for name in file.shapes}


def write_google(state: Mapping[str, Tensor], path: str, heads: int, dtype: torch.dtype = torch.float32) -> None:
    """Write parameters under our names as a Google `.npz` file, float32 or float16, compressed."""
    if dtype not in (torch.float32, torch.float16):
        raise ValueError(f"{dtype} has no place in a Google .npz; float32 and float16 have")
    width = state["embedding.class_token"].shape[-1]
    if heads < 1 or width % heads:
        raise UserError(f"model.heads={heads} does not divide the width of the weights, {width}")
    depth = len({name.split(".")[1] for name in state if name.startswith("layers.")})
    arrays: Dict[str, Any] = {}
    for row in _rows(depth, representation="head.representation.weight" in state):
        ours = state[row.ours].detach().cpu().to(dtype)
        names = row.arrays()
        for name, part in zip(names, ours.chunk(len(names))):
            arrays[name] = row.layout.write(part, heads).contiguous().numpy()
    with replacing(path) as file:
        numpy.savez_compressed(file, **arrays)


def _rows(depth: int, representation: bool) -> List[Row]:
    """The table written out for a model of `depth` layers, in its order."""
    return [
        row.numbered(i)
        for row in TABLE
        if representation or not row.google.startswith("pre_logits/")
        for i in range(depth if "{i}" in row.ours else 1)
    ]


def _join(row: Row, arrays: List[Tensor]) -> Tensor:
    return torch.cat([row.layout.read(array) for array in arrays]).contiguous()


class _Sizes:
    """What the letters of the table stand for in one file: the first array that has a letter decides."""

    def __init__(self, representation: bool) -> None:
        self._sizes: Dict[str, int] = {}
        self._features = "R" if representation else "C"

    def expect(self, letters: str, found: Shape) -> Tuple[Union[int, str], ...]:
        """The shape that an array of such letters must have, given the arrays seen before it and its own."""
        axes = letters.replace("F", self._features).split()
        if len(axes) == len(found):
            for axis, size in zip(axes, found):
                if axis.isalpha() and size > 0:
                    self._sizes.setdefault(axis, size)
        return tuple(self._size(axis) for axis in axes)

    def _size(self, axis: str) -> Union[int, str]:
        if axis == "C/H" and {"C", "H"} <= set(self._sizes):
            size, rest = divmod(self._sizes["C"], self._sizes["H"])
            return f"{self._sizes['C']}/{self._sizes['H']}" if rest else size
        if axis.isdigit():
            return int(axis)
        known = self._sizes.get(axis)
        return axis if known is None else known


def _shown(shape: Tuple[Union[int, str], ...]) -> str:
    return f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"
