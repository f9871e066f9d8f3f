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
from torch.overrides import TorchFunctionMode, handle_torch_function

from ipu_vit.emulator.errors import Error
from ipu_vit.emulator.structure import LEAF, Structure, flatten
from ipu_vit.emulator.user_code import current_line

Function = TypeVar("Function", bound=Callable[..., Any])
# What opaque functions do, by what callers see of them.
_opaque: Dict[Callable[..., Any], Callable[..., Any]] = {}
# Functions that change the statistics they are given, though nothing in PyTorch says so.
_STATISTICS = {"batch_norm": "training", "instance_norm": "use_input_stats"}


def opaque(function: Function) -> Function:
    """Make calls of a function one entry of the tape, whatever the function does inside."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if torch._C._is_torch_function_mode_enabled():
            return handle_torch_function(call, (), *args, **kwargs)
        return function(*args, **kwargs)

    _opaque[call] = function
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

    def run(self, tensors: List[Any]) -> None:
        if self.positions is not None:
            args = self.args.copy()
            for position, slot in self.positions:
                args[position] = tensors[slot]
            kwargs = self.kwargs
        else:
            args = [_fill(arg, tensors) for arg in self.args]
            kwargs = {name: _fill(value, tensors) for name, value in self.kwargs.items()}
        result = self.function(*args, **kwargs) if kwargs else self.function(*args)
        if self.structure is LEAF:
            if self.results[0] is not None:
                tensors[self.results[0]] = result
        else:
            for target, leaf in zip(self.results, flatten(result)[0]):
                if target is not None:
                    tensors[target] = leaf
        for slot in self.spent:
            tensors[slot] = None


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
    #: slots of the inputs that forward writes into
    written_inputs: Set[int]
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
        self, inputs: Sequence[Tensor], weights: Dict[str, Tensor], wanted: Sequence[int] = ()
    ) -> Tuple[List[Any], Optional[Tensor], List[Any]]:
        """Run on one micro batch: the leaves of the result, the loss, and the tensors of the wanted slots."""
        tensors: List[Any] = [None] * self.slots
        for slot, constant in self.constants.items():
            tensors[slot] = constant.clone() if slot in self.written_constants else constant
        for slot, tensor in zip(self.inputs, inputs):
            tensors[slot] = tensor.clone() if slot in self.written_inputs else tensor
        for name, slot in self.weights.items():
            tensors[slot] = weights[name]
        enabled = torch.is_grad_enabled()
        try:
            differentiable = enabled
            for entry in self.entries:
                if enabled and entry.differentiable is not differentiable:
                    differentiable = entry.differentiable
                    torch.set_grad_enabled(differentiable)
                entry.run(tensors)
        finally:
            torch.set_grad_enabled(enabled)
        results = [tensors[leaf.number] if isinstance(leaf, Slot) else leaf for leaf in self.results]
        return results, None if self.loss is None else tensors[self.loss], [tensors[slot] for slot in wanted]


class Recorder(TorchFunctionMode):
    """Notes the torch functions that are called while it is on.

    `replacements` maps functions to what the device does instead. `name_of` tells the weight that a
    host tensor is, if it is one: models may keep their parameters in lists that nobody can find.
    `translate` makes an argument what the device takes for it; `check` sees each call before it is made.
    """

    def __init__(
        self,
        replacements: Dict[Any, Callable[..., Any]],
        name_of: Callable[[Tensor], Optional[str]],
        translate: Callable[..., Any],
        check: Callable[[Any, Dict[str, Any]], None],
    ) -> None:
        super().__init__()
        #: the function that is being called, for whoever sees the operators inside it
        self.calling: Optional[Callable[..., Any]] = None
        self._replacements = replacements
        self._translate = translate
        self._check = check
        self.entries: List[Entry] = []
        self.weights: Dict[str, int] = {}
        self.constants: Dict[int, Tensor] = {}
        self.written: Set[int] = set()
        self.statistics: Set[int] = set()
        self.names: Dict[str, int] = {}
        self._name_of = name_of
        self._slots: Dict[int, int] = {}
        #: tensors by slot: kept alive so that their ids stay their own
        self.tensors: List[Tensor] = []
        self._counts: Dict[str, int] = {}

    # Slots ------------------------------------------------------------------------------------

    def new_slot(self, tensor: Tensor) -> int:
        """Number a tensor that comes from outside, or from a function."""
        number = len(self.tensors)
        self._slots[id(tensor)] = number
        self.tensors.append(tensor)
        return number

    def slot_of(self, tensor: Tensor) -> int:
        """The number of a tensor that forward uses."""
        slot = self._slots.get(id(tensor))
        if slot is not None:
            return slot
        name = self._name_of(tensor)
        if name is not None:
            return self.weights[name]
        if is_fake(tensor):
            raise Error(
                "forward uses a tensor made by something that cannot be traced, such as a torch.jit.script function: "
                "call plain torch functions instead"
            )
        slot = self.new_slot(tensor)
        self.constants[slot] = tensor
        return slot

    # Calls ------------------------------------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        replacement = self._replacements.get(func)
        if replacement is not None:
            with self:
                return replacement(*args, **(kwargs or {}))
        args = [self._translate(arg, func) for arg in args]
        kwargs = {name: self._translate(value, func, name) for name, value in (kwargs or {}).items()}
        self._check(func, kwargs)
        result = self._call(func, args, kwargs)
        if isinstance(result, Tensor) and result.dtype == torch.float64:
            # The device has no float64 (rule 6.7), but constants of the host may be.
            result = self._call(Tensor.float, [result], {})
        return result

    def _call(self, function: Callable[..., Any], args: List[Any], kwargs: Dict[str, Any]) -> Any:
        """Call a function and note it, if it gives or changes tensors."""
        given: List[Tensor] = []
        noted_args = [self._note(arg, given) for arg in args]
        noted_kwargs = {name: self._note(value, given) for name, value in kwargs.items()}
        versions = [tensor._version for tensor in given]
        plain = _opaque.get(function, function)
        self.calling = function
        try:
            result = plain(*args, **kwargs)
        finally:
            self.calling = None
        written = {self.slot_of(tensor) for tensor, version in zip(given, versions) if tensor._version != version}
        statistics = _written_statistics(plain, noted_args, noted_kwargs)
        written |= statistics
        self.written |= written
        self.statistics |= statistics
        leaves, structure = flatten(result)
        results = [self._slot_of_result(leaf) if isinstance(leaf, Tensor) else None for leaf in leaves]
        for leaf in leaves:
            if isinstance(leaf, Tensor) and leaf.numel() == 0:
                name, shape = getattr(plain, "__name__", plain), tuple(leaf.shape)
                raise Error(
                    f"{name} makes a zero-sized tensor of shape {shape}, which a device cannot have ({current_line()})"
                )
        if written or plain is not function or any(slot is not None for slot in results):
            flat = not any(map(_has_inner_slot, [*noted_args, list(noted_kwargs.values())]))
            positions = [(i, arg.number) for i, arg in enumerate(noted_args) if isinstance(arg, Slot)] if flat else None
            self.entries.append(
                Entry(plain, noted_args, noted_kwargs, positions, results, structure, torch.is_grad_enabled())
            )
            self._name(plain, results)
        return result

    def _note(self, value: Any, given: List[Tensor]) -> Any:
        """An argument with slots in the places of its tensors; `given` collects these."""
        if isinstance(value, Tensor):
            slot = Slot(self.slot_of(value))
            given.append(value)
            return slot
        if isinstance(value, slice):
            return slice(self._note(value.start, given), self._note(value.stop, given), self._note(value.step, given))
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*(self._note(item, given) for item in value))
        if type(value) in (list, tuple):
            return type(value)(self._note(item, given) for item in value)
        if isinstance(value, dict):
            return {key: self._note(item, given) for key, item in value.items()}
        return value

    def _slot_of_result(self, tensor: Tensor) -> int:
        slot = self._slots.get(id(tensor))
        return self.new_slot(tensor) if slot is None else slot

    def _name(self, function: Callable[..., Any], results: List[Optional[int]]) -> None:
        kind = getattr(function, "__name__", "call").strip("_")
        count = self._counts[kind] = self._counts.get(kind, -1) + 1
        for position, slot in enumerate(results):
            if slot is not None:
                self.names.setdefault(f"{kind}:{count}" if len(results) == 1 else f"{kind}:{count}:{position}", slot)

    # The finished tape ------------------------------------------------------------------------

    def finish(self, inputs: Sequence[Tensor], result: Any, loss: Optional[Tensor]) -> Tape:
        """The tape of a forward that was given these inputs and returned this result."""
        leaves, structure = flatten(result)
        results = [Slot(self.slot_of(leaf)) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        input_slots = [self.slot_of(tensor) for tensor in inputs]
        tape = Tape(
            entries=self.entries,
            inputs=input_slots,
            written_inputs=self.written.intersection(input_slots),
            weights=self.weights,
            written_weights=[name for name, slot in self.weights.items() if slot in self.written],
            assigned_weights=[name for name, slot in self.weights.items() if slot in self.written - self.statistics],
            constants={slot: tensor.detach().clone() for slot, tensor in self.constants.items()},
            written_constants=self.written.intersection(self.constants),
            results=results,
            structure=structure,
            loss=None if loss is None else self.slot_of(loss),
            slots=len(self.tensors),
            names=self.names,
        )
        _note_spent(tape)
        return tape


def is_fake(tensor: Tensor) -> bool:
    """Whether a tensor is one of the trace's, without data."""
    from torch._subclasses.fake_tensor import FakeTensor

    return isinstance(tensor, FakeTensor)


