"""`poptorch.optim`."""

from __future__ import annotations

from ipu_vit.emulator.optim import SGD, Optimizer, VariableAttributes

__all__ = ["SGD", "Optimizer", "VariableAttributes"]
