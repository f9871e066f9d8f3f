"""Stands in for `poptorch.profiling`."""

from __future__ import annotations

from ipu_vit.emulator.profiling import Channel

__all__ = ["Channel"]
