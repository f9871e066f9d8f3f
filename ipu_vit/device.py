"""Which device runs the program; the only place that knows the emulator exists.

`select` must be called before any module that imports `poptorch`.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
from dataclasses import dataclass
from typing import Any, Callable, ContextManager, Optional

from ipu_vit import emulator
from ipu_vit.errors import UserError


@dataclass(frozen=True)
class Device:
    """The device a run uses, and why."""

    kind: str  # "ipu", "ipu_model" or "cpu"
    reason: str

    @property
    def is_hardware(self) -> bool:
        return self.kind == "ipu"

    def micro_batch_progress(self, observer: Callable[[int, int], None]) -> ContextManager[Any]:
        """Have `observer(done, total)` called inside a host call, where the device can tell."""
        if self.kind != "cpu":
            return contextlib.nullcontext()
        from ipu_vit.emulator.runner import observe_micro_batches

        return observe_micro_batches(observer)


def select(wanted: str, ipus: int) -> Device:
    """Make `import poptorch` find the right PopTorch for a program that takes that many IPUs.

    Raises UserError when the device asked for is not there.
    """
    if wanted == "cpu":
        emulator.install()
        return Device("cpu", "device=cpu")
    if not emulator.is_installed() and importlib.util.find_spec("poptorch") is not None:
        return _select_with_sdk(wanted, ipus)
    if wanted != "auto":
        raise UserError(
            f"device={wanted} needs PopTorch, which this Python does not have: enable the Poplar SDK and its virtual "
            "environment, or use device=cpu"
        )
    emulator.install()
    return Device("cpu", "PopTorch is not installed")


def _select_with_sdk(wanted: str, ipus: int) -> Device:
    poptorch = importlib.import_module("poptorch")
    if wanted == "ipu_model":
        return Device("ipu_model", "device=ipu_model")
    if poptorch.ipuHardwareIsAvailable(ipus):
        return Device("ipu", f"{ipus} IPUs are available")
    if wanted == "ipu":
        raise UserError(
            f"device=ipu needs {ipus} free IPUs, which PopTorch does not find: check them with gc-monitor, or use "
            "device=ipu_model or device=cpu"
        )
    emulator.install()
    return Device("cpu", f"PopTorch finds no {ipus} free IPUs")


def find_popdist() -> Optional[Any]:
    """PopDist, if PopRun has started this process: the SDK's, or the emulator's where there is none."""
    if importlib.util.find_spec("popdist") is not None:
        popdist = importlib.import_module("popdist")
    elif "POPDIST_NUM_TOTAL_REPLICAS" in os.environ:  # looked for here too, as the emulator's brings torch along
        popdist = importlib.import_module("ipu_vit.emulator.popdist")
    else:
        return None
    return popdist if popdist.isPopdistEnvSet() else None
