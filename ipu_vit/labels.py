"""The names of classes, and the files that have them."""

from __future__ import annotations

import json
import os
from typing import Any, List, Mapping, Optional, Sequence, Union

from ipu_vit.errors import UserError
from ipu_vit.weights.atomic import replacing

LAYOUT = "a line for each class, a JSON list of names, or a JSON object of numbers and names"


def numbered(classes: int) -> List[str]:
    """What classes are called of which no names are known: their numbers."""
    return [str(number) for number in range(classes)]


def read_labels(path: Union[str, os.PathLike[str]], classes: int) -> List[str]:
    """The names of that many classes in a file: a line for each, or JSON (a list, or an object as `id2label` has it).

    Raises UserError when it cannot be read, or has names for another number of classes.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"labels={path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    names = _names(path, text)
    if len(names) != classes:
        raise UserError(f"labels={path} has {len(names)} names, but the model has {classes} classes")
    return names


def write_labels(names: Sequence[str], path: Union[str, os.PathLike[str]]) -> None:
    """Write names of classes as a JSON list."""
    with replacing(os.fspath(path)) as file:
        file.write(json.dumps(list(names), indent=0).encode() + b"\n")


def in_order(names: Mapping[str, Any]) -> Optional[List[str]]:
    """The names of an object such as `{"0": "cat", "1": "dog"}`; None unless its keys count from 0."""
    numbers = numbered(len(names))
    return [str(names[number]) for number in numbers] if set(names) == set(numbers) else None


def _names(path: Union[str, os.PathLike[str]], text: str) -> List[str]:
    if not text.lstrip().startswith(("[", "{")):
        return text.splitlines()
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"labels={path} cannot be read as JSON: {error}") from error
    names = in_order(content) if isinstance(content, dict) else content
    if names is None or not all(isinstance(name, str) for name in names):
        raise UserError(f"labels={path} holds no names of classes; accepted: {LAYOUT}")
    return list(names)
