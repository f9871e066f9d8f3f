"""Every test runs with the emulator in PopTorch's place, one thread for each process, and repeatable examples.

`HYPOTHESIS_PROFILE=searching pytest …` draws other examples each time: rounding may add up to anything in one of many
thousands, so that is for looking for faults and not for saying whether a change may land.
"""

from __future__ import annotations

import os
from typing import Iterator

# Before torch is imported. Tests start processes of their own, and threads of several processes that
# wait for each other on two cores take a hundred times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

import ipu_vit.emulator

ipu_vit.emulator.install()
# Without deadlines, which a busy machine misses.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("searching", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


@pytest.fixture(autouse=True, scope="session")
def nothing_outlives_a_power_cut() -> Iterator[None]:
    """What tests write need not reach the disk, for which every run would wait seven times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield
