"""Pooling and normalisation with arguments that a device ignores or has no result for (PopTorch's `PoolingOps.cpp`)."""

from __future__ import annotations

from typing import Any, Callable, Dict, Optional

import torch.nn.functional as F
from torch import Tensor

from ipu_vit.emulator.errors import Error
from ipu_vit.emulator.log import log_once
from ipu_vit.emulator.user_code import current_line


def replacements() -> Dict[Any, Callable[..., Any]]:
    """What does without them."""
    return {
        F.avg_pool2d: _dividing_by_size(F.avg_pool2d),
        F.avg_pool3d: _dividing_by_size(F.avg_pool3d),
        F.instance_norm: _instance_norm,
        F.max_pool1d_with_indices: _no_indices,
        F.max_pool2d_with_indices: _no_indices,
        F.max_pool3d_with_indices: _no_indices,
    }


def _dividing_by_size(pool: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def call(
        input: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: Optional[int] = None,
    ) -> Any:
        if divisor_override is None:
            return NotImplemented
        log_once(f"divisor_override has no effect on the device ({current_line()})")
        return pool(input, kernel_size, stride, padding, ceil_mode, count_include_pad)

    return call


def _instance_norm(
    input: Tensor,
    running_mean: Optional[Tensor] = None,
    running_var: Optional[Tensor] = None,
    weight: Optional[Tensor] = None,
    bias: Optional[Tensor] = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    if running_mean is None and running_var is None:
        return NotImplemented
    log_once(f"Instance norms have no running statistics on the device: each input's own are used ({current_line()})")
    return F.instance_norm(input, weight=weight, bias=bias, eps=eps)


def _no_indices(*args: Any, **kwargs: Any) -> Any:
    raise Error(f"return_indices=True is not supported: leave it out ({current_line()})")
