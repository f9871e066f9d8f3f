"""PyTorch's switches on the host, none of which reaches the device."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Iterator

import torch

# Switches of PyTorch's fused attention kernels; CPUs follow those for CUDA.
_ATTENTION = ("flash", "mem_efficient", "math")


@contextmanager
def neutral() -> Iterator[None]:
    """Compute as a device does, however the call that asks for it is surrounded.

    `torch.inference_mode` and `torch.autocast` end at the executor, and nn.MultiheadAttention and its like are taken
    apart into matrix products and softmax, not fused.
    """
    cuda = torch.backends.cuda
    before = {name: getattr(cuda, f"{name}_sdp_enabled")() for name in _ATTENTION}
    try:
        for name in _ATTENTION:
            getattr(cuda, f"enable_{name}_sdp")(name == "math")
        with torch.inference_mode(False), torch.autocast("cpu", enabled=False):
            yield
    finally:
        for name, enabled in before.items():
            getattr(cuda, f"enable_{name}_sdp")(enabled)
