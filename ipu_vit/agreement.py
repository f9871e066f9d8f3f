"""What all processes of a run must have alike: settings, code, packages, and the state that they start from."""

from __future__ import annotations

import hashlib
import json
import platform
from pathlib import Path
from typing import Any, Mapping

import torch
from torch import Tensor

from ipu_vit.device import Device
from ipu_vit.distributed import Processes
from ipu_vit.errors import UserError
from ipu_vit.secrets import without_secrets
from ipu_vit.settings import Settings

_SHOWN = 12  # digits of a checksum


def check_program(processes: Processes, settings: Settings, device: Device) -> None:
    """Raise UserError in all processes if one has other settings, code, Python or torch than process 0."""
    code = {"Python": platform.python_version(), "torch": torch.__version__, "code of ipu_vit": _code()[:_SHOWN]}
    check_alike(processes, {**code, "device": device.kind, **settings.flat()})


def check_state(processes: Processes, tensors: Mapping[str, Tensor]) -> None:
    """Raise UserError in all processes if one has other tensors than process 0, be it in a single bit."""
    check_alike(processes, {"weights, by their checksum": digest(tensors)[:_SHOWN]})


def check_alike(processes: Processes, facts: Mapping[str, Any]) -> None:
    """Raise UserError in all processes, naming the first fact that one of them has otherwise than process 0."""
    if processes.size == 1:
        return
    first, *others = (json.loads(told) for told in processes.gather(json.dumps(without_secrets(dict(facts))).encode()))
    for rank, other in enumerate(others, start=1):
        for name, value in first.items():
            if other.get(name) != value:
                raise UserError(
                    f"process {rank} of {processes.size} has {name}={other.get(name)}, but process 0 has {value}: "
                    "start all processes with the same command, code and packages"
                )


def digest(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of tensors: names, types, shapes and every bit."""
    total = hashlib.sha256()
    for name, tensor in tensors.items():
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _code() -> str:
    """The SHA-256 of all modules of this package."""
    total, package = hashlib.sha256(), Path(__file__).parent
    for path in sorted(package.rglob("*.py")):
        total.update(str(path.relative_to(package)).encode() + path.read_bytes())
    return total.hexdigest()
