"""How float16 programs are computed: exactly as half precision, or fast.

Exact is the default: `HalfArithmetic` rounds every operator's result to half. With
`IPU_VIT_EMULATOR_ARITHMETIC=bfloat16` forward and backward run in bfloat16 instead, which many CPUs
compute twice as fast as float32: for trying programs out, not for their numbers. Weights,
accumulators and optimizer state keep their types either way.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Callable, ContextManager, Dict, List, Sequence

import torch
from torch import Tensor

from ipu_vit.emulator.errors import Error
from ipu_vit.emulator.half import HalfArithmetic
from ipu_vit.emulator.tape import Entry, Tape

VARIABLE = "IPU_VIT_EMULATOR_ARITHMETIC"
_FAST = {torch.float16: torch.bfloat16}
_FAST_FUNCTIONS: Dict[Any, Any] = {Tensor.half: Tensor.bfloat16}
_NORMALISATIONS = ("batch_norm", "instance_norm")


class Arithmetic:
    """The arithmetic of one compiled program."""

    def __init__(self, uses_half: bool) -> None:
        chosen = os.environ.get(VARIABLE, "float16")
        if chosen not in ("float16", "bfloat16"):
            raise Error(f"{VARIABLE}={chosen} is unknown: use float16 (exact) or bfloat16 (fast)")
        self._fast = uses_half and chosen == "bfloat16"
        self._uses_half = uses_half

    def mode(self) -> ContextManager[Any]:
        """To be on while forward and backward run."""
        return HalfArithmetic() if self._uses_half and not self._fast else nullcontext()

    def tape(self, tape: Tape) -> Tape:
        """The tape in this arithmetic."""
        if not self._fast:
            return tape
        return replace(
            tape,
            entries=[_fast_entry(entry) for entry in tape.entries],
            constants={slot: _fast(tensor) for slot, tensor in tape.constants.items()},
        )

    def inputs(self, tensors: List[Tensor]) -> List[Tensor]:
        """A micro batch's inputs in this arithmetic."""
        return [_fast(tensor) for tensor in tensors] if self._fast else tensors

    def weights(self, weights: Dict[str, Tensor], written: Sequence[str]) -> Dict[str, Tensor]:
        """A replica's weights in this arithmetic, for one weight update; statistics keep their precision."""
        if not self._fast:
            return weights
        types = {name: torch.float32 if name in written else torch.bfloat16 for name in weights}
        return {name: _retyped(tensor, types[name]) for name, tensor in weights.items()}

    def put_back(self, used: Dict[str, Tensor], weights: Dict[str, Tensor], written: Sequence[str]) -> None:
        """Copy what forward wrote into the weights of this arithmetic back to the replica's."""
        if self._fast:
            for name in written:
                weights[name].copy_(used[name])


def _fast(tensor: Tensor) -> Tensor:
    return tensor.bfloat16() if tensor.dtype == torch.float16 else tensor


def _retyped(weight: Tensor, dtype: torch.dtype) -> Tensor:
    if weight.dtype != torch.float16:
        return weight
    return weight.detach().to(dtype).requires_grad_(weight.requires_grad)


def _fast_entry(entry: Entry) -> Entry:
    function = _FAST_FUNCTIONS.get(entry.function, entry.function)
    if getattr(function, "__name__", "") in _NORMALISATIONS:
        function = _with_float_weights(function)
    return replace(
        entry,
        function=function,
        args=[_fast_argument(arg) for arg in entry.args],
        kwargs={name: _fast_argument(value) for name, value in entry.kwargs.items()},
    )


def _fast_argument(value: Any) -> Any:
    return _FAST.get(value, value) if isinstance(value, torch.dtype) else value


def _with_float_weights(normalise: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A normalisation whose statistics are float32, as PyTorch then wants its weights to be."""

    def call(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return normalise(input, *map(_widened, args), **{name: _widened(value) for name, value in kwargs.items()})

    return call


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value
