"""Automatic loss scaling (rule 3.9).

Gradients that come near half's range call for a smaller loss scale; if none does, a larger one makes
less of them underflow. PopART counts the elements of all float16 gradients in two bins, below and
above an edge, and halves the scale when the upper bin holds more than a very small share of them, else
doubles it, for the next weight update. The factor starts at 1 and multiplies the program's own
loss_scaling; their product never exceeds 2^15, which half can represent.

What differs from PopART: it counts the gradients of single operators, here those of PyTorch's functions count,
which may consist of several; and it bounds the product only if weights are half.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from ipu_vit.emulator.errors import Error
from ipu_vit.emulator.options import Options
from ipu_vit.emulator.update.reduction import sum_over_processes

_LARGEST_HALF = 65504.0
_LARGEST_SCALE = 2.0**15
_PREFIX = "automaticLossScalingSettings."


class AutomaticLossScale:
    """The factor on the program's loss scale, and the counts that decide about its next change."""

    def __init__(self, options: Options, uses_half: bool) -> None:
        """Raises Error for a program without float16, and for settings out of range."""
        self.factor = torch.ones(())
        self._options = options
        if not uses_half:
            raise Error(
                "Automatic loss scaling finds no float16 gradient to track: use it with a model in half, or switch it "
                "off with Training.setAutomaticLossScaling(False)"
            )
        self._edge = _LARGEST_HALF * self._proportion("binEdgeLocation", 0.125)
        self._threshold = self._proportion("thresholdUpperCountProportion", 1e-7)
        self._period = int(self._setting("updatePeriod", 1))
        if self._period < 1:
            raise Error(f"{_PREFIX}updatePeriod must be at least 1, not {self._period}")
        self._updates = 0
        self._counts = torch.zeros(2, dtype=torch.float32)

    def scale(self, loss_scaling: float) -> float:
        """The loss scale of the coming micro batches, a float32 number."""
        return float(np.float32(loss_scaling) * np.float32(self.factor.item()))

    def observe(self, gradient: Tensor) -> None:
        """Count the elements of a gradient in half precision."""
        if self._updates % self._period or gradient.dtype == torch.float32:
            return
        with _disable_current_modes():
            below = int((gradient.float().abs_() < self._edge).sum())  # NaN is not below
            self._counts += torch.tensor([float(below), float(gradient.numel() - below)])

    def update(self, loss_scaling: float) -> None:
        """Change the factor after a weight update, if it is one of those that count."""
        counted = self._updates % self._period == 0
        self._updates += 1
        if not counted:
            return
        if self._options.Distributed.numProcesses > 1:
            sum_over_processes([self._counts])
        below, above = self._counts.tolist()
        self._counts = torch.zeros(2, dtype=torch.float32)
        self.factor.mul_(0.5 if above > self._threshold * (below + above) else 2.0)
        self.factor.clamp_(max=_LARGEST_SCALE / abs(loss_scaling))

    def _setting(self, name: str, default: Any) -> Any:
        return self._options._Popart.options.get(_PREFIX + name, default)

    def _proportion(self, name: str, default: float) -> float:
        value = float(self._setting(name, default))
        if not 0 <= value <= 1:
            raise Error(f"{_PREFIX}{name} must be from 0 to 1, not {value}")
        return value
