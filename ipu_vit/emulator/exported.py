"""Files of compiled programs (`save`, `compileAndExport`, `load`, `loadExecutable`; rule 9.3).

There is no machine code to save: the file holds what compiling needs, and loading compiles again. As
with PopTorch's own files, loading one runs code that its author chose, so load only files you trust.
"""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, List, Optional

import torch

from ipu_vit.emulator.errors import Error
from ipu_vit.emulator.log import logger
from ipu_vit.emulator.version import POPTORCH_VERSION

_MAGIC = b"poptorch executable of the CPU emulator\n"


@dataclass
class Executable:
    """What a file holds."""

    version: str
    training: bool
    #: arguments of a host batch, as (args, kwargs); values mean nothing
    example: Any
    options: Any
    optimizer: Optional[torch.optim.Optimizer]
    model: Optional[torch.nn.Module]
    rng_state: Optional[List[int]]


def write_executable(filename: str, executable: Executable) -> None:
    """Write a file, in a folder `model.poptorch`; Error if the model cannot be pickled."""
    try:
        contents = pickle.dumps(executable)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise Error(
            f"The model cannot be saved ({error}): define its classes and functions at the top of a module, or use "
            "export_model=False"
        ) from error
    path = Path(filename)
    if path.is_dir():
        path /= "model.poptorch"
        logger.warning("%s is a folder: the executable is written to %s", filename, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")  # several processes may write and read the same file
    try:
        part.write_bytes(_MAGIC + contents)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read_executable(filename: str) -> Executable:
    """Read a file; Error unless it was written by this version."""
    path = Path(filename)
    if not path.is_file():
        raise Error(f"There is no executable {filename}")
    contents = path.read_bytes()
    if not contents.startswith(_MAGIC):
        raise Error(f"{filename} is no executable of this emulator: compile and export the model with it")
    executable: Executable = pickle.loads(contents[len(_MAGIC) :])
    if executable.version != POPTORCH_VERSION:
        raise Error(
            f"{filename} was written by PopTorch {executable.version}, and this is {POPTORCH_VERSION}: export it again"
        )
    return executable
