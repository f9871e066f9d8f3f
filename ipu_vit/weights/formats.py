"""Which format a file is of: found from its content, never from its name."""

from __future__ import annotations

import os
from functools import partial
from typing import Callable, Dict, Optional, Protocol, Tuple

from torch import Tensor

from ipu_vit.errors import UserError
from ipu_vit.weights.classyvision import CLASSYVISION
from ipu_vit.weights.container import Container
from ipu_vit.weights.google import BIG_VISION, GOOGLE, GOOGLE_MIXER, FlaxFile
from ipu_vit.weights.hub import WEIGHTS
from ipu_vit.weights.huggingface import HUGGING_FACE, read_config
from ipu_vit.weights.lookalikes import lookalike
from ipu_vit.weights.mmpretrain import MMPRETRAIN
from ipu_vit.weights.native import NativeFile
from ipu_vit.weights.notes import Notes, read_notes
from ipu_vit.weights.npz import Npz
from ipu_vit.weights.pickled import Pickled
from ipu_vit.weights.safetensors_file import SafeTensors, Shards
from ipu_vit.weights.shapes import Shape, listed
from ipu_vit.weights.table import Format
from ipu_vit.weights.table_file import TableFile
from ipu_vit.weights.timm import TIMM, TIMM_MIXER
from ipu_vit.weights.torchvision import TORCHVISION


class WeightFile(Protocol):
    """What an adapter makes of a file; opening reads names and shapes only."""

    format: str
    heads: Optional[int]  # None where the file does not tell, as for the epsilon of layer norms
    epsilon: Optional[float]
    shapes: Dict[str, Shape]  # under our names
    fixed_positions: bool  # whether its positions are fixed sines and cosines, which it has no need to hold
    unused: Tuple[str, ...]  # entries that have no counterpart in the model's code
    norms_mean: bool  # whether its last norm follows the mean of the patches, by its name

    def read(self, name: str) -> Tensor:
        """One parameter, in float32."""


# `.npz` is Google's alone.
FLAX: Tuple[Format, ...] = (GOOGLE, BIG_VISION, GOOGLE_MIXER)
# Formats that the names of the tensors tell, and where each has its notes. A checkpoint of ours is known
# by its prefix.
NAMED: Tuple[Tuple[Format, Callable[[str], Notes]], ...] = (
    (HUGGING_FACE, read_config),
    (TIMM, read_notes),
    (TIMM_MIXER, read_notes),
    (TORCHVISION, read_notes),
    (MMPRETRAIN, read_notes),
    (CLASSYVISION, read_notes),
)
ACCEPTED = ", ".join((*(format.title for format in FLAX), NativeFile.format, *(format.title for format, _ in NAMED)))

# A file with less of a table than this is of none of the formats, rather than a damaged one.
_LEAST_MATCH = 0.5
_START = 4096


def open_weights(path: str) -> WeightFile:
    """Open a file of weights, or a Hugging Face directory; raises UserError for anything else."""
    if not os.path.exists(path):
        raise UserError(f"weights={path} does not exist")
    file = _open_container(_file_in(path) if os.path.isdir(path) else path)
    if isinstance(file, Npz):
        flax = FlaxFile(file)
        return TableFile(max(FLAX, key=lambda format: format.match(flax.entries)), flax, *read_notes(file.path))
    if NativeFile.recognises(file):
        return NativeFile(file, *read_notes(file.path)[:2])
    match, (format, notes) = max(((named[0].match(file.entries), named) for named in NAMED), key=lambda pair: pair[0])
    if match < _LEAST_MATCH:
        names = listed(list(file.entries)) or "none"
        raise UserError(f"weights={path} is of no known format, with tensors such as {names}; accepted: {ACCEPTED}")
    return TableFile(format, file, *notes(file.path))


def _file_in(folder: str) -> str:
    found = [os.path.join(folder, name) for name in WEIGHTS if os.path.isfile(os.path.join(folder, name))]
    if not found:
        raise UserError(f"weights={folder} is not a file, and a directory without weights; it would need {WEIGHTS[0]}")
    return found[0]


def _open_container(path: str, shard: bool = False) -> Container:
    if not os.path.isfile(path):
        raise UserError(f"weights={path} {'is not a file' if os.path.exists(path) else 'does not exist'}")
    try:
        with open(path, "rb") as file:
            start = file.read(_START)
    except OSError as error:
        raise UserError(f"weights={path} cannot be read: {error.strerror}") from error
    if Npz.recognises(start):
        return Npz(path)
    if Pickled.recognises(start):
        return Pickled(path)
    if Shards.recognises(start) and not shard:  # an index could list itself
        return Shards(path, partial(_open_container, shard=True))
    if SafeTensors.recognises(start):
        return SafeTensors(path)
    raise UserError(f"weights={path} is of no known format{_guess(start)}; accepted: {ACCEPTED}")


def _guess(start: bytes) -> str:
    """What the file is instead, where that is known to happen."""
    if not start:
        return ": it is empty"
    other = lookalike(start)
    if other:
        return f": it is {other}"
    if start.startswith(b"\x80"):
        return ": it is a pickle, which could run code"
    return ""
