"""Recurrent layers: a device has them of one layer and one direction (PopTorch's `RNNOps.cpp`)."""

from __future__ import annotations

from typing import Any, Callable, Dict

import torch

from ipu_vit.emulator import promotion
from ipu_vit.emulator.errors import Error
from ipu_vit.emulator.user_code import current_line

_LAYERS = {
    "LSTM": torch._VF.lstm,
    "GRU": torch._VF.gru,
    "RNN": torch._VF.rnn_tanh,
    "RNN of ReLU": torch._VF.rnn_relu,
}


def replacements() -> Dict[Any, Callable[..., Any]]:
    """What looks at the layer before it is called."""
    others = promotion.replacements()
    return {function: _checking(name, others[function]) for name, function in _LAYERS.items()}


def _checking(name: str, promoting: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        # input (and the sizes of its batches, if it is packed), state, weights, and then:
        bias, layers, dropout, _, bidirectional = args[3:8] if isinstance(args[3], bool) else args[4:9]
        if layers != 1:
            raise Error(f"Only {name} with 1 layer supported: put several in a row ({current_line()})")
        if bidirectional:
            raise Error(f"bidirectional {name} not supported: flip the sequence for a second layer ({current_line()})")
        if dropout:
            raise Error(f"{name} only supports dropout = 0.0: use nn.Dropout after the layer ({current_line()})")
        if not bias and name != "GRU":
            raise Error(f"{name} without biases not supported: freeze them at zero ({current_line()})")
        return promoting(*args)

    return call
