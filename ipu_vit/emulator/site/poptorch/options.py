"""Stands in for `poptorch.options`."""

from __future__ import annotations

from ipu_vit.emulator import option_groups, phases, stages
from ipu_vit.emulator.option_groups import TensorLocationSettings
from ipu_vit.emulator.options import ConfigFileError, Options
from ipu_vit.emulator.phases import ParallelPhasedExecution, Phase, SerialPhasedExecution
from ipu_vit.emulator.scopes import Attribute
from ipu_vit.emulator.stages import PipelinedExecution, ShardedExecution, Stage

_DistributedOptions = option_groups.DistributedOptions
_IExecutionStrategy = stages.Strategy
_IPhasedExecution = phases.PhasedExecution
_JitOptions = option_groups.JitOptions
_PopartOptions = option_groups.PopartOptions
_PrecisionOptions = option_groups.PrecisionOptions
_TensorLocationOptions = option_groups.TensorLocationOptions
_TrainingOptions = option_groups.TrainingOptions

__all__ = [
    "Attribute",
    "ConfigFileError",
    "Options",
    "ParallelPhasedExecution",
    "Phase",
    "PipelinedExecution",
    "SerialPhasedExecution",
    "ShardedExecution",
    "Stage",
    "TensorLocationSettings",
]
