"""Memory of images is kept."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, numpy as np
from ipu_vit.data.memory import keep_freed_memory
if {keep}: keep_freed_memory()
def work():
    for side in (400, 700, 300):
        np.ones((side, side, 3), np.uint8)
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100): work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_freed_memory_needs_no_page_faults_to_be_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)

    def faults(keep: bool) -> int:
        return int(subprocess.check_output([sys.executable, "-c", PROGRAM.format(keep=keep)]))

    assert faults(keep=True) < 100 < faults(keep=False)
