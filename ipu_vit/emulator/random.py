"""Random numbers of the device.

The state is two integers: the seed, and how many micro batches each replica has run. Every micro
batch of every replica, and every weight update, starts its own streams from them, so that a run can
be continued from its `rng_state`, replicas draw differently, and nothing depends on the order in
which replicas run. Host random numbers are left alone.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Iterator, List, Optional, Tuple

import numpy as np
import torch
from torch import Tensor


class BitStream:
    """Uniform 16-bit numbers, ten times cheaper than PyTorch's generator makes them."""

    def __init__(self, *key: int) -> None:
        self._source = np.random.SFC64(np.random.SeedSequence(key))

    def int16(self, count: int) -> Tensor:
        """That many independent int16 numbers."""
        words: Any = self._source.random_raw(-(-count // 4))
        return torch.from_numpy(words.view(np.int16)[:count])


class DeviceRandom:
    """What a device draws: PyTorch's numbers for operators, a bit stream for dropout masks."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.micro_batches = 0
        self._bits: Optional[BitStream] = None

    @property
    def state(self) -> List[int]:
        return [self.seed, self.micro_batches]

    @state.setter
    def state(self, state: List[int]) -> None:
        self.seed, self.micro_batches = (int(value) for value in state)

    @contextmanager
    def micro_batch(self, replica: int, index: int) -> Iterator[None]:
        """Draw for the index-th micro batch from now; PyTorch's global generator is lent meanwhile."""
        key = (self.seed, 0, replica, self.micro_batches + index)
        self._bits = BitStream(*key)
        host_state = torch.get_rng_state()
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1)))
        try:
            yield
        finally:
            torch.set_rng_state(host_state)
            self._bits = None

    def rounding(self, stream: int) -> BitStream:
        """The bits that round what one of several streams stores during the coming weight update."""
        return BitStream(self.seed, 1, stream, self.micro_batches)

    def advance(self, micro_batches: int) -> None:
        """That many micro batches of every replica are done."""
        self.micro_batches += micro_batches

    def dropout(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        """Dropout whose mask comes from 16-bit numbers: probabilities are exact to 2^-16."""
        if not 0 <= p <= 1:
            raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
        if not training or p == 0:
            return input
        dropped: Tensor = _Dropout.apply(input, self._keep_mask(input, p), 1 / (1 - p) if p < 1 else 0.0)
        return input.copy_(dropped) if inplace else dropped

    def _keep_mask(self, input: Tensor, p: float) -> Tensor:
        threshold = round(p * 2**16) - 2**15
        if self._bits is None or threshold >= 2**15:  # while tracing, nothing is drawn
            return torch.zeros_like(input, dtype=torch.bool)
        return (self._bits.int16(input.numel()) >= threshold).view(input.shape)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, mask: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(mask)
        ctx.scale = scale
        return input * mask * scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tuple[Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        return grads[0] * mask * ctx.scale, None, None
