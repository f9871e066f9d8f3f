"""Weights from one format to another: any that can be read, to those that others read.

Numbers are not changed, only named and laid out otherwise. What tensors do not tell, the number of
heads and the epsilon of the layer norms, is taken from the file, from the run it belongs to, or
from the format's own library, and asked for where none of them has it: it is never guessed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Tuple

from ipu_vit.config import load_settings
from ipu_vit.errors import UserError
from ipu_vit.weights.formats import WeightFile, open_weights
from ipu_vit.weights.native import NativeFile
from ipu_vit.weights.parameters import POSITION, has_attention, model_sizes
from ipu_vit.weights.shapes import listed
from ipu_vit.weights.writers import WRITERS, write_weights


@dataclass(frozen=True)
class ConvertReport:
    """What became of a file's weights."""

    source: str
    format: str
    to: str
    tensors: int
    written: Tuple[str, ...]  # files and directories
    heads: Optional[int]  # None of a Mixer
    epsilon: float
    unused: Tuple[str, ...]

    def summary(self) -> str:
        """One line on what was written and, if there is any, one on what was not."""
        done = f"{self.tensors} tensors from {self.source} ({self.format}) as {self.to}: {', '.join(self.written)}"
        heads = "no heads" if self.heads is None else f"{self.heads} heads"
        known = f"{heads}, layer norms with epsilon {self.epsilon:g}"
        return "\n".join([f"{done}; {known}", *([f"not used: {listed(self.unused)}"] if self.unused else [])])


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
    if has_attention(file.shapes):
        heads = _settle("heads", source, heads, file.heads or run_heads)
        width = model_sizes(file.shapes).get("width", 0)
        if heads < 1 or width % heads:
            raise UserError(f"heads={heads} does not divide the width of {source}, {width}")
    elif heads is not None:
        raise UserError(f"heads={heads} does not go with {source}, a Mixer, which has none")
    epsilon = _settle("epsilon", source, epsilon, file.epsilon or run_epsilon)
    if file.fixed_positions:
        raise UserError(f"{source} cannot be converted: it has no {POSITION}, so that its image size is unknown")
    if file.norms_mean and to != "checkpoint":
        raise UserError(
            f"{source} has its last norm after the mean of the patches, which to={to} cannot tell; accepted: checkpoint"
        )
    state = {name: file.read(name) for name in file.shapes}
    written = write_weights(to, state, destination, heads, epsilon)
    return ConvertReport(source, file.format, to, len(state), written, heads, epsilon, tuple(file.unused))


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
    if not model.pools_as_weights_tell:
        raise UserError(
            f"{source} has model.pooling={model.pooling}, which no other format can tell; "
            f"a checkpoint of model.pooling=class, or of a Mixer, can be converted"
        )
    heads = None if model.kind == "mixer" else model.heads
    return heads, model.norm_epsilon
