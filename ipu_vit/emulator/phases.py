"""Phased execution: phases of stages, run one after the other, whose tensors may leave the chip between them.

    phase              0        1        2
    ParallelPhased     IPU 0 2  IPU 1 3  IPU 0 2     two groups of IPUs take turns
    SerialPhased       IPU 0 1  IPU 0 1  IPU 0 1     one group does everything

A phase has a stage for each IPU of its group. Where tensors live between phases, and which IPUs wait
for which, decides about memory and time and not about any number (rule 5.12).
"""

from __future__ import annotations

from typing import Any, Dict, List, Sequence, Union

from ipu_vit.emulator.enums import Liveness
from ipu_vit.emulator.stages import ListedStages, Stage, Strategy


class Phase:
    """`poptorch.Phase`: stages that run at the same time; names alone are the blocks of a single stage."""

    def __init__(self, *arg: Union[str, Stage]) -> None:
        self.stages: Sequence[Stage]
        stages = [item for item in arg if isinstance(item, Stage)]
        if len(stages) == len(arg):
            self.stages = stages
        elif not stages and all(isinstance(item, str) for item in arg):
            self.stages = [Stage(*arg)]  # type: ignore[arg-type]
        else:
            kinds = sorted({type(item).__name__ for item in arg})
            raise AssertionError(f"A phase takes either poptorch.Stage objects or names of blocks, not {kinds}")

    def stage(self, idx: int) -> Stage:
        return self.stages[idx]

    def ipus(self, *ipus: int) -> None:
        """Choose the IPU of each stage."""
        if len(ipus) != len(self.stages):
            raise AssertionError(f"The phase has {len(self.stages)} stages: give as many IPUs, not {len(ipus)}")
        for stage, ipu in zip(self.stages, ipus):
            stage.ipu(ipu)


class PhasedExecution(Strategy):
    """`poptorch.options._IPhasedExecution`: what the two phased strategies have in common."""

    def __init__(self, *phases: Union[Phase, List[Stage], List[str]]) -> None:
        if not phases:
            raise AssertionError("Phased execution has no automatic rule: list the phases")
        self._tensors_liveness = Liveness.AlwaysLive
        self._separate_backward_phase = False
        self._phases = [_as_phase(phase) for phase in phases]
        # For each stage its phase, and its place in that.
        self._places = [
            (number, place) for number, phase in enumerate(self._phases) for place in range(len(phase.stages))
        ]
        listed = ListedStages([stage for phase in self._phases for stage in phase.stages])
        super().__init__(listed, listed.blocks)

    def phase(self, phase: int) -> Phase:
        """The phase of that number."""
        if not isinstance(phase, int) or phase < 0:
            raise AssertionError(f"Phases are numbered from 0, not by {phase!r}")
        return self._phases[phase]

    def useSeparateBackwardPhase(self, use: bool = True) -> PhasedExecution:
        """Whether the backward pass begins with a phase of its own instead of sharing forward's last one."""
        if not isinstance(use, bool):
            raise AssertionError(f"useSeparateBackwardPhase takes a bool, not {use!r}")
        self._separate_backward_phase = use
        return self

    def backendOptions(self) -> Dict[str, Any]:
        return {
            "execution_mode": 2,
            "separate_backward_phase": self._separate_backward_phase,
            "tensors_liveness": self._tensors_liveness.value,
        }

    def order(self, stage: int) -> int:
        # What runs before the first block is part of the first phase.
        return self._places[stage][0]


class ParallelPhasedExecution(PhasedExecution):
    """`poptorch.ParallelPhasedExecution`: even phases on one group of IPUs, odd ones on another."""

    def backendOptions(self) -> Dict[str, Any]:
        return {**super().backendOptions(), "serial_phases_execution": False}

    def sendTensorsOffChipAfterFwd(self, off_chip: bool = True) -> ParallelPhasedExecution:
        """Whether tensors wait for the backward pass outside the chip."""
        if not isinstance(off_chip, bool):
            raise AssertionError(f"sendTensorsOffChipAfterFwd takes a bool, not {off_chip!r}")
        self._tensors_liveness = Liveness.OffChipAfterFwd if off_chip else Liveness.AlwaysLive
        return self

    def ipu_without_choice(self, stage: int) -> int:
        phase, place = self._places[stage]
        return 2 * place + phase % 2


class SerialPhasedExecution(PhasedExecution):
    """`poptorch.SerialPhasedExecution`: all phases on the same IPUs."""

    def setTensorsLiveness(self, liveness: Liveness) -> SerialPhasedExecution:
        """Where tensors are between phases."""
        if not isinstance(liveness, Liveness):
            raise AssertionError(f"setTensorsLiveness takes a poptorch.Liveness, not {liveness!r}")
        self._tensors_liveness = liveness
        return self

    def backendOptions(self) -> Dict[str, Any]:
        return {**super().backendOptions(), "serial_phases_execution": True}

    def ipu_without_choice(self, stage: int) -> int:
        return self._places[stage][1]


def _as_phase(phase: Any) -> Phase:
    if isinstance(phase, Phase):
        return phase
    return Phase(*phase) if isinstance(phase, list) else Phase(phase)
