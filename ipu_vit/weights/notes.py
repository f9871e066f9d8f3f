"""What a file of tensors cannot say of its model, in a small JSON file beside it.

The number of heads and the epsilon of the layer norms change what a model computes, but no tensor
shows them. `vit.pth` has its notes in `vit.json`.
"""

from __future__ import annotations

import json
import os
from typing import Any, Dict, NamedTuple, Optional, Tuple

from ipu_vit.errors import UserError
from ipu_vit.weights.atomic import replacing


class Notes(NamedTuple):
    """What is known of a model besides its tensors."""

    heads: Optional[int] = None
    epsilon: Optional[float] = None
    without: Tuple[str, ...] = ()  # parts of the file that its model does not use


def notes_path(path: str) -> str:
    """Where the notes on the file at `path` are."""
    return os.path.splitext(path)[0] + ".json"


def read_notes(path: str) -> Notes:
    """The notes beside the file at `path`; empty if there are none, or the JSON file there is about something else."""
    notes = read_json(notes_path(path)).get("ipu_vit")
    if not isinstance(notes, dict):
        return Notes()
    return checked_notes(notes_path(path), notes.get("heads"), notes.get("norm_epsilon"))


def write_notes(path: str, heads: Optional[int], epsilon: Optional[float]) -> None:
    """Write the notes on the file at `path`."""
    write_json({"ipu_vit": {"heads": heads, "norm_epsilon": epsilon}}, notes_path(path))


def checked_notes(path: str, heads: Any, epsilon: Any, without: Tuple[str, ...] = ()) -> Notes:
    """Notes from a JSON file, whose values can be anything."""
    if heads is not None and (type(heads) is not int or heads < 1):
        raise UserError(f"{path} says that attention has {heads!r} heads; a positive whole number is accepted")
    if epsilon is not None and (type(epsilon) not in (int, float) or not 0 < epsilon < 1):
        raise UserError(f"{path} says that the epsilon of layer norms is {epsilon!r}; a number from 0 to 1 is accepted")
    return Notes(heads, epsilon, without)


def read_json(path: str) -> Dict[str, Any]:
    """The object in a JSON file; empty if there is no such file."""
    if not os.path.isfile(path):
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    return content if isinstance(content, dict) else {}


def write_json(content: Dict[str, Any], path: str) -> None:
    """Write a JSON file, whole or not at all."""
    with replacing(path) as file:
        file.write(json.dumps(content, indent=2).encode() + b"\n")
