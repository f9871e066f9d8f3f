"""Tensors that the device returned: they cannot be differentiated (rule 1.17)."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor

from ipu_vit.emulator.errors import Error

_MARK = "_from_poptorch"


def mark(tensor: Tensor) -> Tensor:
    """Have `backward` of this tensor say why it cannot work."""
    setattr(tensor, _MARK, True)
    return tensor


def _checking(backward: Any) -> Any:
    # An attribute of the tensor itself would be simpler, but a function there keeps torch.load from reading
    # files of the tensor with weights_only=True.
    @functools.wraps(backward)
    def check(self: Tensor, *args: Any, **kwargs: Any) -> Any:
        if getattr(self, _MARK, False):
            raise Error(
                "backward() cannot be called on what the device returns (rule 1.17): a training model computes "
                "gradients and updates its weights by itself, in the call that returned this"
            )
        return backward(self, *args, **kwargs)

    return check


Tensor.backward = _checking(Tensor.backward)  # type: ignore[method-assign]
