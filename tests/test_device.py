"""Which device is chosen, with and without an SDK; each case in a process that has not chosen yet."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Optional

import pytest
from tiny_runs import run

from ipu_vit.device import Device

ROOT = Path(__file__).parent.parent

SELECT = """
import sys
from ipu_vit.device import select
from ipu_vit.errors import UserError
try:
    device = select(sys.argv[1], 16)
except UserError as error:
    print("refused:", error)
else:
    import poptorch
    print(device.kind, "emulated" if "emulator" in poptorch.__file__ else "sdk", device.reason)
"""

# What the SDK would answer; it must never be imported from anywhere else.
SDK = """
def ipuHardwareIsAvailable(num_ipus=1):
    return num_ipus <= {free}
"""


def select(folder: Path, wanted: str, free: Optional[int]) -> str:
    """The choice on a machine with that many free IPUs, or without the SDK."""
    if free is not None:
        (folder / "poptorch").mkdir()
        (folder / "poptorch" / "__init__.py").write_text(SDK.format(free=free))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    result = run([sys.executable, "-c", SELECT, wanted], env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.parametrize(
    "wanted, free, expected",
    [
        ("auto", None, "cpu emulated PopTorch is not installed"),
        ("auto", 0, "cpu emulated PopTorch finds no 16 free IPUs"),
        ("auto", 15, "cpu emulated PopTorch finds no 16 free IPUs"),
        ("auto", 16, "ipu sdk 16 IPUs are available"),
        ("ipu", 16, "ipu sdk 16 IPUs are available"),
        ("ipu", 8, "refused: device=ipu needs 16 free IPUs"),
        ("ipu", None, "refused: device=ipu needs PopTorch"),
        ("ipu_model", 0, "ipu_model sdk device=ipu_model"),
        ("ipu_model", None, "refused: device=ipu_model needs PopTorch"),
        ("cpu", None, "cpu emulated device=cpu"),
        ("cpu", 16, "cpu emulated device=cpu"),
    ],
)
def test_choice(tmp_path: Path, wanted: str, free: Optional[int], expected: str) -> None:
    assert select(tmp_path, wanted, free).startswith(expected)


def test_only_ipus_are_hardware() -> None:
    assert [Device(kind, "").is_hardware for kind in ("ipu", "ipu_model", "cpu")] == [True, False, False]
