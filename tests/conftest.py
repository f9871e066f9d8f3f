"""Every test runs with the emulator in PopTorch's place, on two threads."""

from __future__ import annotations

import os

# Before torch is imported: threads that wait must not spin, or two processes on two cores crawl.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import ipu_vit.emulator

ipu_vit.emulator.install()
