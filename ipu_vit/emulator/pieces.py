"""Pieces: functions of tensors that are recorded apart from the tape, to be run when and as often as data decide.

A loop's body and the branches of a condition are Python that runs once, when the model is traced; on the
device their operators may run many times, or not at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, List, Sequence, Set, Tuple

from torch import Tensor

from ipu_vit.emulator.kinds import Kinds, kinds_of
from ipu_vit.emulator.recorder import Recorder
from ipu_vit.emulator.tape import Entry, slots_in


@dataclass
class Piece:
    """A recorded function."""

    entries: List[Entry]
    #: slots of what it is called with, then of what it uses from around it
    given: List[int]
    outputs: List[int]
    slots: int

    def run(self, given: Sequence[Tensor]) -> List[Tensor]:
        """The function's results for real tensors. They are copies: it may return what belongs to others."""
        tensors: List[Any] = [None] * self.slots
        for slot, tensor in zip(self.given, given):
            tensors[slot] = tensor
        for entry in self.entries:
            entry.run(tensors)
        return [tensors[slot].clone() for slot in self.outputs]


def record_apart(
    recorder: Recorder, function: Callable[..., List[Tensor]], inputs: List[Tensor]
) -> Tuple[Piece, List[Tensor], Kinds]:
    """Call a function once and take what it records off the tape.

    Returns the piece, the tensors that it uses from around it, and the kinds of its results.
    """
    first, names = len(recorder.entries), dict(recorder.names)
    results = function(*inputs)
    entries = recorder.entries[first:]
    del recorder.entries[first:]
    recorder.names = names  # from outside, one run of the piece cannot be told from another
    given = [recorder.slot_of(tensor) for tensor in inputs]
    outputs = [recorder.slot_of(tensor) for tensor in results]
    captured = _captured(entries, given, outputs)
    piece = Piece(entries, given + captured, outputs, len(recorder.tensors))
    return piece, [recorder.tensors[slot] for slot in captured], kinds_of(results)


def _captured(entries: List[Entry], given: List[int], outputs: List[int]) -> List[int]:
    """Slots whose tensors come from elsewhere."""
    known, captured = set(given), []
    for entry in entries:
        used: Set[int] = set()
        slots_in([entry.args, entry.kwargs], used)
        captured += sorted(used - known)
        known |= used | {slot for slot in entry.results if slot is not None}
    return captured + sorted(set(outputs) - known)
