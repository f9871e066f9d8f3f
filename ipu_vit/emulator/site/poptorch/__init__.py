"""Stands in for PopTorch: `import poptorch` finds this package once the emulator is installed."""

from __future__ import annotations

from ipu_vit.emulator.blocks import BeginBlock, Block, BlockFunction, LegacyBeginBlockFn, removeBlocks
from ipu_vit.emulator.dataloader import AsynchronousDataAccessor, DataLoader
from ipu_vit.emulator.device import is_running as isRunningOnIpu
from ipu_vit.emulator.enums import (
    AutoStage,
    CommGroupType,
    ConnectionType,
    DataLoaderMode,
    HalfFloatCastingBehavior,
    Liveness,
    MatMulSerializationMode,
    MeanReductionStrategy,
    MultiConvPlanType,
    OutputMode,
    OverlapMode,
    ReductionType,
    SharingStrategy,
    SyncPattern,
    VariableRetrievalMode,
)
from ipu_vit.emulator.errors import Error, RecoverableError, UnrecoverableError
from ipu_vit.emulator.executor import POPTORCH_VERSION as __version__
from ipu_vit.emulator.executor import PoplarExecutor, inferenceModel, trainingModel
from ipu_vit.emulator.hardware import ipuHardwareIsAvailable, ipuHardwareVersion
from ipu_vit.emulator.log import setLogLevel
from ipu_vit.emulator.ops import identity_loss, nop, recomputationCheckpoint, set_available_memory
from ipu_vit.emulator.options import ConfigFileError, Options, TensorLocationSettings
from ipu_vit.emulator.stages import PipelinedExecution, ShardedExecution, Stage

from . import optim

__all__ = [name for name in dir() if not name.startswith("_") and name != "annotations"]
