"""The weights in a checkpoint of this package: a `.safetensors` file with tensors `model.<parameter>`.

If the run averaged its weights, the average is what it was scored by, and what is read. The checkpoint's
other tensors (the optimizer's) are for resuming and play no part here.
"""

from __future__ import annotations

from typing import Dict, Mapping, Optional, Tuple

import torch
from torch import Tensor

from ipu_vit.weights.container import Container, check_floating
from ipu_vit.weights.safetensors_file import write_safetensors
from ipu_vit.weights.shapes import Shape

_PREFIX = "model."
_PREFIX_OF_AVERAGE = "average.weights."


class NativeFile:
    """An opened checkpoint; no numbers are read yet."""

    format = "checkpoint"
    unused: Tuple[str, ...] = ()
    norms_mean = False
    fixed_positions = False

    def __init__(self, file: Container, heads: Optional[int] = None, epsilon: Optional[float] = None) -> None:
        self._file = file
        self.heads, self.epsilon = heads, epsilon
        is_averaged = any(name.startswith(_PREFIX_OF_AVERAGE) for name in file.entries)
        self._prefix = _PREFIX_OF_AVERAGE if is_averaged else _PREFIX
        entries = {name: entry for name, entry in file.entries.items() if name.startswith(self._prefix)}
        for name, entry in entries.items():
            check_floating(file.path, name, entry)
        self.shapes: Dict[str, Shape] = {name[len(self._prefix) :]: entry.shape for name, entry in entries.items()}

    @staticmethod
    def recognises(file: Container) -> bool:
        """Whether the file has our names."""
        return any(name.startswith("model.embedding.") for name in file.entries)

    def read(self, name: str) -> Tensor:
        """One parameter, in float32."""
        return self._file.read(self._prefix + name)


def write_native(state: Mapping[str, Tensor], path: str, dtype: torch.dtype = torch.float32) -> None:
    """Write weights as a checkpoint has them; no run can be continued from it."""
    tensors = {_PREFIX + name: tensor.detach().cpu().to(dtype) for name, tensor in state.items()}
    write_safetensors({name: t.clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}, path)
