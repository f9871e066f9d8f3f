"""A ring of equal slots in memory that two processes share, and the structure of the batches that pass through it.

    slot 0            slot 1            slot 2
    [image | label]   [image | label]   [image | label]     one anonymous file, mapped by both processes

The first batch fixes what a slot holds (`Layout`: data types and shapes) and how its tensors are put
together again (`Form`). Both are sent to the reader once; after that only slots change hands.

The file has no name, so nothing is left behind however the processes end.
"""

from __future__ import annotations

import dataclasses
import mmap
import os
import tempfile
from multiprocessing import reduction
from typing import Any, List, Tuple
from weakref import finalize

import torch

from ipu_vit.emulator.structure import LEAF, Structure, flatten

# Every data type may start at a multiple of this, and no cache line belongs to two tensors.
_ALIGNMENT = 64


class SharedFile:
    """A file without a name that can be handed to a process when that process is started."""

    def __init__(self, on_disk: bool = False) -> None:
        if hasattr(os, "memfd_create") and not on_disk:
            # Ordinary memory: unlike /dev/shm it is not limited to a few megabytes in containers.
            self.fd = os.memfd_create("poptorch")
        else:
            self.fd, name = tempfile.mkstemp()
            os.unlink(name)
        finalize(self, os.close, self.fd)

    def __getstate__(self) -> Any:
        return reduction.DupFd(self.fd)

    def __setstate__(self, handle: Any) -> None:
        self.fd = handle.detach()
        finalize(self, os.close, self.fd)

    def reserve(self, size: int) -> None:
        """Give the file this many bytes; too little memory is an OSError here and not a bus error later."""
        os.ftruncate(self.fd, size)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self.fd, 0, size)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How many slots there are, and each tensor's data type and shape in a slot."""

    slots: int
    tensors: List[Tuple[torch.dtype, Tuple[int, ...]]]

    def _places(self) -> Tuple[List[Tuple[int, int]], int]:
        """Where each tensor begins and ends in its slot, and the size of a slot, in bytes."""
        places, offset = [], 0
        for dtype, shape in self.tensors:
            size = torch.Size(shape).numel() * torch.empty((), dtype=dtype).element_size()
            places.append((offset, offset + size))
            offset += -(-size // _ALIGNMENT) * _ALIGNMENT
        return places, max(offset, _ALIGNMENT)

    @property
    def size(self) -> int:
        return self.slots * self._places()[1]

    def map(self, file: SharedFile) -> List[List[torch.Tensor]]:
        """Each slot's tensors, which are views of the file and keep it alive."""
        places, slot_size = self._places()
        memory = torch.frombuffer(mmap.mmap(file.fd, self.size), dtype=torch.uint8)
        return [
            [slot[begin:end].view(dtype).view(shape) for (dtype, shape), (begin, end) in zip(self.tensors, places)]
            for slot in memory.view(self.slots, slot_size)
        ]


class Form:
    """What all batches of a dataset look like: the containers of the first one, around as many tensors (rule 7.8)."""

    def __init__(self, first: Any) -> None:
        tensors, structure = _take_apart(first)
        if structure.original is not None:
            # A registered type's batches are built from the first one, which need not keep its tensors for that.
            empty = structure.build([torch.empty(0) for _ in tensors])
            structure = dataclasses.replace(structure, original=empty)
        self._structure = structure

    def take_apart(self, batch: Any) -> List[torch.Tensor]:
        """The tensors of a batch, in the order of the first batch's."""
        tensors, structure = _take_apart(batch)
        first = self._structure
        if structure == first:
            return tensors
        if structure.kind is first.kind and set(structure.keys) == set(first.keys) != set():
            by_key = dict(zip(structure.keys, tensors))
            return [by_key[key] for key in first.keys]
        raise ValueError(
            "Batches of an asynchronous dataset must all look like the first one, which was "
            f"{_describe(first)}; a later one is {_describe(structure)}"
        )

    def build(self, tensors: List[torch.Tensor]) -> Any:
        """A batch like the first one that holds these tensors."""
        return self._structure.build(tensors)


def _take_apart(batch: Any) -> Tuple[List[torch.Tensor], Structure]:
    leaves, structure = flatten(batch)
    if structure == LEAF and not isinstance(batch, torch.Tensor):
        raise TypeError(
            "An asynchronous dataset must yield a tensor, a tuple or list of tensors, a dict of tensors or a type "
            f"registered with registerCustomArgParser, not {type(batch).__name__}"
        )
    if not leaves:
        raise ValueError(f"An asynchronous dataset must yield at least one tensor, not {_describe(structure)}")
    names = structure.keys or range(len(structure.children))
    for name, part, leaf in zip(names, structure.children, leaves):
        if part != LEAF or not isinstance(leaf, torch.Tensor):
            found = f"a {type(leaf).__name__}" if part == LEAF else _describe(part)
            raise TypeError(
                f"An asynchronous dataset must yield tensors: part {name!r} of a batch is {found} (labels must be "
                "tensors too, and nothing may be nested)"
            )
    return leaves, structure


def _describe(structure: Structure) -> str:
    if structure.kind is None:
        return "a tensor"
    return f"a {structure.kind.__name__} of {list(structure.keys) or len(structure.children)}"
