"""PopTorch's own operators, for a model's forward. On a CPU they compute what the device would.

Those with more to them have rooms of their own: `control_flow`, `printing`, `scopes`, `cpu_op`,
`point_clouds`, `ctc` and `blocks`.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Optional, Tuple, Union

import torch
from torch import Tensor

from ipu_vit.emulator import device, left_out
from ipu_vit.emulator.arguments import require, require_type
from ipu_vit.emulator.enums import MatMulSerializationMode, OverlapMode
from ipu_vit.emulator.structure import map_leaves
from ipu_vit.emulator.tape import opaque

Attributes = Dict[str, Union[float, int, str, list, tuple]]


def identity_loss(x: Tensor, reduction: str) -> Tensor:
    """`poptorch.identity_loss`: mark a value as the loss to differentiate (rules 2.3, 2.5)."""
    reductions: Dict[str, Callable[[Tensor], Tensor]] = {"sum": torch.sum, "mean": torch.mean, "none": torch.clone}
    assert reduction in reductions, f"Unsupported reduction {reduction!r}: use 'sum', 'mean' or 'none'"
    loss = reductions[reduction](x)
    context = device.active()
    if context is not None:
        context.on_loss(loss)
    return loss


# Hints, which change no number -------------------------------------------------------------------


def nop(tensor: Tensor) -> Tensor:
    """`poptorch.nop`: an identity that PopART does not remove."""
    require_type(tensor, Tensor, "nop", "tensor")
    return tensor.clone()


def recomputationCheckpoint(*tensors: Any) -> Any:
    """`poptorch.recomputationCheckpoint`: store these values for the backward pass (rule 5.17).

    One tensor returns a tensor, several a tuple, a single list or tuple its own type; anything else
    is a ValueError.
    """
    if len(tensors) == 1 and isinstance(tensors[0], (list, tuple)):
        return type(tensors[0])([_checkpoint(tensor) for tensor in tensors[0]])
    marked = tuple(_checkpoint(tensor) for tensor in tensors)
    return marked[0] if len(marked) == 1 else marked


def _checkpoint(tensor: Any) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise ValueError(f"recomputationCheckpoint takes tensors, or one list or tuple of them, not {tensor!r}")
    context = device.active()
    if context is not None:
        context.on_checkpoint(tensor)
    return tensor


def set_available_memory(tensor: Tensor, available_memory_proportion: float) -> Tensor:
    """`poptorch.set_available_memory`: a hint for the operator that made this tensor (rule 9.10)."""
    proportion = available_memory_proportion
    require_type(tensor, Tensor, "set_available_memory", "tensor")
    require(
        isinstance(proportion, (int, float)),
        f"set_available_memory: available_memory_proportion must be a number, not {proportion!r}",
    )
    require(
        device.active() is None or 0 <= proportion <= 1,
        f"set_available_memory: available_memory_proportion must be between 0 and 1, not {proportion}",
    )
    return tensor


def set_overlap_for_input(input_tensors: Any, mode: OverlapMode) -> Any:
    """`poptorch.set_overlap_for_input`: fetch these inputs while the device computes (rule 9.11)."""
    return _with_overlap("set_overlap_for_input", input_tensors, mode)


def set_overlap_for_output(output_tensors: Any, mode: OverlapMode) -> Any:
    """`poptorch.set_overlap_for_output`: send these outputs while the device computes (rule 9.11)."""
    return _with_overlap("set_overlap_for_output", output_tensors, mode)


def _with_overlap(operator: str, tensors: Any, mode: OverlapMode) -> Any:
    if not isinstance(mode, OverlapMode):
        raise AttributeError(f"{operator}: mode must be a poptorch.OverlapMode, not {mode!r}")

    def mark(leaf: Any) -> Tensor:
        require(isinstance(leaf, Tensor), f"{operator} takes tensors, or containers of them, not {leaf!r}")
        context = device.active()
        if context is not None:
            context.on_overlap(mode)
        return leaf

    return map_leaves(mark, tensors)


# Computations ------------------------------------------------------------------------------------


def serializedMatMul(
    lhs: Tensor, rhs: Tensor, mode: MatMulSerializationMode, factor: int = 0, keep_precision: bool = False
) -> Tensor:
    """`poptorch.serializedMatMul`: a matrix product in `factor` pieces, one after the other, to save memory."""
    assert isinstance(keep_precision, bool), f"keep_precision must be a bool, not {keep_precision!r}"
    assert isinstance(factor, int), f"factor must be an int, not {factor!r}"
    assert isinstance(mode, MatMulSerializationMode), f"mode must be a poptorch.MatMulSerializationMode, not {mode!r}"
    if device.active() is not None and mode is not MatMulSerializationMode.Disabled:
        sizes = {
            MatMulSerializationMode.InputChannels: lhs.shape[-2] if lhs.dim() > 1 else 1,
            MatMulSerializationMode.ReducingDim: lhs.shape[-1],
            MatMulSerializationMode.OutputChannels: rhs.shape[-1] if rhs.dim() > 1 else 1,
        }
        require(
            factor > 0 and sizes[mode] % factor == 0,
            f"serializedMatMul: factor {factor} does not divide the size {sizes[mode]} of the dimension that "
            f"{mode.name} cuts; choose a divisor of it",
        )
    return torch.matmul(lhs, rhs)


def dynamic_slice(tensor: Tensor, dim: int, start: Tensor, size: int, step: int) -> Tensor:
    """`poptorch.dynamic_slice`: `size` places from a computed `start` on, every `step`-th of them (rule 12.5)."""
    _check_slice("dynamic_slice", tensor, "tensor", dim, start, size)
    require_type(step, int, "dynamic_slice", "step")
    require(step > 0, f"dynamic_slice: step must be at least 1, not {step}")
    return _dynamic_slice(tensor, dim, start, size, step)


def dynamic_update(input: Tensor, src: Tensor, dim: int, start: Tensor, size: int) -> Tensor:
    """`poptorch.dynamic_update`: the input with `src` in the `size` places from a computed `start` on (rule 12.5)."""
    _check_slice("dynamic_update", input, "input", dim, start, size)
    require_type(src, Tensor, "dynamic_update", "src")
    require(input.dtype == src.dtype, f"dynamic_update: input is of type {input.dtype}, src of {src.dtype}")
    expected = list(input.shape)
    expected[dim] = size
    require(
        list(src.shape) == expected,
        f"dynamic_update: src has the shape {tuple(src.shape)}, but the places it goes to have {tuple(expected)}",
    )
    return _dynamic_update(input, src, dim, start)


def _check_slice(operator: str, tensor: Tensor, name: str, dim: int, start: Tensor, size: int) -> None:
    require_type(tensor, Tensor, operator, name)
    require_type(dim, int, operator, "dim")
    require_type(start, Tensor, operator, "start")
    require_type(size, int, operator, "size")
    require(
        start.dtype in (torch.int16, torch.int32, torch.int64) and start.numel() == 1,
        f"{operator}: start must hold one integer, not {start.numel()} of type {start.dtype}",
    )
    require(
        -tensor.dim() <= dim < tensor.dim(), f"{operator}: there is no dimension {dim} in shape {tuple(tensor.shape)}"
    )
    require(
        0 < size <= tensor.shape[dim],
        f"{operator}: size must be between 1 and the {tensor.shape[dim]} places of dimension {dim}, not {size}",
    )


@opaque
def _dynamic_slice(tensor: Tensor, dim: int, start: Tensor, size: int, step: int) -> Tensor:
    return tensor.index_select(dim, _places(tensor.shape[dim], start, size, step))


@opaque
def _dynamic_update(input: Tensor, src: Tensor, dim: int, start: Tensor) -> Tensor:
    return input.index_copy(dim, _places(input.shape[dim], start, src.shape[dim], 1), src)


def _places(length: int, start: Tensor, size: int, step: int) -> Tensor:
    """Indices from `start` on, which continue at the beginning when they pass the end."""
    return (start.reshape(1).long() + torch.arange(0, size, step, device=start.device)).remainder(length)


def custom_op(
    inputs: Tuple[Tensor, ...],
    name: str,
    domain: str,
    domain_version: int,
    example_outputs: Tuple[Tensor, ...],
    attributes: Optional[Attributes] = None,
) -> List[Tensor]:
    """`poptorch.custom_op`, which on a CPU returns zeros, as PopTorch's does, and on a device is left out."""
    for key, value in (attributes or {}).items():
        _check_attribute(key, value)
    if device.active() is not None:
        left_out.refuse("poptorch.custom_op")
    return [torch.zeros_like(output) for output in example_outputs]


def _check_attribute(key: Any, value: Any) -> None:
    if not isinstance(key, str):
        raise ValueError(f"custom_op: attribute names must be strings, not {key!r}")
    if not isinstance(value, (float, int, str, list, tuple)):
        raise ValueError(f"custom_op: attribute {key} must be a float, an int, a string or a list of one of them")
    items = value if isinstance(value, (list, tuple)) else [value]
    if len({type(item) for item in items}) > 1:
        raise ValueError(f"custom_op: the items of attribute {key} must be of one type, unlike {value!r}")
    for text in (key, *items):
        if isinstance(text, str) and not text.isascii():
            raise ValueError(f"custom_op: attribute {key} contains characters outside ASCII: {text!r}")
