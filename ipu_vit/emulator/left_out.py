"""What of PopTorch's interface the emulator leaves out, and why. Using it raises `poptorch.Error`."""

from __future__ import annotations

from typing import Dict, NoReturn

from ipu_vit.emulator.errors import Error

#: Names as a program writes them, each with the reason.
LEFT_OUT: Dict[str, str] = {
    "poptorch.custom_op": "it calls an operator that the program compiles for the IPU in C++; write its computation "
    "in PyTorch, or wrap a Python function in poptorch.CPU",
}


def refuse(name: str) -> NoReturn:
    """Say that something is left out, and why."""
    raise Error(f"{name} cannot be emulated: {LEFT_OUT[name]}")
