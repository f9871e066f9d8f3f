"""The recorder: what a model's forward does with tensors becomes a tape."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Optional, Sequence, Set

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_unflatten

from ipu_vit.emulator.errors import Error
from ipu_vit.emulator.structure import LEAF, flatten
from ipu_vit.emulator.tape import Entry, Slot, Tape, is_fake, slots_in, transparent
from ipu_vit.emulator.user_code import current_line

# Functions that change the statistics they are given, though nothing in PyTorch says so.
_STATISTICS = {"batch_norm": "training", "instance_norm": "use_input_stats"}


class Recorder(TorchFunctionMode):
    """Notes the torch functions that are called while it is on.

    `replacements` maps functions to what the device does instead; NotImplemented from one means: nothing else.
    `name_of` tells the weight that a host tensor is, if it is one: models may keep their parameters in lists that
    nobody can find. `translate` makes an argument what the device takes for it; `check` sees each call before it
    is made.

    What is made of other host tensors only is computed on the host, there and then; the tape has copies.
    """

    def __init__(
        self,
        replacements: Dict[Any, Callable[..., Any]],
        name_of: Callable[[Tensor], Optional[str]],
        translate: Callable[..., Any],
        check: Callable[[Any, Sequence[Any], Dict[str, Any]], None],
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
                "forward uses a tensor made by something that cannot be traced, such as torch.func.vmap, or in an "
                f"earlier trace and kept in a cache: make it by plain torch functions, in every call ({current_line()})"
            )
        slot = self.new_slot(tensor)
        with _disable_current_modes():
            self.constants[slot] = tensor.detach().clone()
        return slot

    # Calls ------------------------------------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves, spec = tree_flatten((args, kwargs or {}))
        args, kwargs = tree_unflatten([self._as_weight(leaf) for leaf in leaves], spec)
        if self._is_for_host(leaves):
            return self._call_on_host(func, args, kwargs, leaves)
        replacement = self._replacements.get(func)
        if replacement is not None:
            with self:
                result = replacement(*args, **kwargs)
            if result is not NotImplemented:
                return result
        args = [self._translate(arg, func) for arg in args]
        kwargs = {name: self._translate(value, func, name) for name, value in kwargs.items()}
        self._check(func, args, kwargs)
        result = self._call(func, args, kwargs)
        if isinstance(result, Tensor) and result.dtype == torch.float64:
            # The device has no float64 (rule 6.7), but constants of the host may be.
            result = self._call(Tensor.float, [result], {})
        return result

    def _as_weight(self, value: Any) -> Any:
        """The device's weight for the host's, everything else as it is."""
        if not isinstance(value, Tensor) or is_fake(value):
            return value
        name = self._name_of(value)
        return value if name is None else self.tensors[self.weights[name]]

    def _is_for_host(self, leaves: Sequence[Any]) -> bool:
        """Whether the arguments of a call have tensors, all of them of the host, and it moves none to the device."""
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if not tensors or not all(map(self._is_of_host, tensors)):
            return False
        return not any(isinstance(leaf, (str, torch.device)) and str(leaf).startswith("ipu") for leaf in leaves)

    def _is_of_host(self, tensor: Tensor) -> bool:
        written_on_device = self._slots.get(id(tensor)) in self.written
        return not is_fake(tensor) and not written_on_device and self._name_of(tensor) is None

    def _call_on_host(self, function: Callable[..., Any], args: Any, kwargs: Any, leaves: Sequence[Any]) -> Any:
        given = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        versions = [_version(tensor) for tensor in given]
        with _disable_current_modes():
            result = function(*args, **kwargs)
        for tensor, version in zip(given, versions):
            if _version(tensor) != version:
                self._slots.pop(id(tensor), None)  # what has used it so far keeps the values that it had
        return result

    def _call(self, function: Callable[..., Any], args: List[Any], kwargs: Dict[str, Any]) -> Any:
        """Call a function and note it, if it gives or changes tensors."""
        given: List[Tensor] = []
        noted_args = [self._note(arg, given) for arg in args]
        noted_kwargs = {name: self._note(value, given) for name, value in kwargs.items()}
        versions = [_version(tensor) for tensor in given]
        plain = transparent(function)
        self.calling = function
        try:
            result = plain(*args, **kwargs)
        finally:
            self.calling = None
        written = {self.slot_of(tensor) for tensor, version in zip(given, versions) if _version(tensor) != version}
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
        results = [self._returned(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        input_slots = [self.slot_of(tensor) for tensor in inputs]
        tape = Tape(
            entries=self.entries,
            inputs=input_slots,
            # They were new when forward began, and what is written through a view of one counts.
            written_inputs=[at for at, tensor in enumerate(inputs) if _version(tensor)],
            weights=self.weights,
            written_weights=[name for name, slot in self.weights.items() if slot in self.written],
            assigned_weights=[name for name, slot in self.weights.items() if slot in self.written - self.statistics],
            constants=self.constants,
            written_constants=self.written.intersection(self.constants),
            results=results,
            structure=structure,
            loss=None if loss is None else self.slot_of(loss),
            slots=len(self.tensors),
            names=self.names,
        )
        _note_spent(tape)
        return tape

    def _returned(self, tensor: Tensor) -> Slot:
        """The slot of a returned tensor: of a copy, if it is a weight, or a view of one, which may change later."""
        slot = self.slot_of(tensor)
        if tensor.untyped_storage()._cdata in {
            self.tensors[of].untyped_storage()._cdata for of in self.weights.values()
        }:
            copied = len(self.tensors)
            self.tensors.append(tensor)
            self.entries.append(Entry(torch.clone, [Slot(slot)], {}, [(0, slot)], [copied], LEAF, False))
            slot = copied
        return Slot(slot)


def _version(tensor: Tensor) -> int:
    """How often a tensor was written into."""
    return 0 if tensor.is_inference() else tensor._version


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


def _note_spent(tape: Tape) -> None:
    """Tell each entry which slots it is the last to need, so that runs free their tensors there."""
    needed = set(tape.weights.values()) | ({tape.loss} if tape.loss is not None else set())
    slots_in(tape.results, needed)
    for entry in reversed(tape.entries):
        used: Set[int] = {slot for slot in entry.results if slot is not None}
        slots_in([entry.args, entry.kwargs], used)
        entry.spent = sorted(used - needed)
        needed |= used
