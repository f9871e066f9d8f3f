"""The tape: a model's forward, recorded once as calls of torch functions and replayed for each micro batch.

PopTorch runs a model's Python once, when it compiles (rule 12.1). So does the emulator: a `Recorder`
notes every torch function that forward calls, with the tensors that it was given and gave back by
the numbers of their slots, and `Tape.run` calls the same functions on real tensors. Control flow,
counters and everything else that is Python is thereby frozen as it is on the device.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from typing import Any, Callable, Dict, List, Optional, Sequence, Set, Tuple, TypeVar, cast

import torch
from torch import Tensor
from torch.overrides import handle_torch_function

from ipu_vit.emulator.structure import LEAF, Structure, flatten

Function = TypeVar("Function", bound=Callable[..., Any])
# The attribute by which what callers see of an opaque function knows the function itself.
_OPAQUE = "_poptorch_opaque"


def opaque(function: Function) -> Function:
    """Make calls of a function one entry of the tape, whatever the function does inside."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if torch._C._is_torch_function_mode_enabled():
            return handle_torch_function(call, (), *args, **kwargs)
        return function(*args, **kwargs)

    setattr(call, _OPAQUE, function)
    return cast(Function, call)


@dataclass(frozen=True)
class Slot:
    """Stands in the arguments of an entry for the tensor of that number."""

    number: int


@dataclass
class Entry:
    """One call of a function."""

    function: Callable[..., Any]
    #: arguments, each tensor replaced by its slot
    args: List[Any]
    kwargs: Dict[str, Any]
    #: where arguments that are slots stand, if no slot is deeper inside; None if one is
    positions: Optional[List[Tuple[int, int]]]
    #: slots of the results, in the order of the result's leaves; None for what is no tensor
    results: List[Optional[int]]
    structure: Structure
    differentiable: bool
    #: slots that nobody needs after this entry
    spent: List[int] = field(default_factory=list)

    def run(self, tensors: List[Any]) -> List[Any]:
        """Call the function with tensors by their slots, put its results into theirs, and return them."""
        if self.positions is not None:
            args = self.args.copy()
            for position, slot in self.positions:
                args[position] = tensors[slot]
            kwargs = self.kwargs
        else:
            args = [_fill(arg, tensors) for arg in self.args]
            kwargs = {name: _fill(value, tensors) for name, value in self.kwargs.items()}
        result = self.function(*args, **kwargs) if kwargs else self.function(*args)
        leaves = [result] if self.structure is LEAF else flatten(result)[0]
        for target, leaf in zip(self.results, leaves):
            if target is not None:
                tensors[target] = leaf
        for slot in self.spent:
            tensors[slot] = None
        return leaves


def _fill(value: Any, tensors: List[Any]) -> Any:
    """An argument with tensors in the places of their slots."""
    if isinstance(value, Slot):
        return tensors[value.number]
    if isinstance(value, slice):
        return slice(_fill(value.start, tensors), _fill(value.stop, tensors), _fill(value.step, tensors))
    if isinstance(value, (list, tuple)):
        return type(value)(_fill(item, tensors) for item in value)
    if isinstance(value, dict):
        return {key: _fill(item, tensors) for key, item in value.items()}
    return value


@dataclass
class Tape:
    """A recorded forward."""

    entries: List[Entry]
    #: slots of the input tensors, in the order of the call's tensors
    inputs: List[int]
    #: positions of the inputs that forward writes into
    written_inputs: List[int]
    #: slots of the weights, by name
    weights: Dict[str, int]
    #: names of parameters and buffers that forward writes into
    written_weights: List[str]
    #: those that it writes into by itself, not as running statistics of a normalisation
    assigned_weights: List[str]
    #: tensors that existed before the trace and are neither inputs nor weights
    constants: Dict[int, Tensor]
    #: constants that forward writes into: each run starts from a fresh copy
    written_constants: Set[int]
    #: what forward returned: tensors as slots, everything else as it was
    results: List[Any]
    structure: Structure
    #: the slot of the loss to differentiate
    loss: Optional[int]
    slots: int
    #: a name for each tensor that entries produced (`PoplarExecutor.getTensorNames`)
    names: Dict[str, int]

    def keeping(self, slots: Set[int]) -> Tape:
        """The same tape, whose runs keep these slots' tensors to their end."""
        entries = [replace(entry, spent=[slot for slot in entry.spent if slot not in slots]) for entry in self.entries]
        return replace(self, entries=entries)

    def run(
        self,
        inputs: Sequence[Tensor],
        weights: Dict[str, Tensor],
        wanted: Sequence[int] = (),
        watch: Optional[Callable[[Tensor], None]] = None,
    ) -> Tuple[List[Any], Optional[Tensor], List[Any]]:
        """Run on one micro batch: the leaves of the result, the loss, and the tensors of the wanted slots.

        `watch` is called in the backward pass, with the gradients of what entries have computed in half precision, but
        for the loss's, which is given and not computed.
        """
        tensors: List[Any] = [None] * self.slots
        for slot, constant in self.constants.items():
            tensors[slot] = constant.clone() if slot in self.written_constants else constant
        for slot, tensor in zip(self.inputs, inputs):
            tensors[slot] = tensor
        for name, slot in self.weights.items():
            tensors[slot] = weights[name]
        enabled = torch.is_grad_enabled()
        try:
            differentiable = enabled
            for entry in self.entries:
                if enabled and entry.differentiable is not differentiable:
                    differentiable = entry.differentiable
                    torch.set_grad_enabled(differentiable)
                computed = entry.run(tensors)
                if watch is not None and enabled:
                    for target, tensor in zip(entry.results, computed):
                        if target != self.loss and _is_watched(tensor):
                            tensor.register_hook(watch)
        finally:
            torch.set_grad_enabled(enabled)
        results = [tensors[leaf.number] if isinstance(leaf, Slot) else leaf for leaf in self.results]
        return results, None if self.loss is None else tensors[self.loss], [tensors[slot] for slot in wanted]


def _is_watched(value: Any) -> bool:
    """Whether a result has a gradient in half precision, or what is computed in its place, and is no mere view."""
    halves = (torch.float16, torch.bfloat16)
    return isinstance(value, Tensor) and value.requires_grad and value.dtype in halves and not value._is_view()


def is_fake(tensor: Tensor) -> bool:
    """Whether a tensor is one of the trace's, without data."""
    from torch._subclasses.fake_tensor import FakeTensor

    return isinstance(tensor, FakeTensor)


def transparent(function: Callable[..., Any]) -> Callable[..., Any]:
    """What an opaque function does; other functions as they are."""
    return getattr(function, _OPAQUE, function)  # type: ignore[no-any-return]


def is_opaque(function: Callable[..., Any]) -> bool:
    """Whether a function was marked `opaque`."""
    return hasattr(function, _OPAQUE)


def slots_in(value: Any, found: Set[int]) -> None:
    """Add the slots in an entry's arguments to `found`."""
    if isinstance(value, Slot):
        found.add(value.number)
    elif isinstance(value, slice):
        slots_in((value.start, value.stop, value.step), found)
    elif isinstance(value, dict):
        slots_in(list(value.values()), found)
    elif isinstance(value, (list, tuple)):
        for item in value:
            slots_in(item, found)
