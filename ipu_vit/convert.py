"""Weights from one format to another: any that can be read, to those that others read.

Numbers are not changed, only named and laid out otherwise. What tensors do not tell, the number of
heads and the epsilon of the layer norms, is taken from the file, from the run it belongs to, or
from the format's own library, and asked for where none of them has it: it is never guessed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Mapping, Optional, Tuple

from torch import Tensor

from ipu_vit.config import load_settings
from ipu_vit.errors import UserError
from ipu_vit.weights.formats import WeightFile, open_weights
from ipu_vit.weights.google import write_google
from ipu_vit.weights.huggingface import write_huggingface
from ipu_vit.weights.mmpretrain import MMPRETRAIN
from ipu_vit.weights.native import NativeFile, write_native
from ipu_vit.weights.notes import notes_path, write_notes
from ipu_vit.weights.onnx import write_onnx
from ipu_vit.weights.pickled import write_pickled
from ipu_vit.weights.safetensors_file import write_safetensors
from ipu_vit.weights.shapes import listed
from ipu_vit.weights.table import POSITION, to_format
from ipu_vit.weights.timm import TIMM

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class ConvertReport:
    """What became of a file's weights."""

    source: str
    format: str
    to: str
    tensors: int
    written: Tuple[str, ...]  # files and directories
    heads: int
    epsilon: float
    unused: Tuple[str, ...]
    remarks: Tuple[str, ...]

    def summary(self) -> str:
        """One line on what was written and, if there is any, one on what was not."""
        done = f"{self.tensors} tensors from {self.source} ({self.format}) as {self.to}: {', '.join(self.written)}"
        known = f"{self.heads} heads, layer norms with epsilon {self.epsilon:g}"
        rest = [*self.remarks, *([f"not used: {listed(self.unused)}"] if self.unused else [])]
        return "\n".join([f"{done}; {known}", *(["; ".join(rest)] if rest else [])])


def convert(
    source: str, destination: str, to: str, heads: Optional[int] = None, epsilon: Optional[float] = None
) -> ConvertReport:
    """Write the weights of `source` to `destination` in the format `to`, one of `WRITERS`.

    `heads` and `epsilon` are for sources that do not tell. Raises UserError for weights that cannot be
    read, that the format has no place for, or whose number of heads stays unknown or contradicts.
    """
    if to not in WRITERS:
        raise UserError(f"to={to} is not a format that can be written; accepted: {', '.join(WRITERS)}")
    file = open_weights(source)
    run_heads, run_epsilon = _of_the_run(source, file)
    heads = _settle("heads", source, heads, file.heads or run_heads)
    epsilon = _settle("epsilon", source, epsilon, file.epsilon or run_epsilon)
    width = file.shapes[POSITION][-1]
    if heads < 1 or width % heads:
        raise UserError(f"heads={heads} does not divide the width of {source}, {width}")
    state = {name: file.read(name) for name in file.shapes}
    written = WRITERS[to](state, destination, heads, epsilon)
    return ConvertReport(
        source, file.format, to, len(state), written, heads, epsilon, tuple(file.unused), tuple(file.remarks)
    )


def _settle(name: str, source: str, given: Any, found: Any) -> Any:
    if given is None and found is None:
        raise UserError(f"{source} does not tell the model's {name}: give {name}=…")
    if None not in (given, found) and given != found:
        raise UserError(f"{name}={given} contradicts {source}, which has {found}")
    return found if given is None else given


def _of_the_run(source: str, file: WeightFile) -> Tuple[Optional[int], Optional[float]]:
    """Heads and epsilon from the settings of the run that saved a checkpoint: `RUN/checkpoints/NAME`."""
    settings = Path(source).absolute().parent.parent / "settings.yml"
    if not isinstance(file, NativeFile) or not settings.is_file():
        return None, None
    model = load_settings(str(settings), []).model
    if model.kind != "vit" or model.pooling != "class":
        raise UserError(
            f"{source} has model.kind={model.kind} and model.pooling={model.pooling}; "
            f"model.kind=vit with model.pooling=class can be converted"
        )
    return model.heads, model.norm_epsilon


def _make_folder(path: str) -> None:
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


def _noted(write: Callable[[State, str, int], None]) -> Callable[[State, str, int, float], Tuple[str, ...]]:
    """A writer of a file of tensors, with notes beside it on what they do not tell."""

    def write_both(state: State, path: str, heads: int, epsilon: float) -> Tuple[str, ...]:
        if notes_path(path) == path:
            raise UserError(f"destination={path} is no name for a file of tensors; .pth and .safetensors are accepted")
        _make_folder(path)
        write(state, path, heads)
        write_notes(path, heads, epsilon)
        return path, notes_path(path)

    return write_both


def _to_timm(state: State, path: str, heads: int) -> None:
    tensors = to_format(TIMM, state)
    write = write_safetensors if path.endswith(".safetensors") else write_pickled
    write(tensors, path)


def _to_mmpretrain(state: State, path: str, heads: int) -> None:
    write_pickled({"meta": {}, "state_dict": to_format(MMPRETRAIN, state)}, path)


def _to_checkpoint(state: State, path: str, heads: int) -> None:
    write_native(state, path)


def _to_google(state: State, path: str, heads: int) -> None:
    write_google(state, path, heads)


def _to_huggingface(state: State, folder: str, heads: int, epsilon: float) -> Tuple[str, ...]:
    write_huggingface(state, folder, heads, epsilon)
    return (folder,)


def _to_onnx(state: State, path: str, heads: int, epsilon: float) -> Tuple[str, ...]:
    _make_folder(path)
    write_onnx(state, path, heads, epsilon)
    return (path,)


# Each takes the state, the destination, heads and epsilon, and returns what it wrote.
WRITERS: Dict[str, Callable[[State, str, int, float], Tuple[str, ...]]] = {
    "huggingface": _to_huggingface,
    "timm": _noted(_to_timm),
    "mmpretrain": _noted(_to_mmpretrain),
    "google": _noted(_to_google),
    "checkpoint": _noted(_to_checkpoint),
    "onnx": _to_onnx,
}
