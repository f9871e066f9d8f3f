"""The record of one trace: what a compiled model does on which IPU.

`executor.program` gives it to tools, such as planners of a pipeline; it is not part of PopTorch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import List

from ipu_vit.emulator.errors import Error
from ipu_vit.emulator.tape import Tape


@dataclass
class StageRecord:
    """What one pipeline stage does for one micro batch, forward. Bytes are those of the traced types."""

    stage: int
    ipu: int
    blocks: List[str] = field(default_factory=list)
    #: operators, in order, by aten name
    operators: List[str] = field(default_factory=list)
    #: multiply-adds of matrix products and convolutions
    multiply_adds: int = 0
    #: names of the parameters first used here
    parameters: List[str] = field(default_factory=list)
    parameter_bytes: int = 0
    #: bytes of everything that operators produced: kept for the backward pass if nothing is recomputed
    activation_bytes: int = 0
    #: bytes of tensors marked by `recomputationCheckpoint`
    checkpoint_bytes: int = 0
    #: bytes that arrive from other IPUs or from the host
    received_bytes: int = 0

    @property
    def kept_bytes(self) -> int:
        """Bytes that wait for the backward pass if the stage recomputes: its inputs and its checkpoints."""
        return self.received_bytes + self.checkpoint_bytes

    @property
    def recomputed_bytes(self) -> int:
        """Bytes that are computed a second time in the backward pass if the stage recomputes."""
        return self.activation_bytes - self.checkpoint_bytes


@dataclass
class Program:
    """What a trace has found out, by pipeline stage and as a whole."""

    stages: List[StageRecord] = field(default_factory=list)
    #: how often the active IPU changed, plus one (rule 5.8)
    forward_stages: int = 1
    uses_half: bool = False
    #: whether inputs or outputs travel beside computation (`set_overlap_for_input`, `set_overlap_for_output`)
    overlaps_io: bool = False
    #: losses met, in order of their calls, and which of them is differentiated
    losses: int = 0
    final_losses: List[int] = field(default_factory=list)
    #: popart.RecomputationType, by number: what stages compute again in their backward pass
    recomputation: int = 0
    #: names of the parameters that the loss depends on
    trained: List[str] = field(default_factory=list)
    #: what runs for each micro batch
    tape: Tape = field(init=False, repr=False)

    @property
    def ipus(self) -> int:
        """IPUs that one replica takes (rule 5.5)."""
        used = {stage.ipu for stage in self.stages}
        return max(max(used, default=0) + 1, len(used))

    @property
    def recomputes(self) -> bool:
        """Whether stages keep only their inputs and checkpoints for the backward pass (rule 5.16)."""
        return self.recomputation != 0

    @property
    def loss_index(self) -> int:
        """Which loss call is differentiated; Error unless there is exactly one (rule 2.1)."""
        if not self.final_losses:
            raise Error(
                "Couldn't find a loss in graph: return a loss made by a PyTorch loss function, or wrap the value to "
                "minimise in poptorch.identity_loss"
            )
        if len(self.final_losses) > 1:
            raise Error(
                "Multiple independent losses found in graph: combine them and wrap the result in poptorch.identity_loss"
            )
        return self.final_losses[0]
