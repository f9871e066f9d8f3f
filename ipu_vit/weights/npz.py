"""NumPy's `.npz`, read with suspicion: the file may come from anyone.

An `.npz` is a zip archive of `.npy` members, each a header (type, shape) and raw numbers. All
headers are checked when the file is opened, before any number is read, so that no member can ask
for more memory than it is known to hold. Object arrays, which are pickles and could run code, are
refused.
"""

from __future__ import annotations

import math
import os
import zipfile
from contextlib import contextmanager
from typing import Any, Dict, Iterator, Mapping

import numpy
import torch
from numpy.lib import format as npy
from torch import Tensor

from ipu_vit.errors import UserError
from ipu_vit.weights.atomic import replacing
from ipu_vit.weights.container import Entry, check_floating

# Trained float32 weights shrink by about a tenth; a file that unpacks to ten times its size holds no
# weights. Below the floor nothing needs refusing.
_MOST_EXPANSION = 10
_HARMLESS_BYTES = 1 << 20


class Npz:
    """An `.npz` file whose headers have been checked."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.entries: Dict[str, Entry] = {}
        with self._archive() as archive:
            members = archive.infolist()
            unpacked, packed = sum(member.file_size for member in members), os.path.getsize(path)
            if unpacked > max(_HARMLESS_BYTES, _MOST_EXPANSION * packed):
                raise UserError(
                    f"weights={path} would unpack from {packed:,} to {unpacked:,} bytes; "
                    f"weights expand at most {_MOST_EXPANSION} times"
                )
            for member in members:
                if member.filename.endswith(".npy"):
                    self.entries[member.filename[:-4]] = self._header(archive, member)
            self.others = tuple(member.filename for member in members if not member.filename.endswith(".npy"))

    @staticmethod
    def recognises(start: bytes) -> bool:
        """Whether a file starts as a zip archive whose first member is an array."""
        name = start[30 : 30 + int.from_bytes(start[26:28], "little")]
        return start.startswith(b"PK\x03\x04") and name.endswith(b".npy")

    def read(self, name: str) -> Tensor:
        """One tensor, in float32."""
        check_floating(self.path, name, self.entries[name])
        with self._archive() as archive, archive.open(f"{name}.npy") as stream:
            return torch.from_numpy(npy.read_array(stream, allow_pickle=False).astype(numpy.float32))

    @contextmanager
    def _archive(self) -> Iterator[zipfile.ZipFile]:
        """The open archive; whatever zipfile, zlib or NumPy trip over is reported as the file's fault."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                yield archive
        except UserError:
            raise
        except Exception as error:  # each of those parsers has exceptions of its own
            reason = str(error).split("\n", 1)[0] or type(error).__name__
            raise UserError(f"weights={self.path} cannot be read as .npz: {reason}") from error

    def _header(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Entry:
        with archive.open(member) as stream:
            version = npy.read_magic(stream)
            read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, _, dtype = read_header(stream)
            if dtype.hasobject:
                raise UserError(
                    f"weights={self.path} holds {member.filename} as pickled Python objects, which could run code; "
                    f"arrays of numbers are accepted"
                )
            declared = stream.tell() + math.prod(shape) * dtype.itemsize
        if declared != member.file_size:
            raise UserError(
                f"weights={self.path} holds {member.file_size:,} bytes for {member.filename} "
                f"but its shape {shape} needs {declared:,}"
            )
        return Entry(shape, str(dtype), dtype.kind == "f")


def write_npz(tensors: Mapping[str, Tensor], path: str) -> None:
    """Write contiguous tensors as a compressed `.npz` file."""
    arrays: Dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
    with replacing(path) as file:
        numpy.savez_compressed(file, **arrays)
