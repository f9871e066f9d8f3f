"""PopTorch's exception types."""

from __future__ import annotations


class Error(RuntimeError):
    """`poptorch.Error`: what a program did is refused, at compile or at run."""

    def __init__(self, message: str, type: str = "poptorch_cpp_error", location: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.type = type
        self.location = location


class RecoverableError(Error):
    """`poptorch.RecoverableError`: the device can be used again after `recovery_action`."""

    def __init__(self, message: str, recovery_action: str = "NONE", type: str = "", location: str = "") -> None:
        super().__init__(message, type, location)
        self.recovery_action = recovery_action


class UnrecoverableError(Error):
    """`poptorch.UnrecoverableError`: the device needs attention from outside the program."""
