"""What "on the device" means in this thread: nothing, a trace, or a run.

Operators of PopTorch's own, such as `identity_loss` and the blocks, behave as on a CPU outside and
report to the active context inside.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import Iterator, Optional

from torch import Tensor

from ipu_vit.emulator.enums import OverlapMode


class Context:
    """A trace or a run, as seen by the operators that report to it."""

    #: whether the program that is traced will be trained
    training: bool = False

    def on_loss(self, loss: Tensor) -> None:
        """A loss operator has produced this tensor."""

    def on_checkpoint(self, tensor: Tensor) -> None:
        """`recomputationCheckpoint` has marked this tensor."""

    def on_overlap(self, mode: OverlapMode) -> None:
        """An input or output is to travel while the device computes (rule 9.11)."""


class _State(threading.local):
    active: Optional[Context] = None


_state = _State()


def active() -> Optional[Context]:
    """The context of this thread, or None outside traces and runs."""
    return _state.active


@contextmanager
def context(new: Context) -> Iterator[None]:
    """Make a context the active one."""
    before, _state.active = _state.active, new
    try:
        yield
    finally:
        _state.active = before


def is_running() -> bool:
    """`poptorch.isRunningOnIpu`."""
    return _state.active is not None
