"""Stands in for `poptorch.poptorch_core`, PopTorch's compiled half: what programs use of it."""

from __future__ import annotations

from ipu_vit.emulator.errors import Error, RecoverableError, UnrecoverableError
from ipu_vit.emulator.hardware import ipuHardwareIsAvailable
from ipu_vit.emulator.hardware import ipuHardwareVersion as _version
from ipu_vit.emulator.log import setLogLevel

__all__ = [
    "Error",
    "RecoverableError",
    "UnrecoverableError",
    "ipuHardwareIsAvailable",
    "ipuHardwareVersion",
    "setLogLevel",
]


def ipuHardwareVersion(num_ipus: int = 1) -> int:
    """The generation of that many IPUs; 0 if they are not there."""
    return _version() if ipuHardwareIsAvailable(num_ipus) else 0
