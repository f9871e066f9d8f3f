"""PyTorch's attention, taken apart as on a device instead of fused."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Iterator

import torch

# Switches of PyTorch's fused kernels; CPUs follow those for CUDA.
_SWITCHES = ("flash", "mem_efficient", "math")


@contextmanager
def math_attention() -> Iterator[None]:
    """Have nn.MultiheadAttention and its like run as plain matrix products and softmax."""
    cuda = torch.backends.cuda
    before = {name: getattr(cuda, f"{name}_sdp_enabled")() for name in _SWITCHES}
    try:
        for name in _SWITCHES:
            getattr(cuda, f"enable_{name}_sdp")(name == "math")
        yield
    finally:
        for name, enabled in before.items():
            getattr(cuda, f"enable_{name}_sdp")(enabled)
