"""A file read by a format's table."""

from __future__ import annotations

import re
from typing import Dict, List, Mapping, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor

from ipu_vit.errors import UserError
from ipu_vit.models.positions import grid_side
from ipu_vit.weights.container import Container, check_floating
from ipu_vit.weights.parameters import CLASS_TOKEN, POSITION, REPRESENTATION, STEM
from ipu_vit.weights.shapes import Shape, listed
from ipu_vit.weights.table import Format, Row


class TableFile:
    """A file opened by a table: names and shapes are known and agree with each other; no numbers are read yet."""

    def __init__(
        self,
        format: Format,
        file: Container,
        heads: Optional[int] = None,
        epsilon: Optional[float] = None,
        without: Sequence[str] = (),
    ) -> None:
        self.format = format.title
        self.epsilon: Optional[float] = format.epsilon if epsilon is None else epsilon
        self._file = file
        names: Dict[str, str] = {}  # in the file, by what they are without a prefix
        for name in file.entries:
            names.setdefault(format.plain(name), name)
        _refuse_foreign(format, file.path, names)
        absent = [part for part in (*format.optional, STEM) if not format.mentions(part, names)]
        if {CLASS_TOKEN, POSITION} & set(absent) == {CLASS_TOKEN} and not _is_grid(format, file, names):
            absent.remove(CLASS_TOKEN)  # its position is there
        rows = format.rows(format.repeats(names, STEM not in absent), [*without, *absent])
        spelt = {row.ours: _spelling(row, format, names) for row in rows}

        missing = [part for row in rows for part in spelt[row.ours] if format.plain(part) not in names]
        if missing:
            raise UserError(
                f"weights={file.path} is not a {format.model} in {format.name}'s layout: it lacks {listed(missing)}"
            )
        self._rows = {row.ours: row for row in rows}
        self._arrays = {ours: [names[format.plain(part)] for part in parts] for ours, parts in spelt.items()}
        sizes = Sizes(REPRESENTATION + ".weight" in self._rows)
        self._check(sizes)

        self.fixed_positions = POSITION in absent
        self.heads = sizes.known.get("H", heads)
        self.shapes: Dict[str, Shape] = {row.ours: self._shape(row) for row in rows}
        used = {name for arrays in self._arrays.values() for name in arrays}
        self.unused = (*sorted(set(file.entries) - used), *file.others)
        self.norms_mean = bool(format.norm_of_mean) and names.get(format.plain(f"{format.norm_of_mean}.weight")) in used

    def read(self, name: str) -> Tensor:
        """One parameter under our name, in float32."""
        return self._join(self._rows[name], [self._file.read(array) for array in self._arrays[name]])

    def _check(self, sizes: Sizes) -> None:
        wrong = []
        for ours, arrays in self._arrays.items():
            for name in arrays:
                entry = self._file.entries[name]
                expected = sizes.expect(self._rows[ours].shape, entry.shape)
                if entry.shape != expected:
                    wrong.append(f"{name} is {entry.shape} but {_shown(expected)} is expected")
                check_floating(self._file.path, name, entry)
        if wrong:
            raise UserError(f"weights={self._file.path} has shapes that do not fit each other: {listed(wrong)}")

    def _shape(self, row: Row) -> Shape:
        shapes = (self._file.entries[array].shape for array in self._arrays[row.ours])
        return tuple(self._join(row, [torch.empty(shape, device="meta") for shape in shapes]).shape)

    def _join(self, row: Row, arrays: List[Tensor]) -> Tensor:
        tensor = torch.cat([row.layout.read(array) for array in arrays]).contiguous()
        # Where positions are added before the class token is put first, it has none, which is as good as zeros.
        if row.ours == POSITION and CLASS_TOKEN in self._rows and grid_side(tensor.shape[1], class_token=False):
            tensor = torch.cat([torch.zeros_like(tensor[:, :1]), tensor], dim=1)
        return tensor


class Sizes:
    """What the letters of the table stand for in one file: the first array that has a letter decides."""

    def __init__(self, representation: bool) -> None:
        self.known: Dict[str, int] = {}
        self._features = "R" if representation else "C"

    def expect(self, letters: str, found: Shape) -> Tuple[Union[int, str], ...]:
        """The shape that an array of such letters must have, given the arrays seen before it and its own."""
        axes = letters.replace("F", self._features).split()
        if len(axes) == len(found):
            for axis, size in zip(axes, found):
                if re.fullmatch("[A-Z]|W0", axis) and size > 0:
                    self.known.setdefault(axis, size)
        return tuple(self._size(axis) for axis in axes)

    def _size(self, axis: str) -> Union[int, str]:
        if axis.isdigit():
            return int(axis)
        if axis == "C/H" and {"C", "H"} <= set(self.known):
            size, rest = divmod(self.known["C"], self.known["H"])
            return f"{self.known['C']}/{self.known['H']}" if rest else size
        if axis == "3C" and "C" in self.known:
            return 3 * self.known["C"]
        channels = re.fullmatch(r"(4?)W(\d+)", axis)
        if channels and "W0" in self.known:
            return self.known["W0"] * int(channels[1] or 1) * 2 ** int(channels[2])
        return self.known.get(axis, axis)


def _refuse_foreign(format: Format, path: str, names: Mapping[str, str]) -> None:
    """Refuse a file with parts that its model computes with and ours does not have."""
    for pattern, what in format.foreign.items():
        found = sorted(original for name, original in names.items() if re.match(pattern, name))
        if found:
            raise UserError(f"weights={path} is of a model with {what} ({found[0]}), which this package does not have")


def _spelling(row: Row, format: Format, names: Mapping[str, str]) -> List[str]:
    """The spelling that the file has all of; else one that it has a part of; else the usual one."""
    return max(row.spellings(), key=lambda parts: sum(format.plain(part) in names for part in parts) / len(parts))


def _is_grid(format: Format, file: Container, names: Mapping[str, str]) -> bool:
    """Whether the positions in a file are those of a square grid and no more."""
    row = next(row for row in format.table if row.ours == POSITION)
    (name,) = _spelling(row, format, names)
    shape = file.entries[names[format.plain(name)]].shape if format.plain(name) in names else ()
    return grid_side(dict(zip(row.shape.split(), shape)).get("N", 0), class_token=False) is not None


def _shown(shape: Tuple[Union[int, str], ...]) -> str:
    return f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"