def is_opaque(function: Callable[..., Any]) -> bool:
    """Whether a function was marked `opaque`."""
    return function in _opaque


def _written_statistics(function: Callable[..., Any], args: List[Any], kwargs: Dict[str, Any]) -> Set[int]:
    """Slots of the running statistics that a normalisation in training mode updates."""
    flag = _STATISTICS.get(getattr(function, "__name__", ""))
    if flag is None:
        return set()
    given = {**dict(zip(("input", "running_mean", "running_var", "weight", "bias", flag), args)), **kwargs}
    if not given.get(flag):
        return set()
    statistics = (given.get("running_mean"), given.get("running_var"))
    return {slot.number for slot in statistics if isinstance(slot, Slot)}


def _has_inner_slot(value: Any) -> bool:
    if isinstance(value, slice):
        return any(isinstance(item, Slot) for item in (value.start, value.stop, value.step))
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return any(isinstance(item, Slot) or _has_inner_slot(item) for item in value)
    return False


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


def _note_spent(tape: Tape) -> None:
    """Tell each entry which slots it is the last to need, so that runs free their tensors there."""
    needed = set(tape.weights.values()) | ({tape.loss} if tape.loss is not None else set())
    slots_in(tape.results, needed)
    for entry in reversed(tape.entries):
        used: Set[int] = {slot for slot in entry.results if slot is not None}
        slots_in([entry.args, entry.kwargs], used)
        entry.spent = sorted(used - needed)
        needed |= used
