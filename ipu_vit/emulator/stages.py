"""Execution strategies: which pipeline stage, on which IPU, each block of a model belongs to.

A strategy is only a rule; the trace asks it for every block as the model's forward reaches it
(rules 5.6, 5.14).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Tuple, Union

from ipu_vit.emulator.enums import AutoStage
from ipu_vit.emulator.errors import Error


class Stage:
    """`poptorch.Stage`: blocks that run together, on an IPU of their own choice or the blocks'."""

    def __init__(self, *block_ids: str) -> None:
        if not block_ids or not all(isinstance(block, str) for block in block_ids):
            raise AssertionError(f"A stage needs the names of one or more blocks, not {block_ids!r}")
        self._blocks = list(block_ids)
        self._ipu: Optional[int] = None

    @property
    def blocks(self) -> List[str]:
        return self._blocks

    def ipu(self, ipu: int) -> Stage:
        """Run this stage on that IPU, whatever its blocks say."""
        self._ipu = ipu
        return self


@dataclass
class Placement:
    """Where the operators of a block run."""

    block: str
    stage: int
    ipu: int


class Strategy:
    """`poptorch.options._IExecutionStrategy`: turns blocks into stages while a model is traced."""

    #: whether several IPUs work at the same time, on different micro batches
    pipelined = True

    def __init__(self, *args: Union[AutoStage, str, Stage]) -> None:
        self._auto: Optional[AutoStage] = None
        self._stages: Dict[str, Tuple[int, Stage]] = {}
        if not args:
            args = (AutoStage.SameAsIpu,)
        if isinstance(args[0], AutoStage):
            if len(args) > 1:
                raise AssertionError("An AutoStage stands alone: no further stages may follow it")
            self._auto = args[0]
            return
        for number, arg in enumerate(args):
            stage = arg if isinstance(arg, Stage) else Stage(arg)  # type: ignore[arg-type]
            for block in stage.blocks:
                if block in self._stages:
                    raise AssertionError(f"Block {block!r} is in more than one stage")
                self._stages[block] = (number, stage)

    def stage(self, block_id: str) -> Stage:
        """The stage that a block was listed in."""
        return self._stages[block_id][1]

    def onStartTracing(self) -> None:
        """Forget the blocks met so far; the automatic rules number them by first use."""
        self._met: Dict[str, Placement] = {}

    def onEndTracing(self) -> None:
        self._met = {}

    def backendOptions(self) -> Dict[str, Any]:
        return {"execution_mode": 0 if self.pipelined else 1}

    def place(self, block: str, ipu: Optional[int]) -> Placement:
        """Where a block that the trace has just entered runs; `ipu` is what the block asks for."""
        if block not in self._met:
            self._met[block] = self._new_placement(block, ipu)
        return self._met[block]

    def _new_placement(self, block: str, ipu: Optional[int]) -> Placement:
        if self._auto == AutoStage.SameAsIpu:
            if ipu is None:
                raise Error(
                    f"Block {block!r} has no ipu_id, which AutoStage.SameAsIpu needs: give one, use "
                    "AutoStage.AutoIncrement, or list the stages explicitly"
                )
            return Placement(block, ipu, ipu)
        if self._auto == AutoStage.AutoIncrement:
            # Counting starts at 1: stage 0 is for what runs before the first block (rule 5.6).
            number = len(self._met) + 1
            return Placement(block, number, number if ipu is None else ipu)
        if block not in self._stages:
            raise Error(
                f"Unknown block {block!r}: list it in a stage of the execution strategy ({sorted(self._stages)})"
            )
        number, stage = self._stages[block]
        chosen = ipu if stage._ipu is None else stage._ipu
        return Placement(block, number, number if chosen is None else chosen)


class PipelinedExecution(Strategy):
    """`poptorch.PipelinedExecution`: all IPUs work at once, each on another micro batch."""


class ShardedExecution(PipelinedExecution):
    """`poptorch.ShardedExecution`: placed like a pipeline, but one IPU works at a time."""

    pipelined = False
