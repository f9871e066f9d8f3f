"""float16 arithmetic on a CPU: computed in float32, rounded to half after every operator.

CPUs have no usable half arithmetic, IPUs do. While `HalfArithmetic` is on, every operator that
receives float16 tensors, forward or backward, runs on float32 copies of them and its results are
rounded back; but for a few that newer versions of PyTorch compute so themselves, register by register.
Tensors stay true `torch.float16` tensors all along, so what a program sees of them (dtype, promotion,
overflow at 65504) and what they take of memory is that of half precision.

Matrix products and convolutions accumulate in float32, whatever `Precision.setPartialsType` says (rule
6.4). With half partials a device rounds sums of a few products at a time; how many, and in which order,
is up to its libraries, so their numbers could not be met anyhow. Operators round to nearest: stochastic
rounding (rule 6.5) is for what updates store.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, Optional, Tuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ipu_vit.emulator.tiles import has_tiles, in_tiles

aten = torch.ops.aten

#: Operators that move or create numbers without computing any: half tensors pass as they are.
MOVES = {
    "_reshape_alias", "_to_copy", "_unsafe_view", "alias", "as_strided", "as_strided_", "cat", "chunk", "clone",
    "constant_pad_nd", "contiguous", "copy", "copy_", "detach", "detach_", "diagonal", "empty", "empty_like",
    "empty_strided", "equal", "expand", "fill", "fill_", "flatten", "flip", "full", "full_like", "gather", "index",
    "index_select", "is_same_size", "item", "lift_fresh", "_local_scalar_dense", "masked_fill", "masked_fill_",
    "movedim", "narrow", "new_empty", "new_empty_strided", "new_full", "new_ones", "new_zeros", "ones", "ones_like",
    "permute", "repeat", "reshape", "resize_", "roll", "select", "set_", "slice", "split", "split_with_sizes",
    "squeeze", "squeeze_", "stack", "t", "t_", "transpose", "transpose_", "unbind", "unfold", "unsafe_split",
    "unsqueeze", "unsqueeze_", "view", "where", "zero_", "zeros", "zeros_like", "select_backward", "slice_backward",
    "_unsafe_index", "unfold_backward", "is_pinned", "_pin_memory", "slice_scatter", "select_scatter",
}  # fmt: skip

#: Operators that PyTorch computes on halves as it is done here, in float32 and rounded once, without copies.
SAME = {
    "_softmax", "_softmax_backward_data", "abs", "add", "add_", "div", "div_", "mul", "mul_", "neg", "neg_", "relu",
    "sub", "sub_", "sum", "threshold_backward",
}  # fmt: skip
# Before this version it lacks some of them, and vector instructions for the others.
_FIRST_WITH_SAME = (2, 8)

# Normalisations return statistics beside their result; those stay in float32.
_STATISTICS = {"native_layer_norm", "native_batch_norm", "_native_batch_norm_legit", "native_group_norm",
               "_native_batch_norm_legit_functional", "_batch_norm_with_update"}  # fmt: skip
# Those of one operator are updated in place, though its schema does not say so.
_WRITTEN_STATISTICS = {"native_batch_norm": (3, 4)}
# Their backward operators receive these statistics, and return gradients of half tensors all the same.
_STATISTICS_BACKWARD = {name + "_backward" for name in _STATISTICS} | {"batch_norm_backward"}


@dataclass(frozen=True)
class _Rule:
    """What to do with an operator, worked out from its schema once."""

    moves: bool
    same: bool  # unless it has keyword arguments, which may be factors that PyTorch would round
    written: Tuple[int, ...]  # positions of arguments that it writes into
    rounded: Optional[int]  # how many of its results are rounded; None: all
    ignores_float_inputs: bool
    tiles: Optional[str]  # its name, if it can be computed in tiles


# Rules met so far, by their operators' identity: operators live forever, and hash slowly.
_rules: Dict[int, _Rule] = {}


class HalfArithmetic(TorchDispatchMode):
    """While on, operators on float16 tensors compute in float32 and round what they return."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Nothing is compiled by torch here; without the guard that keeps dynamo out, each operator
        # costs half as much.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        rule = _rules.get(id(func))
        if rule is None:
            rule = _rules[id(func)] = _rule_of(func)
        if rule.moves or (rule.same and not kwargs):
            return func(*args, **kwargs)
        if rule.tiles is not None and not kwargs:
            result = in_tiles(rule.tiles, func, args)
            if result is not None:
                return result
        widening = _Widening()
        wide = [widening(arg) for arg in args]
        wide_kwargs = {name: widening(value) for name, value in kwargs.items()}
        if not widening.found_half:
            return func(*args, **kwargs)
        result = func(*wide, **wide_kwargs)
        if rule.written:
            _write_back(rule, args, wide)
            if isinstance(result, Tensor):
                return args[rule.written[0]]
        if "out" in wide_kwargs:
            return kwargs["out"].copy_(result)
        if widening.promotes and not rule.ignores_float_inputs:
            return result
        if isinstance(result, Tensor):
            return result.half() if result.dtype == torch.float32 else result
        return type(result)(
            _round(item) if rule.rounded is None or i < rule.rounded else item for i, item in enumerate(result)
        )


class _Widening:
    """Replaces half by float32 in an argument, and remembers what it met."""

    __slots__ = ("found_float", "found_float_scalar", "found_half", "found_half_array")

    def __init__(self) -> None:
        self.found_half = self.found_half_array = False
        self.found_float = self.found_float_scalar = False

    @property
    def promotes(self) -> bool:
        """Whether PyTorch gives a float32 result: 0-dimensional operands count only if all are (rule 6.2)."""
        return self.found_float or (self.found_float_scalar and not self.found_half_array)

    def __call__(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            if value.dtype == torch.float16:
                self.found_half = True
                self.found_half_array |= value.dim() > 0
                return value.float()
            if value.dtype == torch.float32:
                self.found_float |= value.dim() > 0
                self.found_float_scalar |= value.dim() == 0
        elif isinstance(value, (list, tuple)):
            return [self(item) for item in value]
        elif value is torch.float16:
            # The operator is told its own operand's type, for example by softmax's backward.
            return torch.float32
        elif value is torch.float32:
            # The program asks for a float32 result.
            self.found_float = True
        return value


def _rule_of(func: Any) -> _Rule:
    name = func._schema.name.split("::")[1]
    written = tuple(
        position
        for position, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write and not argument.kwarg_only
    )
    return _Rule(
        moves=name in MOVES,
        same=name in SAME and _version() >= _FIRST_WITH_SAME,
        written=written or _WRITTEN_STATISTICS.get(name, ()),
        rounded=1 if name in _STATISTICS else None,
        ignores_float_inputs=name in _STATISTICS or name in _STATISTICS_BACKWARD,
        tiles=name if has_tiles(name) else None,
    )


def _version() -> Tuple[int, ...]:
    return tuple(map(int, torch.__version__.split(".")[:2]))


def _round(item: Any) -> Any:
    return item.half() if isinstance(item, Tensor) and item.dtype == torch.float32 else item


def _write_back(rule: _Rule, args: Any, wide: Any) -> None:
    """Round what an in-place operator wrote into float32 copies back into the program's tensors."""
    for position in rule.written:
        if position < len(args) and isinstance(args[position], Tensor) and args[position] is not wide[position]:
            args[position].copy_(wide[position])
