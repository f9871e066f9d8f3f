"""Execution strategies: which pipeline stage, on which IPU, each block of a model belongs to.

A strategy is only a rule; the trace asks it for every block as the model's forward reaches it
(rules 5.6, 5.14). The phased strategies are in `phases`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, Iterable, Optional, Sequence, Tuple, Union

from ipu_vit.emulator.enums import AutoStage


class Stage:
    """`poptorch.Stage`: blocks that run together, on an IPU of their own choice or the blocks'."""

    def __init__(self, *block_ids: str) -> None:
        if not all(isinstance(block, str) for block in block_ids):
            raise AssertionError(f"A stage takes the names of blocks, which are strings, not {block_ids!r}")
        self._blocks = block_ids
        self._number = -1
        self._ipu: Optional[int] = None

    @property
    def blocks(self) -> Tuple[str, ...]:
        return self._blocks

    def ipu(self, ipu: int) -> Stage:
        """Run this stage on that IPU, whatever its blocks say."""
        if not isinstance(ipu, int):
            raise AssertionError(f"The IPU of a stage is an integer, not {ipu!r}")
        self._ipu = ipu
        return self


@dataclass
class Placement:
    """Where the operators of a block run."""

    block: str
    stage: int
    ipu: int


class ListedStages:
    """Stages that the program has listed: every block must be in one of them, and in one only."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.blocks: Dict[str, Stage] = {}
        for number, stage in enumerate(stages):
            stage._number = number
            for block in stage.blocks:
                if block in self.blocks:
                    raise AssertionError(f"Block {block!r} is in more than one stage")
                self.blocks[block] = stage

    def forget(self) -> None:
        """Listed stages do not depend on what was traced before."""

    def stage_of(self, block: str, ipu: Optional[int]) -> Stage:
        if block not in self.blocks:
            raise AssertionError(
                f"Unknown block {block!r}: list it in a stage of the execution strategy ({sorted(self.blocks)})"
            )
        return self.blocks[block]


class AutomaticStages:
    """A stage for each block, made when the trace meets it."""

    def __init__(self, rule: AutoStage) -> None:
        self._rule = rule
        self.blocks: Dict[str, Stage] = {}

    def forget(self) -> None:
        self.blocks = {}

    def stage_of(self, block: str, ipu: Optional[int]) -> Stage:
        if block not in self.blocks:
            if self._rule == AutoStage.SameAsIpu and ipu is None:
                raise AssertionError(
                    f"Block {block!r} has no ipu_id, which AutoStage.SameAsIpu needs: give one, use "
                    "AutoStage.AutoIncrement, or list the stages explicitly"
                )
            stage = self.blocks[block] = Stage(block)
            # Counting starts at 1: stage 0 is for what runs before the first block (rule 5.6).
            stage._number = len(self.blocks) if self._rule == AutoStage.AutoIncrement or ipu is None else ipu
        return self.blocks[block]


class Strategy:
    """`poptorch.options._IExecutionStrategy`: turns blocks into stages while a model is traced."""

    #: whether several IPUs work at the same time, on different micro batches
    pipelined = False

    def __init__(self, stages_manager: Union[ListedStages, AutomaticStages], block_map: Dict[str, Stage]) -> None:
        self._stages_manager = stages_manager
        self._block_map = block_map

    def stage(self, block_id: str) -> Stage:
        """The stage that a block was listed in."""
        if block_id not in self._block_map:
            raise AssertionError(f"Unknown block {block_id!r}: the listed ones are {sorted(self._block_map)}")
        return self._block_map[block_id]

    def onStartTracing(self) -> None:
        """Forget the blocks met so far; the automatic rules number them by first use."""
        self._stages_manager.forget()

    def onEndTracing(self) -> None:
        self._stages_manager.forget()

    def backendOptions(self) -> Dict[str, Any]:
        return {}

    def place(self, block: str, ipu: Optional[int]) -> Placement:
        """Where a block that the trace has just entered runs; `ipu` is what the block asks for (rule 5.14)."""
        stage = self._stages_manager.stage_of(block, ipu)
        chosen = ipu if stage._ipu is None else stage._ipu
        return Placement(block, stage._number, self.ipu_without_choice(stage._number) if chosen is None else chosen)

    def ipu_without_choice(self, stage: int) -> int:
        """The IPU of a stage for which neither the program nor its blocks chose one."""
        return stage

    def order(self, stage: int) -> int:
        """A number that must not decrease from one block of a model to the next (rule 5.7)."""
        return 0


class PipelinedExecution(Strategy):
    """`poptorch.PipelinedExecution`: all IPUs work at once, each on another micro batch."""

    pipelined = True

    def __init__(self, *args: Union[AutoStage, str, Stage, Iterable[str]]) -> None:
        if any(isinstance(arg, AutoStage) for arg in args) and len(args) > 1:
            raise AssertionError("An AutoStage stands alone: no further stages may be given with it")
        if not args or isinstance(args[0], AutoStage):
            super().__init__(AutomaticStages(args[0] if args else AutoStage.SameAsIpu), {})  # type: ignore[arg-type]
            return
        listed = ListedStages([_as_stage(arg) for arg in args])
        super().__init__(listed, listed.blocks)

    def backendOptions(self) -> Dict[str, Any]:
        return {"execution_mode": 0}

    def order(self, stage: int) -> int:
        return stage


class ShardedExecution(PipelinedExecution):
    """`poptorch.ShardedExecution`: placed like a pipeline, but one IPU works at a time."""

    pipelined = False

    def backendOptions(self) -> Dict[str, Any]:
        return {"execution_mode": 1}

    def order(self, stage: int) -> int:
        # Nothing runs ahead of anything else, so a model may return to an IPU as it likes.
        return 0


def _as_stage(arg: Any) -> Stage:
    if isinstance(arg, Stage):
        return arg
    return Stage(arg) if isinstance(arg, str) else Stage(*arg)
