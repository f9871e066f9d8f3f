"""Recurrent layers: a device has them of one layer and one direction (PopTorch's `RNNOps.cpp`)."""

from __future__ import annotations

from typing import Any, Sequence

import torch

from ipu_vit.emulator.errors import Error
from ipu_vit.emulator.user_code import current_line

_NAMES = {torch._VF.lstm: "LSTM", torch._VF.gru: "GRU", torch._VF.rnn_tanh: "RNN", torch._VF.rnn_relu: "RNN"}


def check_layer(function: Any, args: Sequence[Any]) -> None:
    """Error if a function is a recurrent layer that a device does not have."""
    name = _NAMES.get(function)
    if name is None:
        return
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
