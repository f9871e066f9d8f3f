"""Functions that PyTorch wants operands of one type for, and a device promotes to float32 (rule 6.2)."""

from __future__ import annotations

from typing import Any, Callable, Dict

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

_PARTICULAR = (
    F.bilinear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d, F.linear,
    F.prelu, torch._VF.gru, torch._VF.lstm, torch._VF.rnn_relu, torch._VF.rnn_tanh, torch.addbmm, torch.addmm,
    torch.addmv, torch.baddbmm, torch.bmm, torch.dot, torch.einsum, torch.matmul, torch.mm, torch.mv, torch.tensordot,
    Tensor.__matmul__, Tensor.__rmatmul__, Tensor.addbmm, Tensor.addmm, Tensor.addmv, Tensor.baddbmm, Tensor.bmm,
    Tensor.dot, Tensor.matmul, Tensor.mm, Tensor.mv,
)  # fmt: skip


def replacements() -> Dict[Any, Callable[..., Any]]:
    """What calls them with operands of one type."""
    return {function: _promoting(function) for function in _PARTICULAR}


def _promoting(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        types = {leaf.dtype for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)}
        if not {torch.float16, torch.float32} <= types:
            return NotImplemented
        return function(*tree_map(_widened, args), **tree_map(_widened, kwargs))

    return call


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.float16 else value
