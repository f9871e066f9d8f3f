"""Every test runs with the emulator in PopTorch's place, and one thread for each process."""

from __future__ import annotations

import os

# Before torch is imported. Tests start processes of their own, and threads of several processes that
# wait for each other on two cores take a hundred times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import ipu_vit.emulator

ipu_vit.emulator.install()
