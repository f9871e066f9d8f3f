"""Nested arguments and results: taking the leaves out of containers, and putting others in their place.

Lists, tuples, named tuples, dictionaries (dataclasses that are dictionaries too) and types registered
with `poptorch.registerCustomArgParser` are containers; everything else is a leaf.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, Callable, Iterable, Iterator, List, Optional, Tuple

from ipu_vit.emulator.arg_parser import custom_parser_of


@dataclasses.dataclass(frozen=True)
class Structure:
    """The containers around some leaves; two are equal if the same leaves fit both."""

    kind: Optional[type] = None  # None: a leaf
    keys: Tuple[Any, ...] = ()
    children: Tuple[Structure, ...] = ()
    #: the object itself, where the new one is built from it
    original: Any = dataclasses.field(default=None, compare=False)

    def build(self, leaves: Iterable[Any]) -> Any:
        """The same containers around other leaves, given in order."""
        return _build(self, iter(leaves))


LEAF = Structure()


def flatten(value: Any) -> Tuple[List[Any], Structure]:
    """The leaves of a nested value, in order, and what is around them."""
    leaves: List[Any] = []
    return leaves, _take(value, leaves.append)


def map_leaves(function: Callable[[Any], Any], value: Any) -> Any:
    """The same containers with a function applied to each leaf."""
    leaves, structure = flatten(value)
    return structure.build(function(leaf) for leaf in leaves)


def _take(value: Any, add: Callable[[Any], None]) -> Structure:
    kind = type(value)
    parser = custom_parser_of(kind)
    if parser is not None:
        tensors = list(parser.yieldTensors(value))
        return Structure(kind, (), tuple(_take(tensor, add) for tensor in tensors), value)
    if isinstance(value, dict):
        return Structure(kind, tuple(value), tuple(_take(item, add) for item in value.values()), value)
    if isinstance(value, (list, tuple)):
        return Structure(kind, (), tuple(_take(item, add) for item in value))
    add(value)
    return LEAF


def _build(structure: Structure, leaves: Iterator[Any]) -> Any:
    kind = structure.kind
    if kind is None:
        return next(leaves)
    parser = custom_parser_of(kind)
    if parser is not None:
        return parser.reconstruct(structure.original, (_build(child, leaves) for child in structure.children))
    items = [_build(child, leaves) for child in structure.children]
    if issubclass(kind, dict):
        pairs = dict(zip(structure.keys, items))
        if kind is dict:
            return pairs
        if dataclasses.is_dataclass(kind):
            return kind(**pairs)
        built = copy.copy(structure.original)  # a class of dictionaries may need more than their contents
        built.update(pairs)
        return built
    make: Any = kind
    return make(*items) if hasattr(kind, "_fields") else make(items)
