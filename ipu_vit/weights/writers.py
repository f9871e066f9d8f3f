"""Weights in every format that can be written, and beside files of tensors notes on what they do not tell."""

from __future__ import annotations

import os
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from ipu_vit.errors import UserError
from ipu_vit.weights.classyvision import CLASSYVISION
from ipu_vit.weights.google import write_google
from ipu_vit.weights.huggingface import write_huggingface
from ipu_vit.weights.mmpretrain import MMPRETRAIN
from ipu_vit.weights.native import write_native
from ipu_vit.weights.notes import notes_path, write_notes
from ipu_vit.weights.onnx import write_onnx
from ipu_vit.weights.parameters import has_attention
from ipu_vit.weights.pickled import write_pickled
from ipu_vit.weights.safetensors_file import write_safetensors
from ipu_vit.weights.table import to_format
from ipu_vit.weights.timm import to_timm
from ipu_vit.weights.torchvision import TORCHVISION


class Model(NamedTuple):
    """What is written: parameters under our names, what they do not tell of their model, and the numbers' type."""

    state: Mapping[str, Tensor]
    heads: Optional[int]  # None for a Mixer
    epsilon: float
    dtype: torch.dtype


def write_weights(
    to: str,
    state: Mapping[str, Tensor],
    destination: str,
    heads: Optional[int],
    epsilon: float,
    dtype: torch.dtype = torch.float32,
) -> Tuple[str, ...]:
    """Write parameters under our names in the format `to`, one of `WRITERS`; returns the files and folders written.

    `heads` means nothing to a Mixer. Raises UserError for what the format has no place for, or cannot be written.
    """
    model = Model(state, heads if has_attention(state) else None, epsilon, dtype)
    return WRITERS[to](model, destination)


def _noted(write: Callable[[Model, str], None]) -> Callable[[Model, str], Tuple[str, ...]]:
    """A writer of a file of tensors, with notes beside it on what they do not tell."""

    def write_both(model: Model, path: str) -> Tuple[str, ...]:
        if notes_path(path) == path:
            raise UserError(f"destination={path} is no name for a file of tensors; .pth and .safetensors are accepted")
        _make_folder(path)
        write(model, path)
        write_notes(path, model.heads, model.epsilon)
        return path, notes_path(path)

    return write_both


def _make_folder(path: str) -> None:
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


def _to_timm(model: Model, path: str) -> None:
    _write_state_dict(to_timm(model.state, model.dtype), path)


def _to_torchvision(model: Model, path: str) -> None:
    _write_state_dict(to_format(TORCHVISION, model.state, dtype=model.dtype), path)


def _write_state_dict(tensors: Dict[str, Tensor], path: str) -> None:
    write = write_safetensors if path.endswith(".safetensors") else write_pickled
    write(tensors, path)


def _to_mmpretrain(model: Model, path: str) -> None:
    write_pickled({"meta": {}, "state_dict": to_format(MMPRETRAIN, model.state, dtype=model.dtype)}, path)


def _to_classyvision(model: Model, path: str) -> None:
    tensors = to_format(CLASSYVISION, model.state, dtype=model.dtype)
    parts = _nested(tensors, {"trunk": 1, "heads": 3})
    write_pickled({"classy_state_dict": {"base_model": {"model": parts}}}, path)


def _nested(tensors: Mapping[str, Tensor], levels: Mapping[str, int]) -> Dict[str, Any]:
    """Dotted names as dictionaries in dictionaries, as many levels deep as their first part has."""
    tree: Dict[str, Any] = {name: {} for name in levels}
    for name, tensor in tensors.items():
        parts: List[str] = name.split(".", levels[name.split(".")[0]])
        group = tree
        for part in parts[:-1]:
            group = group.setdefault(part, {})
        group[parts[-1]] = tensor
    return tree


def _to_google(model: Model, path: str) -> None:
    write_google(model.state, path, model.heads, model.dtype)


def _to_checkpoint(model: Model, path: str) -> None:
    write_native(model.state, path, model.dtype)


def _to_huggingface(model: Model, folder: str) -> Tuple[str, ...]:
    write_huggingface(model.state, folder, model.heads, model.epsilon, model.dtype)
    return (folder,)


def _to_onnx(model: Model, path: str) -> Tuple[str, ...]:
    _make_folder(path)
    write_onnx(model.state, path, model.heads, model.epsilon)
    return (path,)


WRITERS: Dict[str, Callable[[Model, str], Tuple[str, ...]]] = {
    "huggingface": _to_huggingface,
    "timm": _noted(_to_timm),
    "torchvision": _noted(_to_torchvision),
    "mmpretrain": _noted(_to_mmpretrain),
    "classyvision": _noted(_to_classyvision),
    "google": _noted(_to_google),
    "checkpoint": _noted(_to_checkpoint),
    "onnx": _to_onnx,
}
