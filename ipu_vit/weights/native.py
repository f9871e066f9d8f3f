"""The weights in a checkpoint of this package: a `.safetensors` file with tensors `model.<parameter>`.

The checkpoint's other tensors (the optimizer's) are for resuming and play no part here.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Dict, Iterator, Optional, Tuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ipu_vit.errors import UserError
from ipu_vit.weights.shapes import Shape

_PREFIX = "model."


class NativeFile:
    """An opened checkpoint; no numbers are read yet."""

    format = "checkpoint"
    heads: Optional[int] = None  # our tensors' shapes do not tell
    unused: Tuple[str, ...] = ()

    def __init__(self, path: str) -> None:
        self._path = path
        with self._file() as file:
            names = [name for name in file.keys() if name.startswith(_PREFIX)]  # noqa: SIM118 (it is no mapping)
            slices = {name[len(_PREFIX) :]: file.get_slice(name) for name in names}
            for name, part in slices.items():
                if part.get_dtype() not in ("F16", "BF16", "F32", "F64"):
                    raise UserError(
                        f"weights={path} holds {name} as {part.get_dtype()}; floating-point numbers are accepted"
                    )
            self.shapes: Dict[str, Shape] = {name: tuple(part.get_shape()) for name, part in slices.items()}

    @staticmethod
    def recognises(path: str) -> bool:
        """Whether the file starts like safetensors (length of the header, then JSON) and has our names."""
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = file.read(min(length, 100_000_000))  # the format's own limit on headers
        return header.startswith(b"{") and b'"model.embedding.' in header

    def read(self, name: str) -> Tensor:
        """One parameter, in float32."""
        with self._file() as file:
            return file.get_tensor(_PREFIX + name).to(torch.float32)

    @contextmanager
    def _file(self) -> Iterator[Any]:
        try:
            with safe_open(self._path, framework="pt") as file:
                yield file
        except (SafetensorError, OSError) as error:
            raise UserError(f"weights={self._path} cannot be read as a checkpoint: {error}") from error
