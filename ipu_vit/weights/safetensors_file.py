"""The safetensors format: a header in JSON, then raw numbers. In one file, or in shards that an index lists."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, Mapping, Tuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ipu_vit.errors import UserError
from ipu_vit.weights.atomic import replacing
from ipu_vit.weights.container import Container, Entry
from ipu_vit.weights.shapes import listed


class SafeTensors:
    """An opened `.safetensors` file."""

    others: Tuple[str, ...] = ()

    def __init__(self, path: str) -> None:
        self.path = path
        self.entries: Dict[str, Entry] = {}
        with self._file() as file:
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                part = file.get_slice(name)
                dtype = part.get_dtype()
                self.entries[name] = Entry(tuple(part.get_shape()), dtype, dtype in ("F16", "BF16", "F32", "F64"))

    @staticmethod
    def recognises(start: bytes) -> bool:
        """Whether a file starts with the length of a header, then the header."""
        return len(start) > 8 and start[8:9] == b"{"

    def read(self, name: str) -> Tensor:
        """One tensor, in float32."""
        with self._file() as file:
            return file.get_tensor(name).to(torch.float32)

    @contextmanager
    def _file(self) -> Iterator[Any]:
        try:
            with safe_open(self.path, framework="pt") as file:
                yield file
        except (SafetensorError, OSError) as error:
            raise UserError(f"weights={self.path} cannot be read as safetensors: {error}") from error


class Shards:
    """Weights in several files, which `….index.json` assigns the tensors to, as Hugging Face has them."""

    others: Tuple[str, ...] = ()

    def __init__(self, path: str, open_file: Callable[[str], Container]) -> None:
        self.path = path
        self._home = _weight_map(path)
        folder = os.path.dirname(path)
        files = {file: open_file(os.path.join(folder, file)) for file in sorted(set(self._home.values()))}
        self._files = {name: files[file] for name, file in self._home.items()}
        absent = [f"{name} in {self._home[name]}" for name, file in self._files.items() if name not in file.entries]
        if absent:
            raise UserError(f"weights={path} names tensors that its files lack: {listed(absent)}")
        self.entries = {name: file.entries[name] for name, file in self._files.items()}

    @staticmethod
    def recognises(start: bytes) -> bool:
        """Whether a file starts as an index in JSON."""
        return start.lstrip().startswith(b"{") and b'"weight_map"' in start

    def read(self, name: str) -> Tensor:
        """One tensor, in float32."""
        return self._files[name].read(name)


def write_safetensors(tensors: Mapping[str, Tensor], path: str) -> None:
    """Write contiguous tensors that share no memory as a `.safetensors` file."""
    with replacing(path) as file:
        file.write(save(dict(tensors), metadata={"format": "pt"}))  # transformers asks for this entry


def _weight_map(path: str) -> Dict[str, str]:
    try:
        with open(path, encoding="utf-8") as file:
            weight_map = json.load(file)["weight_map"]
        names = dict(weight_map)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"weights={path} cannot be read as an index of weight files: {error!r}") from error
    # The index may come from anyone, and must not reach outside its own folder.
    strange = [str(file) for file in names.values() if not isinstance(file, str) or os.path.basename(file) != file]
    if strange:
        raise UserError(f"weights={path} names {strange[0]}; files beside the index are accepted")
    return names
