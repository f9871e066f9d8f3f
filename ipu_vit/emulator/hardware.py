"""What programs are told about IPUs: there are none."""

from __future__ import annotations


def ipuHardwareIsAvailable(num_ipus: int = 1) -> bool:
    """`poptorch.ipuHardwareIsAvailable`: whether that many IPUs are there."""
    return False


def ipuHardwareVersion() -> int:
    """`poptorch.ipuHardwareVersion`; AssertionError as there is no hardware (rule 10.2)."""
    raise AssertionError("No IPU hardware is available")
