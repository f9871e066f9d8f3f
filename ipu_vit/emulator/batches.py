"""Cutting host batches into micro batches, and gathering micro batches' outputs (section 1)."""

from __future__ import annotations

from typing import Any, Dict, List, Sequence, Tuple

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from ipu_vit.emulator.enums import CommGroupType, OutputMode
from ipu_vit.emulator.errors import Error
from ipu_vit.emulator.options import Options

# What the device makes of host types on the way out (rule 1.16).
_OUTPUT_TYPES = {torch.int64: torch.int32, torch.float64: torch.float32}


class HostBatch:
    """The arguments of one call: tensors to be cut, and constants."""

    def __init__(self, args: Sequence[Any], kwargs: Dict[str, Any]) -> None:
        self.leaves: List[Any]
        self.structure: TreeSpec
        self.leaves, self.structure = tree_flatten((tuple(args), dict(kwargs)))

    @property
    def signature(self) -> List[Any]:
        """What must stay the same from call to call (rule 1.10)."""
        return [(tuple(leaf.shape), leaf.dtype) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]

    def check_against(self, compiled: HostBatch) -> None:
        """Raise Error when this call does not fit what was compiled."""
        if self.structure != compiled.structure:
            raise Error(
                "The number, names or container types of the arguments differ from the compiled model's: use another "
                "executor for them"
            )
        for position, (now, then) in enumerate(zip(self.signature, compiled.signature)):
            if now != then:
                raise Error(
                    f"Argument {position} is {_describe(now)} but the model was compiled for {_describe(then)}: shapes "
                    "and types are fixed by the first call; pad or drop an incomplete batch, or use another executor"
                )

    def micro_batch(self, index: int, count: int) -> Tuple[Tuple[Any, ...], Dict[str, Any]]:
        """The index-th of `count` equal slices; AssertionError when a tensor does not divide (rule 1.1)."""
        leaves = [_slice(leaf, position, index, count) for position, leaf in enumerate(self.leaves)]
        args, kwargs = tree_unflatten(leaves, self.structure)
        return args, kwargs


def _slice(leaf: Any, position: int, index: int, count: int) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    if leaf.numel() == 0:
        raise Error(
            f"Argument {position} is a zero-sized tensor of shape {tuple(leaf.shape)}, which a device cannot have"
        )
    rows = leaf.shape[0] if leaf.dim() else 1
    assert rows % count == 0, (
        f"Argument {position} has {rows} rows, which do not divide by {count} (device iterations × replicas × gradient "
        "accumulation): pass combinedBatchSize rows, as poptorch.DataLoader does"
    )
    leaf = leaf.detach()
    return leaf.narrow(0, index * (rows // count), rows // count) if leaf.dim() else leaf


def _describe(part: Any) -> str:
    return f"a tensor of shape {part[0]} and type {part[1]}" if isinstance(part, tuple) and part else repr(part)


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

    def __init__(self, options: Options, layout: Layout) -> None:
        self._mode = OutputMode(options.output_mode)
        self._period: int = options.output_return_period
        self._layout = layout
        self._leaves: Dict[Tuple[int, int], List[Any]] = {}
        self._sums: Dict[int, List[Any]] = {}
        self._structure: Any = None

    def add(self, iteration: int, step: int, replica: int, result: Any) -> None:
        """Keep the result of one micro batch if the output mode wants it."""
        leaves, self._structure = tree_flatten(result)
        order = iteration * self._layout.accumulation + step
        last = order == self._layout.device_iterations * self._layout.accumulation - 1
        if self._mode == OutputMode.Sum:
            kept = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            before = self._sums.get(replica)
            self._sums[replica] = (
                kept
                if before is None
                else [old + new if isinstance(new, Tensor) else new for old, new in zip(before, kept)]
            )
        elif (
            self._mode == OutputMode.All
            or (self._mode == OutputMode.EveryN and (order + 1) % self._period == 0)
            or (self._mode == OutputMode.Final and last)
        ):
            self._leaves[order, replica] = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves]

    def gather(self) -> Any:
        """The structure that forward returned, with all kept rows in each tensor's place."""
        kept = sorted(self._sums.items()) if self._mode == OutputMode.Sum else sorted(self._leaves.items())
        rows = [leaves for _, leaves in kept]
        return tree_unflatten([_join(column) for column in zip(*rows)], self._structure)


def _join(column: Sequence[Any]) -> Any:
    first = column[0]
    if not isinstance(first, Tensor):
        return first
    if first.dim() == 0:
        joined = torch.stack(list(column)) if len(column) > 1 else first.clone()
    else:
        joined = torch.cat(list(column))
    return joined.to(_OUTPUT_TYPES.get(joined.dtype, joined.dtype))
