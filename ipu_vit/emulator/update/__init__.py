"""Weight updates on the device: accumulation, reduction, and each optimizer's mathematics."""

from __future__ import annotations

from ipu_vit.emulator.update.weight_update import WeightUpdate
