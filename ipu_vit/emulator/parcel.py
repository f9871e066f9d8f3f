"""What a worker process needs of the program's process, and how it gets there."""

from __future__ import annotations

import pickle
import random
from multiprocessing.reduction import ForkingPickler
from typing import Any, Dict

import numpy
import torch

from ipu_vit.emulator.arg_parser import custom_parsers
from ipu_vit.emulator.ring import SharedFile


class Parcel:
    """What the worker needs of the reader's process: the dataset, registered types and the random generators.

    A forked worker has them already. Others get them pickled, in a file which they open once they can report
    errors: a dataset whose class cannot be imported there is a common mistake.
    """

    def __init__(self, dataset: Any, on_disk: bool = False) -> None:
        self._dataset = dataset
        self._file = SharedFile(on_disk)

    def __getstate__(self) -> Dict[str, Any]:
        with open(self._file.fd, "wb", closefd=False) as file:
            generators = torch.get_rng_state(), random.getstate(), numpy.random.get_state()
            _Pickler(file, pickle.HIGHEST_PROTOCOL).dump((self._dataset, custom_parsers, generators))
        return {"_file": self._file}

    def unpack(self) -> Any:
        """The dataset; the random generators are set."""
        if not hasattr(self, "_dataset"):
            with open(self._file.fd, "rb", closefd=False) as file:
                file.seek(0)
                self._dataset, parsers, generators = pickle.load(file)
            custom_parsers.update(parsers)
            torch_state, python_state, numpy_state = generators
            torch.set_rng_state(torch_state)
            random.setstate(python_state)
            numpy.random.set_state(numpy_state)
        return self._dataset


class _Pickler(ForkingPickler):
    """Copies plain tensors, except those in shared memory.

    Multiprocessing would move every tensor to shared memory and pass a file descriptor for each, which fails
    for a dataset of a few hundred tensors and changes the caller's.
    """

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is not torch.Tensor or obj.device.type != "cpu" or obj.layout != torch.strided:
            return NotImplemented
        if obj.is_shared() or obj.requires_grad or obj.is_complex() or obj.is_quantized:
            return NotImplemented
        return _restore_tensor, (obj.contiguous().view(-1).view(torch.uint8).numpy(), obj.dtype, obj.shape)


def _restore_tensor(data: Any, dtype: torch.dtype, shape: torch.Size) -> torch.Tensor:
    tensor: torch.Tensor = torch.from_numpy(data)
    return tensor.view(dtype).view(shape)
