"""`poptorch.CPU`: a Python function that the host computes in the middle of a model.

The function sees real tensors at every micro batch of every run, so it may do what forward may not:
look at values, keep count, call other libraries.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Callable, Iterator, List, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from ipu_vit.emulator import device
from ipu_vit.emulator.arguments import require, require_type
from ipu_vit.emulator.kinds import Kinds, kinds_of, placeholders
from ipu_vit.emulator.tape import is_fake, opaque


class CPU:
    """A function, or a module, as an operator of the host; for inference only."""

    def __init__(self, layer_to_call: Callable[..., Any], ID: str) -> None:
        if isinstance(layer_to_call, nn.Module):
            layer_to_call.requires_grad_(False)
        self._layer_to_call = layer_to_call
        self._ID = ID
        self._returns_one = True
        self.inputs: List[Tensor] = []
        self.outputs: List[Tensor] = []

    def execute(self) -> None:
        """Call the layer on `inputs` and copy its results to `outputs`."""
        with _on_host():
            results = self._layer_to_call(*self.inputs)
            self._returns_one = not isinstance(results, (list, tuple))
            self.outputs = [result.clone() for result in ([results] if self._returns_one else results)]

    def registerPersistentData(self) -> None:
        """Put zeros in the place of `inputs`, which is what the layer sees while the model is traced."""
        with _on_host():
            self.inputs = [torch.zeros(tensor.shape, dtype=tensor.dtype) for tensor in self.inputs]

    def __call__(self, *input: Tensor, **kwargs: Any) -> Any:
        """What the layer returns: one tensor, or several. Like PopTorch, this passes no keyword arguments on."""
        context = device.active()
        if context is None:
            return self._layer_to_call(*input)
        operator = f"poptorch.CPU({self._ID!r})"
        require(not context.training, f"{operator} is for inference only: it has no gradient")
        for tensor in input:
            require_type(tensor, Tensor, operator, "every argument")
        kinds = self._trace(input) if any(map(is_fake, input)) else None
        results = _cpu_op(self, kinds, *input)
        return results[0] if self._returns_one else results

    def _trace(self, inputs: Tuple[Tensor, ...]) -> Kinds:
        self.inputs = list(inputs)
        self.registerPersistentData()
        self.execute()
        with _on_host():
            return kinds_of(self._taken())

    def _taken(self) -> List[Tensor]:
        """The outputs, without keeping any tensor: models are pickled."""
        outputs, self.inputs, self.outputs = self.outputs, [], []
        return outputs


@opaque
def _cpu_op(operator: CPU, kinds: Optional[Kinds], *inputs: Tensor) -> List[Tensor]:
    if kinds is not None and any(map(is_fake, inputs)):
        return placeholders(kinds)
    operator.inputs = [tensor.detach().clone() for tensor in inputs]
    operator.execute()
    outputs = operator._taken()
    found = kinds_of(outputs)
    require(
        kinds is None or found == kinds,
        f"poptorch.CPU({operator._ID!r}) returned {found} after {kinds} when the model was traced: shapes and types "
        "must not change",
    )
    return outputs


@contextmanager
def _on_host() -> Iterator[None]:
    """Plain PyTorch, whatever is traced, recorded or emulated around it."""
    with _disable_current_modes(), torch._C.DisableTorchFunction(), torch.no_grad():
        yield
