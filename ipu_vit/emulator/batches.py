"""Cutting host batches into micro batches, and gathering micro batches' outputs (section 1)."""

from __future__ import annotations

import inspect
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

import torch
from torch import Tensor

from ipu_vit.emulator.enums import CommGroupType, OutputMode
from ipu_vit.emulator.errors import Error
from ipu_vit.emulator.log import log_once, logger
from ipu_vit.emulator.options import Options
from ipu_vit.emulator.structure import flatten

# What the device makes of host types on the way out (rule 1.16).
_OUTPUT_TYPES = {torch.int64: torch.int32, torch.float64: torch.float32, torch.bfloat16: torch.float16}
# Types that tensors may have on the way in (rule 6.7).
_INPUT_TYPES = {
    torch.float32, torch.float16, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.int64,
    torch.float64,
}  # fmt: skip


class HostBatch:
    """The arguments of one call, in the order of forward's parameters: tensors to be cut, and constants."""

    def __init__(self, signature: inspect.Signature, args: Sequence[Any], kwargs: Dict[str, Any]) -> None:
        self._forward = signature
        bound = signature.bind(*args, **kwargs)
        self.leaves, self.structure = flatten((bound.args, bound.kwargs))
        self._names = list(bound.arguments)
        self.tensors = [_as_input(leaf) for leaf in self.leaves if isinstance(leaf, Tensor)]

    @property
    def signature(self) -> List[Any]:
        """What must stay the same from call to call (rule 1.10)."""
        return [_TensorKind.of(leaf) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]

    def following(self, args: Sequence[Any], kwargs: Dict[str, Any]) -> HostBatch:
        """The batch of a later call; Error when it does not fit this one, which was compiled."""
        try:
            batch = HostBatch(self._forward, args, kwargs)
        except TypeError as error:
            raise Error(f"The arguments differ from the compiled model's: {error}") from error
        if batch.structure != self.structure:
            raise Error(
                "The number, names or container types of the arguments differ from the compiled model's: use another "
                "executor for them"
            )
        for position, (now, then) in enumerate(zip(batch.signature, self.signature)):
            if now is not then and not (type(now) is type(then) and bool(now == then)):
                raise Error(
                    f"Argument {position} of {self._names} is {now!r} but the model was compiled for {then!r}: shapes, "
                    "types and constants are fixed by the first call; pad or drop an incomplete batch, or use another "
                    "executor"
                )
        return batch

    def micro_batch(self, index: int, count: int) -> List[Tensor]:
        """The index-th of `count` equal slices of each tensor; AssertionError when one does not divide (rule 1.1)."""
        return [_slice(tensor, position, index, count) for position, tensor in enumerate(self.tensors)]

    def blank(self) -> Tuple[Tuple[Any, ...], Dict[str, Any]]:
        """Arguments of the same shapes and types, without the values."""
        return self.arguments([torch.zeros((), dtype=tensor.dtype).expand(tensor.shape) for tensor in self.tensors])

    def arguments(self, tensors: Sequence[Tensor]) -> Tuple[Tuple[Any, ...], Dict[str, Any]]:
        """The arguments of the call with other tensors in the places of its own."""
        following = iter(tensors)
        leaves = [next(following) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        args, kwargs = self.structure.build(leaves)
        return args, kwargs


class _TensorKind(NamedTuple):
    shape: Tuple[int, ...]
    dtype: torch.dtype

    @staticmethod
    def of(tensor: Tensor) -> _TensorKind:
        return _TensorKind(tuple(tensor.shape), tensor.dtype)

    def __repr__(self) -> str:
        return f"a tensor of shape {self.shape} and type {self.dtype}"


def _as_input(tensor: Tensor) -> Tensor:
    """A tensor as it arrives on the device (rules 1.12, 1.13, 6.7)."""
    if tensor.dtype not in _INPUT_TYPES:
        raise Error(f"A tensor of type {tensor.dtype} cannot be an input: convert it to float32 or int32 first")
    if tensor.numel() == 0:
        raise Error(f"An input is a zero-sized tensor of shape {tuple(tensor.shape)}, which a device cannot have")
    if tensor.requires_grad:
        logger.warning("An input requires gradients, which a device does not give: it is detached")
        tensor = tensor.detach()
    if not tensor.is_contiguous():
        log_once("At least one input tensor is not contiguous: it is copied for every call")
        tensor = tensor.contiguous()
    if tensor.is_inference():
        tensor = tensor.clone()  # else the backward pass could not keep it
    if tensor.dtype == torch.float64:
        return tensor.float()
    if tensor.dtype == torch.int64 and tensor.abs().max() >= 2**31:
        return tensor.int().long()  # as int32 on the device, without a check
    return tensor


def _slice(tensor: Tensor, position: int, index: int, count: int) -> Tensor:
    rows = tensor.shape[0] if tensor.dim() else 1
    assert rows % count == 0, (
        f"Input tensor {position} has {rows} rows, which do not divide by {count} (device iterations × replicas × "
        "gradient accumulation): pass combinedBatchSize rows, as poptorch.DataLoader does"
    )
    return tensor.narrow(0, index * (rows // count), rows // count) if tensor.dim() else tensor


class Layout:
    """Which micro batch of a host batch each replica takes, and when."""

    def __init__(self, options: Options, training: bool) -> None:
        self.device_iterations: int = options.device_iterations
        self.accumulation: int = options.Training.gradient_accumulation if training else 1
        self.replicas: int = options.replication_factor
        self.groups: int = self.replicas // options.input_group_size
        self._orthogonal = options.input_cgt == CommGroupType.Orthogonal
        self._group_size: int = options.input_group_size

    @property
    def micro_batches(self) -> int:
        """Slices that every input tensor is cut into."""
        return self.device_iterations * self.groups * self.accumulation

    def input_index(self, iteration: int, step: int, replica: int) -> int:
        """The micro batch for a replica at an accumulation step of a device iteration (rule 1.3)."""
        group = replica % self.groups if self._orthogonal else replica // self._group_size
        return (iteration * self.accumulation + step) * self.groups + group


class Outputs:
    """Collects what micro batches return, in the order of the input (rules 1.3 to 1.7, 1.15, 1.16)."""

    def __init__(self, mode: OutputMode, period: int, layout: Layout) -> None:
        self._mode = mode
        self._period = period
        self._layout = layout
        self._leaves: Dict[Tuple[int, int], List[Any]] = {}

    def add(self, iteration: int, step: int, replica: int, leaves: List[Any]) -> None:
        """Keep the results of one micro batch if the output mode wants them."""
        order = iteration * self._layout.accumulation + step
        if self._mode == OutputMode.Sum:
            before = self._leaves.get((0, replica))
            kept = leaves if before is None else [_sum(old, new) for old, new in zip(before, leaves)]
            self._leaves[0, replica] = kept
        elif self._wants(order):
            self._leaves[order, replica] = leaves

    def _wants(self, order: int) -> bool:
        if self._mode == OutputMode.EveryN:
            return (order + 1) % self._period == 0
        last = order == self._layout.device_iterations * self._layout.accumulation - 1
        return self._mode == OutputMode.All or last

    def gather(self) -> List[Any]:
        """The leaves that forward returned, with all kept rows in each tensor's place."""
        return [_join(column) for column in zip(*(leaves for _, leaves in sorted(self._leaves.items())))]


def _sum(old: Any, new: Any) -> Any:
    return old + new if isinstance(new, Tensor) else new


def _join(column: Sequence[Any]) -> Any:
    first = column[0]
    if not isinstance(first, Tensor):
        return first
    if first.dim() == 0:
        joined = torch.stack(list(column)) if len(column) > 1 else first.clone()
    else:
        joined = torch.cat(list(column)) if len(column) > 1 else first.clone()
    joined = joined.to(_OUTPUT_TYPES.get(joined.dtype, joined.dtype))
    joined.backward = _refuse_backward  # type: ignore[method-assign]
    # Files of the tensor know nothing of it: torch.load(weights_only=True) would not read a function.
    joined.__getstate__ = lambda: None  # type: ignore[method-assign]
    return joined


def _refuse_backward(*args: Any, **kwargs: Any) -> None:
    raise Error(
        "backward() cannot be called on what the device returns (rule 1.17): a training model computes gradients and "
        "updates its weights by itself, in the call that returned this"
    )
