"""Stands in for PopTorch: `import poptorch` finds this package once the emulator is installed."""

from __future__ import annotations

import os as _os

from ipu_vit.emulator.arg_parser import ICustomArgParser, registerCustomArgParser
from ipu_vit.emulator.blocks import BeginBlock, Block, BlockFunction, LegacyBeginBlockFn, removeBlocks
from ipu_vit.emulator.control_flow import cond, for_loop
from ipu_vit.emulator.cpu_op import CPU
from ipu_vit.emulator.ctc import ctc_beam_search_decoder
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
from ipu_vit.emulator.executor import PoplarExecutor
from ipu_vit.emulator.hardware import ipuHardwareIsAvailable, ipuHardwareVersion
from ipu_vit.emulator.hooks import registerPostCompileHook, registerPreCompileHook
from ipu_vit.emulator.log import setLogLevel
from ipu_vit.emulator.ops import (
    custom_op,
    dynamic_slice,
    dynamic_update,
    identity_loss,
    nop,
    recomputationCheckpoint,
    serializedMatMul,
    set_available_memory,
    set_overlap_for_input,
    set_overlap_for_output,
)
from ipu_vit.emulator.option_groups import TensorLocationSettings
from ipu_vit.emulator.options import ConfigFileError, Options
from ipu_vit.emulator.phases import ParallelPhasedExecution, Phase, SerialPhasedExecution
from ipu_vit.emulator.point_clouds import fps, nearest
from ipu_vit.emulator.printing import ipu_print_tensor, print
from ipu_vit.emulator.scopes import Attribute, MultiConv, NameScope
from ipu_vit.emulator.stages import PipelinedExecution, ShardedExecution, Stage
from ipu_vit.emulator.version import POPTORCH_VERSION as __version__
from ipu_vit.emulator.wrapping import inferenceModel, load, trainingModel

from . import enums, ops, optim, options, poptorch_core, profiling

__all__ = [name for name in dir() if not name.startswith("_") and name != "annotations"]

# As PopTorch leaves it: programs that use RDMA may fork afterwards.
_os.environ.setdefault("RDMAV_FORK_SAFE", "1")
