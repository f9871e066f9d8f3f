"""Stands in for `popdist.poptorch`."""

from __future__ import annotations

from ipu_vit.emulator.popdist import Options

__all__ = ["Options"]
