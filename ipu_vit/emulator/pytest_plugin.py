"""`pytest -p ipu_vit.emulator.pytest_plugin`: test a PopTorch project on this CPU.

Importing it is what installs the emulator, which must come before any conftest or test imports poptorch. pytest is
never told of it by itself, for it would hide the PopTorch of an SDK.
"""

from __future__ import annotations

from ipu_vit import emulator

emulator.install()


def pytest_report_header() -> str:
    """Say in pytest's first lines which PopTorch is tested."""
    return f"poptorch: {emulator.found_poptorch()}"
