"""What training on the emulator takes of memory, against an ordinary PyTorch loop in a process of its own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

# 16 layers of 1 M weights: what weights, gradients and momentum take is 67 MB each, and all else is small.
COMMON = """
import re, sys
import torch
import ipu_vit.emulator
ipu_vit.emulator.install()
import poptorch

class Model(torch.nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def forward(self, images, labels):
        return torch.nn.functional.cross_entropy(self.layers(images), labels)

# What both programs have: everything imported, and the buffers of PyTorch's libraries.
small = Model(torch.nn.Linear(4, 4))
poptorch.trainingModel(small, optimizer=torch.optim.SGD(small.parameters(), lr=0.1))(
    torch.randn(4, 4), torch.randint(0, 4, (4,))
)

steps = int(sys.argv[1])
torch.manual_seed(0)
layers = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024) for _ in range(16)))
images, labels = torch.randn(4 * steps, 1024), torch.randint(0, 1024, (4 * steps,))

def peak():  # unlike ru_maxrss, of this program only and not of the one that started it
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) / 2**10

before = peak()
"""
PLAIN = """
optimizer = torch.optim.SGD(layers.parameters(), lr=0.1, momentum=0.9)
for _ in range(3):
    optimizer.zero_grad()
    for some, their in zip(images.split(4), labels.split(4)):
        torch.nn.functional.cross_entropy(layers(some), their).backward()
    optimizer.step()
print(peak() - before)
"""
EMULATED = """
options = poptorch.Options()
options.Training.gradientAccumulation(steps)
optimizer = poptorch.optim.SGD(layers.parameters(), lr=0.1, momentum=0.9)
executor = poptorch.trainingModel(Model(layers), options, optimizer)
for _ in range(3):
    executor(images, labels)
print(peak() - before)
"""


def megabytes(program: str, steps: int) -> float:
    """By how much a program's largest memory exceeds what it has with the model only."""
    command = [sys.executable, "-c", COMMON + program, str(steps)]
    # What is freed goes back to the system at once, so that the process has what its tensors have.
    environment = {**os.environ, "GLIBC_TUNABLES": "", "MALLOC_MMAP_THRESHOLD_": str(1 << 16)}
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return float(result.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_training_takes_no_more_memory_than_plain_pytorch() -> None:
    plain, emulated = megabytes(PLAIN, 4), megabytes(EMULATED, 4)
    assert 130 < plain < 200  # gradients and momentum, else the comparison says nothing
    assert emulated < 1.1 * plain
    assert megabytes(EMULATED, 16) < emulated + 10


FREES = """
import pathlib, torch
torch.ones(50_000_000)  # 200 MB
print(pathlib.Path("/proc/self/statm").read_text().split()[1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="others' malloc is left as it is")
def test_command_line_keeps_what_tensors_give_up_unless_told_otherwise(tmp_path: Path) -> None:
    """The memory that the process has once a large tensor is gone."""
    (tmp_path / "frees.py").write_text(FREES)
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("GLIBC_", "MALLOC_"))}

    def megabytes_kept(**variables: str) -> float:
        command = [sys.executable, "-m", "ipu_vit.emulator", str(tmp_path / "frees.py")]
        environment = {**plain, **variables, "PYTHONPATH": str(Path(__file__).parents[2])}
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
        return int(result.stdout) * os.sysconf("SC_PAGESIZE") / 1e6

    assert megabytes_kept() > megabytes_kept(GLIBC_TUNABLES="glibc.malloc.check=0") + 150
