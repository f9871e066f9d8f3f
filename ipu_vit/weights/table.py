"""Tables of names: what a format calls each parameter of ours, and how it lays it out.

A format is one table that serves both directions: `TableFile` reads a file by it, `to_format`
renames and rearranges parameters of ours by it. Nothing else knows a format's names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Callable, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor

from ipu_vit.errors import UserError
from ipu_vit.weights.parameters import (
    CLASSIFY,
    REPRESENTATION,
    SHAPES,
    STEM,
    Repeats,
    count_units,
    filled,
    model_sizes,
    repeats_of,
    within,
)
from ipu_vit.weights.shapes import listed, shapes_of


class Layout(NamedTuple):
    """How an array of a file becomes a tensor of ours, and back (which may need the number of heads)."""

    read: Callable[[Tensor], Tensor]
    write: Callable[[Tensor, int], Tensor]


SAME = Layout(lambda array: array, lambda ours, heads: ours)


class Row(NamedTuple):
    """One parameter of ours, and the array or arrays of a file that hold it.

    `{i}`, `{s}` and `{u}` are the numbers of a layer, a stage and a unit; `{u+1}` counts from 1.
    `{query|key|value}` stands for that many arrays in the file, of which ours has the numbers one after
    another. `shape` is each array's, in the letters of `SHAPES` and H for the heads. `also` are other
    names that are read; what is not `written` has no place in new files.
    """

    ours: str
    theirs: str
    shape: str
    layout: Layout = SAME
    also: Tuple[str, ...] = ()
    written: bool = True

    def numbered(self, repeats: Repeats) -> Iterator[Row]:
        """The row for each layer or unit that it speaks of, or for the only one."""
        for numbers in repeats.numbers(self.ours):
            ours, theirs, shape, *also = (
                filled(text, numbers) for text in (self.ours, self.theirs, self.shape, *self.also)
            )
            yield self._replace(ours=ours, theirs=theirs, shape=shape, also=tuple(also))

    def spellings(self) -> List[List[str]]:
        """The names of the array or arrays, in each way that is read; the first is written."""
        return [_parts(name) for name in (self.theirs, *self.also)]


def modules(*pairs: Sequence[str], written: bool = True) -> Tuple[Row, ...]:
    """Rows of a format that lays tensors out as PyTorch does.

    Each pair is a parameter of ours, or a module with `.weight` and perhaps `.bias`, and its name in the
    format; further names are other spellings.
    """
    rows = []
    for ours, theirs, *also in pairs:
        for end in ("", ".weight", ".bias"):
            name = ours + end
            if name not in SHAPES:
                continue
            shape = SHAPES[name].replace("3C", "C") if "|" in theirs else SHAPES[name]
            rows.append(Row(name, theirs + end, shape, also=tuple(other + end for other in also), written=written))
    return tuple(rows)


@dataclass(frozen=True)
class Format:
    """A layout of weights."""

    name: str
    table: Tuple[Row, ...]
    model: str = "ViT"  # of what it holds the weights
    suffix: str = ""  # of its files, if it has a kind of file of its own
    prefix: str = ""  # regular expression: what its names may or may not begin with
    optional: Tuple[str, ...] = (REPRESENTATION, CLASSIFY)  # parts that a file may lack
    epsilon: float = 1e-6  # of the layer norms, which its library has in its code
    norm_of_mean: Optional[str] = None  # its last norm, where that follows the mean of the patches
    foreign: Mapping[str, str] = field(default_factory=dict)  # parts of its models that ours lack, by their names

    @property
    def title(self) -> str:
        """The name, as messages have it."""
        return " ".join(part for part in (self.name, "" if self.model == "ViT" else self.model, self.suffix) if part)

    def plain(self, name: str) -> str:
        """The name without the beginnings that tools put before it (data parallelism, compilation) and our `prefix`."""
        return re.sub(rf"^((module|_orig_mod)\.)*({self.prefix})?", "", name)

    def match(self, names: Iterable[str]) -> float:
        """The share of the table, with one layer, that is among the names."""
        found = {self.plain(name) for name in names}
        rows = self.rows(Repeats(layers=1), self.optional)
        return sum(any(found.issuperset(self._plain(parts)) for parts in row.spellings()) for row in rows) / len(rows)

    def mentions(self, part: str, names: Iterable[str]) -> bool:
        """Whether a part of a model is among the names, at least in part; it may have no numbers."""
        found = {self.plain(name) for name in names}
        rows = (row for row in self.table if within(row.ours, [part]))
        return any(self.plain(name) in found for row in rows for spelling in row.spellings() for name in spelling)

    def repeats(self, names: Iterable[str], stem: bool) -> Repeats:
        """How many layers and, with a stem, units names speak of; one layer at least, so that a loss of all shows."""
        patterns = self._numbered_starts()
        matches = (pattern.match(self.plain(name)) for name in names for pattern in patterns)
        found = [match.groupdict() for match in matches if match]
        layers = {numbers["i"] for numbers in found if "i" in numbers}
        units = {(numbers["s"], numbers["u"]) for numbers in found if "u" in numbers}
        return Repeats(max(len(layers), 1), count_units(units) if stem else None)

    def rows(self, repeats: Repeats, without: Sequence[str] = ()) -> List[Row]:
        """The table written out for a model, in its order, without some parts."""
        return [row for line in self.table if not within(line.ours, without) for row in line.numbered(repeats)]

    def _plain(self, names: Iterable[str]) -> List[str]:
        return [self.plain(name) for name in names]

    def _numbered_starts(self) -> List[re.Pattern[str]]:
        """What names with numbers begin with, up to the last number."""
        names = [name for row in self.table for name in (row.theirs, *row.also)]
        places = [(name, list(_PLACEHOLDER.finditer(name))) for name in names]
        starts = sorted({self.plain(name[: found[-1].end()]) for name, found in places if found})
        # Every second piece is the letter of a placeholder.
        pieces = [_PLACEHOLDER.split(start) for start in starts]
        texts = ["".join(rf"(?P<{p}>\d+)" if i % 2 else re.escape(p) for i, p in enumerate(start)) for start in pieces]
        return [re.compile(rf"{text}\D") for text in texts]


_PLACEHOLDER = re.compile(r"\{([isu])(?:\+1)?\}")


def to_format(
    format: Format, state: Mapping[str, Tensor], heads: Optional[int] = None, dtype: torch.dtype = torch.float32
) -> Dict[str, Tensor]:
    """Parameters under our names as tensors of a format, contiguous and each in memory of its own.

    `heads` is needed by formats that have an axis for them. Raises UserError for what has no place in the format.
    """
    width = model_sizes(shapes_of(state)).get("width", 0)
    if heads is not None and (heads < 1 or width % heads):
        raise UserError(f"model.heads={heads} does not divide the width of the weights, {width}")
    without = [part for part in (*format.optional, STEM) if not any(within(name, [part]) for name in state)]
    rows = format.rows(repeats_of(state), without)
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


def _parts(name: str) -> List[str]:
    group = re.search(r"\{(\w+(?:\|\w+)+)\}", name)
    return [name.replace(group[0], part) for part in group[1].split("|")] if group else [name]
