"""Files that `torch.save` wrote (`.pth`, `.pt`, `.bin`), read with suspicion: they may come from anyone.

Such a file is a pickle, and a pickle is a program. It is only ever read with `weights_only`, which
knows tensors and plain containers and runs nothing else. `torch.load` has ways around that on old
versions of PyTorch, so whatever is not plainly a file of tensors never reaches it: TorchScript
archives, tar files, bare pickles, compressed archives.
"""

from __future__ import annotations

import inspect
import os
import pickle
import re
import tarfile
import warnings
import zipfile
from typing import Any, Dict, Iterator, List, Mapping, Tuple

import torch
from torch import Tensor

from ipu_vit.errors import UserError
from ipu_vit.weights.atomic import replacing
from ipu_vit.weights.container import Entry, check_floating

_ZIP = b"PK\x03\x04"
# Before PyTorch 1.6: pickle protocol 2, and then torch.save's own magic number as the first object.
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
# Where training programs keep the model among other things: timm, DeiT; mmcls, mmengine, Lightning; ClassyVision.
_WRAPPERS = ("state_dict", "model", "model_state_dict", "classy_state_dict", "base_model")

# Whether tensors can stay on the disk until they are used.
_MAPS = "mmap" in inspect.signature(torch.load).parameters


class Pickled:
    """An opened file of `torch.save`: a state dict, bare or wrapped, nested names joined by dots."""

    def __init__(self, path: str) -> None:
        self.path = path
        content = _unwrap(_load(path))
        if not isinstance(content, dict):
            raise UserError(f"weights={path} holds a {type(content).__name__}; a state_dict is accepted")
        self._tensors: Dict[str, Tensor] = {}
        others = []
        for name, value in _flat(content):
            if isinstance(value, Tensor) and value.layout == torch.strided:
                self._tensors[name] = value.detach()
            else:
                others.append(name)
        self.others: Tuple[str, ...] = tuple(others)
        _check_sizes(path, self._tensors)
        self.entries: Dict[str, Entry] = {
            name: Entry(tuple(tensor.shape), str(tensor.dtype).replace("torch.", ""), tensor.is_floating_point())
            for name, tensor in self._tensors.items()
        }

    @staticmethod
    def recognises(start: bytes) -> bool:
        """Whether a file starts as `torch.save` starts it."""
        return start.startswith((_ZIP, _LEGACY))

    def read(self, name: str) -> Tensor:
        """One tensor, in float32."""
        check_floating(self.path, name, self.entries[name])
        return self._tensors[name].to(torch.float32)


def write_pickled(content: Mapping[str, Any], path: str) -> None:
    """Write a state dict, bare or wrapped, as `torch.save` does."""
    with replacing(path) as file:
        torch.save(dict(content), file)


def _load(path: str) -> Any:
    """What the file holds, if that is data and nothing else."""
    try:
        with open(path, "rb") as file:
            is_zip = file.read(len(_ZIP)) == _ZIP  # which is how torch.load decides
        if is_zip:
            _check_archive(path)
        elif tarfile.is_tarfile(path):
            raise UserError(f"weights={path} is a tar file; what torch.save writes since PyTorch 0.4 is accepted")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on storage types that PyTorch itself means to retire
            if is_zip and _MAPS and not path.lower().endswith(".safetensors"):  # a name that torch.load goes by
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            with open(path, "rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        code = re.search(
            r"(?:Unsupported class|GLOBAL|unsupported class|for unrecognized function) ?([^\s,]+)", str(error)
        )
        if code is None:
            raise _unreadable(path, error) from error
        raise UserError(
            f"weights={path} holds more than tensors ({code[1]}), which could run code; "
            f"a file with nothing but the model's state_dict is accepted"
        ) from error
    except Exception as error:  # torch.load has no exception of its own for damage
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: Exception) -> UserError:
    reason = str(error).rsplit("WeightsUnpickler error: ", 1)[-1].strip().split("\n", 1)[0] or type(error).__name__
    return UserError(f"weights={path} cannot be read as a file of torch.save: {reason}")


def _check_archive(path: str) -> None:
    # PyTorch's own reader, because another one could see other members in a malicious archive.
    if "constants.pkl" in torch._C.PyTorchFileReader(path).get_all_records():
        raise UserError(f"weights={path} is a TorchScript program; a state_dict is accepted")
    with zipfile.ZipFile(path) as archive:
        unpacked, packed = sum(member.file_size for member in archive.infolist()), os.path.getsize(path)
    if unpacked > packed:
        raise UserError(
            f"weights={path} would unpack from {packed:,} to {unpacked:,} bytes; torch.save does not compress"
        )


def _check_sizes(path: str, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are larger than what the file holds of them: repeated numbers, or none at all."""
    held = 0
    seen = set()
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        if tensor.numel() * tensor.element_size() > storage.nbytes():
            raise UserError(f"weights={path} holds fewer numbers for {name} than its shape {tuple(tensor.shape)} needs")
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            held += storage.nbytes()
    if held > os.path.getsize(path):
        raise UserError(f"weights={path} claims {held:,} bytes of tensors in {os.path.getsize(path):,} bytes of file")


def _unwrap(content: Any) -> Any:
    for _ in _WRAPPERS:  # not until none is left, because a pickle can hold itself
        if isinstance(content, dict):
            content = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), dict)), content)
    return content


def _flat(content: Mapping[Any, Any]) -> Iterator[Tuple[str, Any]]:
    """The values in nested dictionaries, each dictionary once, with their keys joined by dots."""
    pending: List[Tuple[str, Mapping[Any, Any]]] = [("", content)]
    seen = set()
    while pending:
        prefix, mapping = pending.pop()
        if id(mapping) in seen:
            continue
        seen.add(id(mapping))
        for key, value in mapping.items():
            if isinstance(value, dict):
                pending.append((f"{prefix}{key}.", value))
            else:
                yield f"{prefix}{key}", value
