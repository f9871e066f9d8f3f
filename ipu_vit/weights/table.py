"""Tables of names: what a format calls each parameter of ours, and how it lays it out.

A format is one table that serves both directions: `TableFile` reads a file by it, `to_format`
renames and rearranges parameters of ours by it. Nothing else knows a format's names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Callable, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor

from ipu_vit.errors import UserError
from ipu_vit.weights.container import Container, check_floating
from ipu_vit.weights.positions import grid_side
from ipu_vit.weights.shapes import Shape, listed, model_sizes, shapes_of

CLASS_TOKEN = "embedding.class_token"
POSITION = "embedding.position"
REPRESENTATION = "head.representation"
CLASSIFY = "head.classify"

# Our parameters. C width, P patch size, N tokens, H heads, M MLP width, R representation,
# F features of the head (R if there is a representation, else C), K classes.
SHAPES = {
    "embedding.class_token": "1 1 C",
    "embedding.patch.weight": "C 3 P P",
    "embedding.patch.bias": "C",
    "embedding.position": "1 N C",
    "layers.{i}.attention_norm.weight": "C",
    "layers.{i}.attention_norm.bias": "C",
    "layers.{i}.attention.qkv.weight": "3C C",
    "layers.{i}.attention.qkv.bias": "3C",
    "layers.{i}.attention.output.weight": "C C",
    "layers.{i}.attention.output.bias": "C",
    "layers.{i}.mlp_norm.weight": "C",
    "layers.{i}.mlp_norm.bias": "C",
    "layers.{i}.mlp.expand.weight": "M C",
    "layers.{i}.mlp.expand.bias": "M",
    "layers.{i}.mlp.contract.weight": "C M",
    "layers.{i}.mlp.contract.bias": "C",
    "head.norm.weight": "C",
    "head.norm.bias": "C",
    "head.representation.weight": "R C",
    "head.representation.bias": "R",
    "head.classify.weight": "K F",
    "head.classify.bias": "K",
}


class Layout(NamedTuple):
    """How an array of a file becomes a tensor of ours, and back (which may need the number of heads)."""

    read: Callable[[Tensor], Tensor]
    write: Callable[[Tensor, int], Tensor]


SAME = Layout(lambda array: array, lambda ours, heads: ours)


class Row(NamedTuple):
    """One parameter of ours, and the array or arrays of a file that hold it.

    `{i}` is the number of the layer. `{query|key|value}` stands for that many arrays in the file,
    of which ours has the numbers one after another. `shape` is each array's, in the letters above.
    `also` are other names that are read; what is not `written` has no place in new files.
    """

    ours: str
    theirs: str
    shape: str
    layout: Layout = SAME
    also: Tuple[str, ...] = ()
    written: bool = True

    def numbered(self, i: int) -> Row:
        """The row for layer `i`."""
        ours, theirs, *also = (name.replace("{i}", str(i)) for name in (self.ours, self.theirs, *self.also))
        return self._replace(ours=ours, theirs=theirs, also=tuple(also))

    def spellings(self) -> List[List[str]]:
        """The names of the array or arrays, in each way that is read; the first is written."""
        return [_parts(name) for name in (self.theirs, *self.also)]


def modules(*pairs: Sequence[str], written: bool = True) -> Tuple[Row, ...]:
    """Rows of a format that lays tensors out as PyTorch does.

    Each pair is a parameter of ours, or a module with `.weight` and `.bias`, and its name in the
    format; further names are other spellings.
    """
    rows = []
    for ours, theirs, *also in pairs:
        for end in ("",) if ours in SHAPES else (".weight", ".bias"):
            name = ours + end
            shape = SHAPES[name].replace("3C", "C") if "|" in theirs else SHAPES[name]
            rows.append(Row(name, theirs + end, shape, also=tuple(other + end for other in also), written=written))
    return tuple(rows)


@dataclass(frozen=True)
class Format:
    """A layout of weights."""

    name: str
    table: Tuple[Row, ...]
    suffix: str = ""  # of its files, if it has a kind of file of its own
    prefix: str = ""  # regular expression: what its names may or may not begin with
    optional: Tuple[str, ...] = (REPRESENTATION, CLASSIFY)  # parts that a file may lack
    epsilon: float = 1e-6  # of the layer norms, which its library has in its code
    remarks: Mapping[str, str] = field(default_factory=dict)  # what to say when a name is found

    @property
    def title(self) -> str:
        """The name, as messages have it."""
        return f"{self.name} {self.suffix}".strip()

    def plain(self, name: str) -> str:
        """The name without the beginnings that tools put before it (data parallelism, compilation) and our `prefix`."""
        return re.sub(rf"^((module|_orig_mod)\.)*({self.prefix})?", "", name)

    def match(self, names: Iterable[str]) -> float:
        """The share of the table, with one layer, that is among the names."""
        found = {self.plain(name) for name in names}
        rows = [row.numbered(0) for row in self.table if not within(row.ours, self.optional)]
        return sum(any(found.issuperset(self._plain(parts)) for parts in row.spellings()) for row in rows) / len(rows)

    def depth(self, names: Iterable[str]) -> int:
        """The number of layers that names speak of."""
        before = {name.split("{i}")[0] for row in self.table for name in (row.theirs, *row.also) if "{i}" in name}
        pattern = re.compile(rf"({'|'.join(re.escape(self.plain(part)) for part in sorted(before))})(\d+)\D")
        found = (pattern.match(name) for name in names)
        return len({match[2] for match in found if match})

    def rows(self, depth: int, without: Sequence[str] = ()) -> List[Row]:
        """The table written out for a model of `depth` layers, in its order, without some parts."""
        return [
            row.numbered(i)
            for row in self.table
            if not within(row.ours, without)
            for i in range(depth if "{i}" in row.ours else 1)
        ]

    def _plain(self, names: Iterable[str]) -> List[str]:
        return [self.plain(name) for name in names]


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
        absent = [part for part in format.optional if not _mentions(format, part, names)]
        if CLASS_TOKEN in absent and grid_side(_tokens(format, file, names), class_token=False) is None:
            absent.remove(CLASS_TOKEN)  # its position is there
        # At least one layer, so that a file without any is told what it lacks.
        rows = format.rows(max(format.depth(names), 1), [*without, *absent])
        spelt = {row.ours: _spelling(row, format, names) for row in rows}

        missing = [part for row in rows for part in spelt[row.ours] if format.plain(part) not in names]
        if missing:
            raise UserError(f"weights={file.path} is not a ViT in {format.name}'s layout: it lacks {listed(missing)}")
        self._rows = {row.ours: row for row in rows}
        self._arrays = {ours: [names[format.plain(part)] for part in parts] for ours, parts in spelt.items()}
        sizes = Sizes(REPRESENTATION + ".weight" in self._rows)
        self._check(sizes)

        self.heads = sizes.known.get("H", heads)
        self.shapes: Dict[str, Shape] = {row.ours: self._shape(row) for row in rows}
        used = {name for arrays in self._arrays.values() for name in arrays}
        self.unused = (*sorted(set(file.entries) - used), *file.others)
        self.remarks = tuple(text for name, text in format.remarks.items() if names.get(format.plain(name)) in used)

    def read(self, name: str) -> Tensor:
        """One parameter under our name, in float32."""
        return _join(self._rows[name], [self._file.read(array) for array in self._arrays[name]])

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
        return tuple(_join(row, [torch.empty(shape, device="meta") for shape in shapes]).shape)


def to_format(
    format: Format, state: Mapping[str, Tensor], heads: Optional[int] = None, dtype: torch.dtype = torch.float32
) -> Dict[str, Tensor]:
    """Parameters under our names as tensors of a format, contiguous and each in memory of its own.

    `heads` is needed by formats that have an axis for them. Raises UserError for what has no place in the format.
    """
    width = state[POSITION].shape[-1]
    if heads is not None and (heads < 1 or width % heads):
        raise UserError(f"model.heads={heads} does not divide the width of the weights, {width}")
    depth = model_sizes(shapes_of(state))["depth"]
    without = [part for part in format.optional if not any(within(name, [part]) for name in state)]
    rows = format.rows(depth, without)
    homeless = sorted(set(state) - {row.ours for row in rows if row.written})
    if homeless:
        raise UserError(f"{listed(homeless)} cannot be written: the layout of {format.title} has no place for it")
    lacking = [row.ours for row in rows if row.ours not in state]
    if lacking:
        raise UserError(f"the layout of {format.title} needs {listed(lacking)}, which the weights lack")
    tensors: Dict[str, Tensor] = {}
    for row in rows:
        names = row.spellings()[0]
        for name, part in zip(names, state[row.ours].detach().cpu().to(dtype).chunk(len(names))):
            tensors[name] = row.layout.write(part, heads or 1).clone(memory_format=torch.contiguous_format)
    return tensors


def within(name: str, parts: Iterable[str]) -> bool:
    """Whether a parameter is one of the parts of a model, or in one."""
    return any(name == part or name.startswith(part + ".") for part in parts)


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
                if axis.isalpha() and size > 0:
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
        return self.known.get(axis, axis)


def _parts(name: str) -> List[str]:
    group = re.search(r"\{(\w+(?:\|\w+)+)\}", name)
    return [name.replace(group[0], part) for part in group[1].split("|")] if group else [name]


def _spelling(row: Row, format: Format, names: Mapping[str, str]) -> List[str]:
    """The spelling that the file has all of; else one that it has a part of; else the usual one."""
    return max(row.spellings(), key=lambda parts: sum(format.plain(part) in names for part in parts) / len(parts))


def _mentions(format: Format, part: str, names: Mapping[str, str]) -> bool:
    rows = (row for row in format.table if within(row.ours, [part]))
    return any(format.plain(name) in names for row in rows for spelling in row.spellings() for name in spelling)


def _tokens(format: Format, file: Container, names: Mapping[str, str]) -> int:
    """The number of positions in a file, 0 if there are none."""
    row = next(row for row in format.table if row.ours == POSITION)
    shape = file.entries[names[format.plain(row.theirs)]].shape if format.plain(row.theirs) in names else ()
    return dict(zip(row.shape.split(), shape)).get("N", 0)


def _join(row: Row, arrays: List[Tensor]) -> Tensor:
    return torch.cat([row.layout.read(array) for array in arrays]).contiguous()


def _shown(shape: Tuple[Union[int, str], ...]) -> str:
    return f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"
