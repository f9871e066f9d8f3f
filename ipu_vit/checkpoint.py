"""Saving a run so that it can go on exactly where it was, whatever happens meanwhile.

A checkpoint is one safetensors file: tensors named `model.…` and `optimizer.…`, and in its header,
as JSON, whatever else a run needs. It is written aside, flushed to the disk and then renamed, so
under its own name it is always complete. The newest few and the best are kept.

What the disk does to it later is found by a checksum in the header: the SHA-256 of the whole file
while 64 zeros are in the checksum's place. So no bit of the file is without it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

from safetensors import safe_open
from safetensors.torch import load, save
from torch import Tensor

from ipu_vit.distributed import Processes
from ipu_vit.errors import UserError
from ipu_vit.run_folder import make_folder, writing
from ipu_vit.weights.atomic import replacing

_NAME = re.compile(r"update-(\d{8})\.safetensors")
_STATE, _CHECKSUM = "ipu_vit", "sha256"
_NO_CHECKSUM = "0" * 64
_PIECE = 2**22  # bytes


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run continues from, after `update` weight updates."""

    update: int
    model: Dict[str, Tensor]
    optimizer: Dict[str, Any]
    rng_state: List[int]
    best_accuracy: Optional[float] = None
    average: Optional[Dict[str, Any]] = None
    layout: Optional[Dict[str, Any]] = None  # see `ipu_vit.layout`; earlier versions have none
    images: Optional[int] = None  # of the training data, whose order depends on how many there are


class Checkpoints:
    """The checkpoints of one run, in a folder of its own."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.best = folder / "best.safetensors"
        self._keep = keep
        make_folder(folder, "output")
        for left_over in folder.glob("*.part"):  # of a process that was killed while saving
            left_over.unlink()

    def path(self, update: int) -> Path:
        return self.folder / f"update-{update:08d}.safetensors"

    def updates(self) -> List[int]:
        """The updates after which a checkpoint is there, oldest first."""
        found = (_NAME.fullmatch(path.name) for path in self.folder.glob("update-*.safetensors"))
        return sorted(int(match.group(1)) for match in found if match)

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint, then let go of those that are too many.

        Raises UserError when the folder cannot be written; what was saved before is untouched.
        """
        path = self.path(checkpoint.update)
        self._write(checkpoint, path)
        for update in self.updates()[: -self._keep]:
            self.path(update).unlink()
        return path

    def save_best(self, checkpoint: Checkpoint) -> None:
        """Write the checkpoint with the best validation accuracy so far."""
        self._write(checkpoint, self.best)

    def latest(self, tell: Callable[[str], None] = print) -> Optional[Checkpoint]:
        """The newest checkpoint that is whole, if there are any.

        Newer ones that are damaged are put aside, and `tell` is told. Raises UserError if none is whole: to
        start over is not what was asked for.
        """
        damaged: List[str] = []
        for update in reversed(self.updates()):
            try:
                checkpoint = read_checkpoint(self.path(update))
            except UserError as error:
                damaged.append(str(error))
                continue
            for message, newer in zip(damaged, reversed(self.updates())):
                aside = self.path(newer).with_suffix(".damaged")
                with writing(aside):
                    os.replace(self.path(newer), aside)
                tell(f"{message}; it is kept as {aside.name}, and the checkpoint of update {update} is used")
            return checkpoint
        if damaged:
            raise UserError(f"{damaged[0]}; no other checkpoint is there to continue from: fresh=true starts over")
        return None

    def _write(self, checkpoint: Checkpoint, path: Path) -> None:
        try:
            with replacing(str(path)) as file:
                file.writelines(_sealed(encode(checkpoint)))
        except UserError as error:
            raise UserError(
                f"{error}; earlier checkpoints are untouched, and the same command continues from the last one"
            ) from error


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; raises UserError for a file that is none, or that is not as it was written."""
    try:
        _verify(path)
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
            state = json.loads(file.metadata()[_STATE])
        return _checkpoint(tensors, state)
    except Exception as error:  # safetensors raises its own type, and others for other damage
        raise UserError(f"{path} is not a checkpoint of ipu_vit, or is damaged: {error}") from error


def _checkpoint(tensors: Dict[str, Tensor], state: Dict[str, Any]) -> Checkpoint:
    optimizer = _unflatten(state["optimizer"], tensors)
    model = {name[len("model.") :]: tensor for name, tensor in tensors.items() if name.startswith("model.")}
    average = _unflatten(state.get("average"), tensors)  # earlier versions have none
    return Checkpoint(
        state["update"],
        model,
        optimizer,
        state["rng_state"],
        state["best_accuracy"],
        average,
        layout=state.get("layout"),
        images=state.get("images"),
    )


def share(checkpoint: Optional[Checkpoint], processes: Processes) -> Optional[Checkpoint]:
    """The checkpoint of process 0, if it has one, in all processes: the others need not see its folder."""
    if processes.size == 1:
        return checkpoint
    content = processes.broadcast(b"" if checkpoint is None else encode(checkpoint))
    return decode(content) if content and not processes.is_first else checkpoint


def decode(content: bytes) -> Checkpoint:
    """The inverse of `encode`."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return _checkpoint(load(content), json.loads(header["__metadata__"][_STATE]))


