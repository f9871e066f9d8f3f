"""`poptorch.Options`: how a model is compiled and run.

Setters keep what they are given; what fits together is checked when a model is compiled (`limits`,
`session_options`).
"""

from __future__ import annotations

import copy
import json
import os
from typing import Any, Dict, List, Optional, Tuple

import torch

from ipu_vit.emulator.enums import CommGroupType, ConnectionType, OutputMode, SyncPattern
from ipu_vit.emulator.log import logger
from ipu_vit.emulator.option_groups import (
    DistributedOptions,
    JitOptions,
    PopartOptions,
    PrecisionOptions,
    TensorLocationOptions,
    TrainingOptions,
)
from ipu_vit.emulator.options_dict import OptionsDict
from ipu_vit.emulator.stages import PipelinedExecution, Strategy

# What `syntheticDataMode` means to PopART.
_REAL_DATA, _RANDOM_NORMAL_DATA = 0, 2
# Variables of Poplar that profiling sets too.
_PROFILING = ("debug.allowOutOfMemory", "autoReport.directory", "autoReport.all")


class ConfigFileError(Exception):
    """`poptorch.ConfigFileError`: a file given to `Options.loadFromFile` is not written like Python."""


class Options(OptionsDict):
    """`poptorch.Options`. Setters return the options they are called on, so that they chain (rule 9.9)."""

    def __init__(self) -> None:
        self._popart = PopartOptions()
        self._jit = JitOptions()
        self._precision = PrecisionOptions(self._popart)
        self._training = TrainingOptions(self._popart)
        self._distributed = DistributedOptions()
        self._tensor_locations = TensorLocationOptions()
        self._strategy: Strategy = PipelinedExecution()
        self._show_compilation_progress_bar = True
        self._source_location_excludes = ["site-packages/torch", "site-packages/poptorch"]
        self._relax_optimizer_checks = False
        self._module_namescope_enabled = True
        super().__init__(
            replication_factor=1,
            input_group_size=1,
            input_cgt=CommGroupType.Consecutive,
            broadcast_buffers=True,
            device_iterations=1,
            log_dir=".",
            max_repeat_logs=4,
            auto_round_num_ipus=False,
            anchored_tensors={},
            output_mode=OutputMode.Default.value,
            output_return_period=1,
            connection_type=ConnectionType.Always.value,
            sync_pattern=SyncPattern.Full.value,
            available_memory_proportion={},
        )
        # The environment comes first, so that what the program says wins (rule 10.4).
        if os.environ.get("POPTORCH_CACHE_DIR"):
            self.enableExecutableCaching(os.environ["POPTORCH_CACHE_DIR"])
        if os.environ.get("POPTORCH_DEFAULT_OPTIONS"):
            self.from_json(os.environ["POPTORCH_DEFAULT_OPTIONS"])

    # Groups -----------------------------------------------------------------------------------

    @property
    def Jit(self) -> JitOptions:
        return self._jit

    @property
    def Precision(self) -> PrecisionOptions:
        return self._precision

    @property
    def Training(self) -> TrainingOptions:
        return self._training

    @property
    def Distributed(self) -> DistributedOptions:
        return self._distributed

    @property
    def TensorLocations(self) -> TensorLocationOptions:
        return self._tensor_locations

    @property
    def _Popart(self) -> PopartOptions:
        return self._popart

    # Batches ----------------------------------------------------------------------------------

    def deviceIterations(self, device_iterations: int) -> Options:
        self.set(device_iterations=device_iterations)
        return self

    def replicationFactor(self, replication_factor: int) -> Options:
        self.set(replication_factor=replication_factor)
        return self

    def inputReplicaGrouping(self, input_group_size: int, input_group_type: CommGroupType) -> Options:
        """Give the replicas of a group the same input (rule 1.3)."""
        if input_group_type not in (CommGroupType.Consecutive, CommGroupType.Orthogonal):
            raise ValueError(f"inputReplicaGrouping takes Consecutive or Orthogonal groups, not {input_group_type!r}")
        if input_group_size < 1:
            raise ValueError(f"inputReplicaGrouping takes groups of at least 1 replica, not {input_group_size}")
        self.set(input_group_size=input_group_size, input_cgt=input_group_type)
        return self

    def outputMode(self, output_mode: OutputMode, output_return_period: Optional[int] = None) -> Options:
        """Choose the micro batches whose outputs are returned (rule 1.8)."""
        if not isinstance(output_mode, OutputMode):
            raise AssertionError(f"outputMode takes a poptorch.OutputMode, not {output_mode!r}")
        if output_mode != OutputMode.EveryN:
            output_return_period = 1
        elif not output_return_period or output_return_period < 1:
            raise AssertionError(
                f"OutputMode.EveryN needs an output_return_period of at least 1, not {output_return_period!r}"
            )
        self.set(output_mode=output_mode.value, output_return_period=output_return_period)
        return self

    def defaultOutputMode(self) -> bool:
        return bool(self.output_mode == OutputMode.Default)

    def anchorTensor(
        self,
        short_name: str,
        long_name: str,
        output_mode: Optional[OutputMode] = None,
        output_return_period: Optional[int] = 1,
    ) -> None:
        """Return a tensor of the model beside its outputs; without a mode, as the outputs are returned."""
        self.checkIsFrozen()
        period = output_return_period if output_mode == OutputMode.EveryN else 1
        self.anchored_tensors[short_name] = [long_name, output_mode is None, output_mode, period]

    def anchors(self) -> Dict[str, Tuple[str, OutputMode, int]]:
        """The long name, mode and period of every anchored tensor. Not part of PopTorch."""
        outputs = OutputMode(self.output_mode), self.output_return_period
        return {
            short_name: (long_name, *(outputs if like_outputs else (OutputMode(mode), period)))
            for short_name, (long_name, like_outputs, mode, period) in self.anchored_tensors.items()
        }

    def broadcastBuffers(self, broadcast_buffers: bool = True) -> Options:
        self.set(broadcast_buffers=broadcast_buffers)
        return self

    # Placement --------------------------------------------------------------------------------

    def setExecutionStrategy(self, strategy: Any) -> Options:
        """How blocks become stages, and which of them run at the same time (rules 5.6, 5.12)."""
        if not isinstance(strategy, Strategy):
            raise AssertionError(
                "setExecutionStrategy takes a PipelinedExecution, ShardedExecution, SerialPhasedExecution or "
                f"ParallelPhasedExecution, not {strategy!r}"
            )
        self._strategy = strategy
        return self

    def setAvailableMemoryProportion(self, available_memory_proportion: Dict[str, float]) -> Options:
        """Share of each IPU's memory for the work of matrix products and the like (rule 9.10)."""
        for key in available_memory_proportion:
            if not key.startswith("IPU"):
                raise AssertionError(f'Available memory proportions are given as {{"IPU0": 0.2}}, not for {key!r}')
        self.set(
            available_memory_proportion={int(key[3:]): share for key, share in available_memory_proportion.items()}
        )
        return self

    def autoRoundNumIPUs(self, auto_round_num_ipus: bool = True) -> Options:
        self.set(auto_round_num_ipus=auto_round_num_ipus)
        return self

    # Devices ----------------------------------------------------------------------------------

    def useIpuModel(self, use_model: bool) -> Options:
        self.createOrSet(use_model=use_model)
        return self

    def connectionType(self, connection_type: ConnectionType) -> Options:
        """When IPUs are acquired (rule 9.5)."""
        if not isinstance(connection_type, ConnectionType):
            raise AssertionError(f"connectionType takes a poptorch.ConnectionType, not {connection_type!r}")
        self.set(connection_type=connection_type.value)
        return self

    def syncPattern(self, sync_pattern: SyncPattern) -> Options:
        if not isinstance(sync_pattern, SyncPattern):
            raise AssertionError(f"syncPattern takes a poptorch.SyncPattern, not {sync_pattern!r}")
        self.set(sync_pattern=sync_pattern.value)
        return self

    def useIpuId(self, ipu_id: int) -> Options:
        if not isinstance(ipu_id, int):
            raise AssertionError(f"useIpuId takes an integer, not {ipu_id!r}")
        self.createOrSet(ipu_id=ipu_id)
        return self

    def useOfflineIpuTarget(self, ipu_version: int = 2) -> Options:
        """Compile for IPUs that are elsewhere; such a program cannot run (rule 9.4)."""
        self.connectionType(ConnectionType.Never)
        self.createOrSet(ipu_version=ipu_version)
        return self

    # Numbers, caching, logs -------------------------------------------------------------------

    def randomSeed(self, random_seed: int) -> Options:
        """Seed the device, and torch on the host at this moment (rule 6.6)."""
        if not isinstance(random_seed, int):
            raise AssertionError(f"randomSeed takes an integer, not {random_seed!r}")
        self.createOrSet(random_seed=random_seed)
        torch.manual_seed(random_seed)
        return self

    def enableStableNorm(self, enabled: bool) -> Options:
        self._popart.set("enableStableNorm", enabled)
        return self

    def enableSyntheticData(self, enabled: bool) -> Options:
        self._popart.set("syntheticDataMode", _RANDOM_NORMAL_DATA if enabled else _REAL_DATA)
        return self

    def enableExecutableCaching(self, path: Optional[str]) -> Options:
        """Keep compiled programs in a folder; None does not."""
        self._popart.set("enableEngineCaching", path is not None)
        if path is not None:
            self._popart.set("cachePath", path)
        return self

    def logDir(self, log_dir: str) -> Options:
        self.set(log_dir=log_dir)
        return self

    def maxRepeatLogs(self, max_lines: Optional[int]) -> Options:
        self.set(max_repeat_logs=2**31 if max_lines is None else max_lines)
        return self

    def modelName(self, name: str) -> Options:
        self.createOrSet(model_name=name)
        return self

    def logCycleCount(self, log_cycle_count: bool) -> Options:
        self._popart.set("instrumentWithHardwareCycleCounter", log_cycle_count)
        return self

    def enableProfiling(self, profile_dir: Optional[str] = None) -> Options:
        """Ask Poplar for a report. POPLAR_ENGINE_OPTIONS wins over what is set here."""
        if any(name in os.environ.get("POPLAR_ENGINE_OPTIONS", "") for name in _PROFILING):
            logger.warning("POPLAR_ENGINE_OPTIONS overrides options of enableProfiling")
        values = dict(zip(_PROFILING, ("true", profile_dir or ".", "true")))
        self._popart.setEngineOptions({**self._popart.options.get("engineOptions", {}), **values})
        return self

    def disableModuleNamescope(self) -> Options:
        self._module_namescope_enabled = False
        return self

    def updatableNamedBuffers(self, buffers: List[str]) -> Options:
        self._popart.set("updatableNamedBuffers", buffers)
        return self

    def showCompilationProgressBar(self, show: bool = True) -> Options:
        self._show_compilation_progress_bar = show
        return self

    def relaxOptimizerAttributesChecks(self, relax: bool = True) -> Options:
        self._relax_optimizer_checks = relax
        return self

    def sourceLocationExcludes(self, excludes: List[str]) -> Options:
        self._source_location_excludes = excludes
        return self

    def appendToLocationExcludes(self, *excludes: str) -> Options:
        self._source_location_excludes = [*self._source_location_excludes, *excludes]
        return self

    # Files and copies -------------------------------------------------------------------------

    def from_json(self, string: str) -> Options:
        """Call setters by name, each with one value, for example `{"Training.gradientAccumulation": 8}`."""
        for name, value in json.loads(string).items():
            setter: Any = self
            for part in name.split("."):
                setter = getattr(setter, part)
            setter(value)
        return self

    def loadFromFile(self, filepath: str) -> Options:
        """Call the setters written in a file, one call a line as in Python but without `options.` before it."""
        with open(filepath, encoding="utf-8") as file:
            lines = [(number, line.strip()) for number, line in enumerate(file, start=1)]
        calls = []
        for number, line in lines:
            if line and not line.startswith("#"):
                try:
                    calls.append(compile(f"options.{line}", filepath, "exec"))
                except SyntaxError as error:
                    raise ConfigFileError(f"{filepath}, line {number}: {line!r} is not Python ({error.msg})") from error
        import poptorch

        for call in calls:
            exec(call, {}, {"poptorch": poptorch, "options": self})
        return self

    def toDict(self) -> Dict[str, Any]:
        """Every option that the compiler is told of, by name."""
        if self.defaultOutputMode():
            raise AssertionError("OutputMode.Default stands for another mode: choose one before toDict()")
        found = {**self._strategy.backendOptions(), **self._popart.options}
        for group in (self, self._training, self._distributed, self._tensor_locations):
            group.update(found)
        return found

    def clone(self) -> Options:
        """An unfrozen copy."""
        return copy.deepcopy(self)

    def __repr__(self) -> str:
        groups = ("Jit", "Precision", "Training", "Distributed", "TensorLocations", "_Popart")
        values = {**self._values, **{name: getattr(self, name) for name in groups}}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in values.items())})"
