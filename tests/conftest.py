"""Every test runs with the emulator in PopTorch's place, one thread for each process, and repeatable examples.

`HYPOTHESIS_PROFILE=default pytest …` draws other examples each time: rounding may add up to anything in one of many
thousands, so that is for looking for faults and not for saying whether a change may land.
"""

from __future__ import annotations

import os

# Before torch is imported. Tests start processes of their own, and threads of several processes that
# wait for each other on two cores take a hundred times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import settings

import ipu_vit.emulator

ipu_vit.emulator.install()
settings.register_profile("repeatable", derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))