def encode(checkpoint: Checkpoint) -> bytes:
    """A checkpoint's file, but for its checksum."""
    tensors = {f"model.{name}": tensor.contiguous() for name, tensor in checkpoint.model.items()}
    state = {
        _CHECKSUM: _NO_CHECKSUM,
        "update": checkpoint.update,
        "optimizer": _flatten(checkpoint.optimizer, "optimizer", tensors),
        "rng_state": checkpoint.rng_state,
        "best_accuracy": checkpoint.best_accuracy,
        "average": _flatten(checkpoint.average, "average", tensors),
        "layout": checkpoint.layout,
        "images": checkpoint.images,
    }
    return save(tensors, metadata={_STATE: json.dumps(state)})  # one entry, as several come in any order


def _sealed(content: bytes) -> Tuple[memoryview, bytes, memoryview]:
    """A file's content with its checksum in place, in pieces as it may be large."""
    start = content.index(_NO_CHECKSUM.encode())  # the state begins with it
    whole = memoryview(content)
    return whole[:start], hashlib.sha256(content).hexdigest().encode(), whole[start + len(_NO_CHECKSUM) :]


def _verify(path: Path) -> None:
    """Raise ValueError if a file's bytes are not those that its checksum is of, or are no checkpoint's at all."""
    with path.open("rb") as file:
        length = file.read(8)
        size = int.from_bytes(length, "little")
        if size > path.stat().st_size:
            raise ValueError("it has been cut off")
        header = file.read(size)
        state = json.loads(json.loads(header)["__metadata__"][_STATE])
        if not {_CHECKSUM, "layout"} & set(state):
            return  # of an earlier version, which had neither
        digest = hashlib.sha256(length + header.replace(state[_CHECKSUM].encode(), _NO_CHECKSUM.encode()))
        while True:
            piece = file.read(_PIECE)
            if not piece:
                break
            digest.update(piece)
    if digest.hexdigest() != state[_CHECKSUM]:
        raise ValueError("its checksum is not that of its content")


def _flatten(value: Any, name: str, tensors: Dict[str, Tensor]) -> Any:
    """Move the tensors of a nested value into `tensors`, leaving their names in a JSON value.

    Dictionaries become lists of pairs, because JSON's keys are text and PyTorch's can be numbers.
    """
    if isinstance(value, Tensor):
        while name in tensors:  # as the dots in a key, or a number as text, can make it
            name += "'"
        tensors[name] = value.detach().contiguous()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, _flatten(item, f"{name}.{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_flatten(item, f"{name}.{index}", tensors) for index, item in enumerate(value)]}
    return value


def _unflatten(value: Any, tensors: Dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    (kind, content), *_ = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _unflatten(item, tensors) for key, item in content}
    items = [_unflatten(item, tensors) for item in content]
    return items if kind == "list" else tuple(items)
