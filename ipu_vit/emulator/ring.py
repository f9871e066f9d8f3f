"""A ring of equal slots in memory that two processes share, and the structure of the batches that pass through it.

    slot 0            slot 1            slot 2
    [image | label]   [image | label]   [image | label]     one anonymous file, mapped by both processes

The first batch fixes what a slot holds (`Layout`: data types and shapes) and how its tensors are put
together again (`Structure`). Both are sent to the reader once; after that only slots change hands.

The file has no name, so nothing is left behind however the processes end.
"""

from __future__ import annotations

import copy
import mmap
import os
import tempfile
from dataclasses import dataclass
from multiprocessing import reduction
from typing import Any, List, Tuple

import torch

from ipu_vit.emulator.arg_parser import custom_parser_of

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

    def __getstate__(self) -> Any:
        return reduction.DupFd(self.fd)

    def __setstate__(self, handle: Any) -> None:
        self.fd = handle.detach()

    def __del__(self) -> None:
        os.close(self.fd)

    def reserve(self, size: int) -> None:
        """Give the file this many bytes; too little memory is an OSError here and not a bus error later."""
        os.ftruncate(self.fd, size)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self.fd, 0, size)


@dataclass(frozen=True)
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


class Structure:
    """How a batch comes apart into tensors and is put together again (rule 7.8)."""

    def __init__(self, first: Any) -> None:
        self._type = type(first)
        self._parser = custom_parser_of(self._type)
        self._keys: List[Any] = list(first) if isinstance(first, dict) else []
        if self._parser is None and not isinstance(first, (torch.Tensor, tuple, list, dict)):
            raise TypeError(
                "An asynchronous dataset must yield a tensor, a tuple or list of tensors, a dict of tensors or a type "
                f"registered with registerCustomArgParser, not {self._type.__name__}"
            )
        # The batch itself, without its contents, is what a later one is built from.
        self._template = first
        self._template = self.build([torch.empty(0) for _ in self.take_apart(first)])

    def take_apart(self, batch: Any) -> List[torch.Tensor]:
        """The tensors of a batch, in the order of the first batch's."""
        if type(batch) is not self._type:
            raise TypeError(f"The first batch was a {self._type.__name__}, a later one is a {type(batch).__name__}")
        if self._parser is not None:
            parts = list(self._parser.yieldTensors(batch))
        elif isinstance(batch, torch.Tensor):
            parts = [batch]
        elif isinstance(batch, dict):
            if batch.keys() != set(self._keys):
                raise ValueError(f"The first batch had the keys {self._keys}, a later one has {list(batch)}")
            parts = [batch[key] for key in self._keys]
        else:
            parts = list(batch)
        for name, part in zip(self._keys or range(len(parts)), parts):
            if not isinstance(part, torch.Tensor):
                raise TypeError(
                    f"An asynchronous dataset must yield tensors: part {name!r} of a batch is a {type(part).__name__} "
                    "(labels must be tensors too, and nothing may be nested)"
                )
        return parts

    def build(self, tensors: List[torch.Tensor]) -> Any:
        """A batch like the first one that holds these tensors."""
        if self._parser is not None:
            return self._parser.reconstruct(self._template, iter(tensors))
        if issubclass(self._type, torch.Tensor):
            return tensors[0]
        if issubclass(self._type, dict):
            batch = copy.copy(self._template)
            batch.update(zip(self._keys, tensors))
            return batch
        return self._type(*tensors) if hasattr(self._type, "_fields") else self._type(tensors)
