"""`poptorch.Options`: what may be set, checked when it is set or when it is compiled."""

from __future__ import annotations

import copy
import json
import os
from typing import Any, Callable, Dict, List, Optional, Union

import torch

from ipu_vit.emulator import enums
from ipu_vit.emulator.option_groups import (
    OptionsDict,
    TensorLocationSettings,
    _DistributedOptions,
    _JitOptions,
    _PopartOptions,
    _PrecisionOptions,
    _TensorLocationOptions,
    _TrainingOptions,
)
from ipu_vit.emulator.stages import PipelinedExecution, Strategy

__all__ = ["ConfigFileError", "Options", "TensorLocationSettings"]


class ConfigFileError(Exception):
    """`poptorch.ConfigFileError`: a file given to `Options.loadFromFile` cannot be understood."""


class Options(OptionsDict):
    """`poptorch.Options`: how a model is compiled and run."""

    def __init__(self) -> None:
        super().__init__(
            replication_factor=1,
            input_group_size=1,
            input_cgt=enums.CommGroupType.Consecutive,
            broadcast_buffers=True,
            device_iterations=1,
            log_dir=".",
            max_repeat_logs=4,
            auto_round_num_ipus=False,
            anchored_tensors={},
            output_mode=enums.OutputMode.Default.value,
            output_return_period=1,
            connection_type=enums.ConnectionType.Always.value,
            sync_pattern=enums.SyncPattern.Full.value,
            available_memory_proportion={},
        )
        self._Popart = _PopartOptions()
        self._precision = _PrecisionOptions(self._Popart)
        self._training = _TrainingOptions(self._Popart)
        self._jit = _JitOptions()
        self._distributed = _DistributedOptions()
        self._locations = _TensorLocationOptions()
        self._strategy: Strategy = PipelinedExecution()
        self._progress_bar: Union[bool, Callable[[int, int], None]] = True
        self._source_location_excludes: List[str] = []
        self._relax_optimizer_checks = False
        if "POPTORCH_CACHE_DIR" in os.environ:
            self.enableExecutableCaching(os.environ["POPTORCH_CACHE_DIR"])
        if "POPTORCH_DEFAULT_OPTIONS" in os.environ:
            self.from_json(os.environ["POPTORCH_DEFAULT_OPTIONS"])
        self._sealed = True

    # Groups -----------------------------------------------------------------------------------

    @property
    def Jit(self) -> _JitOptions:
        return self._jit

    @property
    def Precision(self) -> _PrecisionOptions:
        return self._precision

    @property
    def Training(self) -> _TrainingOptions:
        return self._training

    @property
    def Distributed(self) -> _DistributedOptions:
        return self._distributed

    @property
    def TensorLocations(self) -> _TensorLocationOptions:
        return self._locations

    # Batches ----------------------------------------------------------------------------------

    def deviceIterations(self, device_iterations: int) -> Options:
        self.set(device_iterations=device_iterations)
        return self

    def replicationFactor(self, replication_factor: int) -> Options:
        self.set(replication_factor=replication_factor)
        return self

    def inputReplicaGrouping(self, input_group_size: int, input_group_type: enums.CommGroupType) -> Options:
        if input_group_type not in (enums.CommGroupType.Consecutive, enums.CommGroupType.Orthogonal):
            raise ValueError(f"inputReplicaGrouping takes Consecutive or Orthogonal groups, not {input_group_type!r}")
        self.set(input_group_size=input_group_size, input_cgt=input_group_type)
        return self

    def outputMode(self, output_mode: enums.OutputMode, output_return_period: Optional[int] = None) -> Options:
        if not isinstance(output_mode, enums.OutputMode):
            raise AssertionError(f"outputMode takes a poptorch.OutputMode, not {output_mode!r}")
        if output_mode == enums.OutputMode.EveryN:
            if not output_return_period or output_return_period < 1:
                raise AssertionError("OutputMode.EveryN needs an output_return_period above 0")
            self.set(output_return_period=output_return_period)
        self.set(output_mode=output_mode.value)
        return self

    def defaultOutputMode(self) -> bool:
        return bool(self.output_mode == enums.OutputMode.Default)

    def anchorTensor(
        self,
        short_name: str,
        long_name: str,
        output_mode: Optional[enums.OutputMode] = None,
        output_return_period: Optional[int] = 1,
    ) -> None:
        mode = enums.OutputMode(self.output_mode) if output_mode is None else output_mode
        self.checkIsFrozen("anchored_tensors")
        self.anchored_tensors[short_name] = [long_name, int(mode), output_return_period]

    def broadcastBuffers(self, broadcast_buffers: bool = True) -> Options:
        self.set(broadcast_buffers=broadcast_buffers)
        return self

    # Placement --------------------------------------------------------------------------------

    def setExecutionStrategy(self, strategy: Any) -> Options:
        self.checkIsFrozen("execution_strategy")
        if isinstance(strategy, enums.AutoStage):
            strategy = PipelinedExecution(strategy)
        if not isinstance(strategy, Strategy):
            raise AssertionError(f"setExecutionStrategy takes a strategy or an AutoStage, not {strategy!r}")
        self._strategy = strategy
        return self

    def setAvailableMemoryProportion(self, available_memory_proportion: Dict[str, float]) -> Options:
        for key, value in available_memory_proportion.items():
            if not (key.startswith("IPU") and key[3:].isdigit()):
                raise AssertionError(f'Available memory proportions are keyed "IPU0", "IPU1", ..., not {key!r}')
            self.checkIsFrozen("available_memory_proportion")
            self.available_memory_proportion[int(key[3:])] = value
        return self

    def autoRoundNumIPUs(self, auto_round_num_ipus: bool = True) -> Options:
        self.set(auto_round_num_ipus=auto_round_num_ipus)
        return self

    # Devices ----------------------------------------------------------------------------------

    def useIpuModel(self, use_model: bool) -> Options:
        self.createOrSet(use_model=bool(use_model))
        return self

    def connectionType(self, connection_type: enums.ConnectionType) -> Options:
        if not isinstance(connection_type, enums.ConnectionType):
            raise AssertionError(f"connectionType takes a poptorch.ConnectionType, not {connection_type!r}")
        self.set(connection_type=connection_type.value)
        return self

    def syncPattern(self, sync_pattern: enums.SyncPattern) -> Options:
        if not isinstance(sync_pattern, enums.SyncPattern):
            raise AssertionError(f"syncPattern takes a poptorch.SyncPattern, not {sync_pattern!r}")
        self.set(sync_pattern=sync_pattern.value)
        return self

    def useIpuId(self, ipu_id: int) -> Options:
        if not isinstance(ipu_id, int):
            raise AssertionError(f"useIpuId takes an integer, not {ipu_id!r}")
        self.createOrSet(ipu_id=ipu_id)
        return self

    def useOfflineIpuTarget(self, ipu_version: int = 2) -> Options:
        self.connectionType(enums.ConnectionType.Never)
        self.createOrSet(ipu_version=ipu_version)
        return self

    # Numbers, caching, logs -------------------------------------------------------------------

    def randomSeed(self, random_seed: int) -> Options:
        """Seed the device, and torch on the host at this moment (rule 6.6)."""
        if not isinstance(random_seed, int):
            raise AssertionError(f"randomSeed takes an integer, not {random_seed!r}")
        torch.manual_seed(random_seed)
        self.createOrSet(random_seed=random_seed)
        return self

    def enableStableNorm(self, enabled: bool) -> Options:
        self._Popart.set("enableStableNorm", enabled)
        return self

    def enableSyntheticData(self, enabled: bool) -> Options:
        self._Popart.set("syntheticDataMode", int(enabled))
        return self

    def enableExecutableCaching(self, path: Optional[str]) -> Options:
        self._Popart.set("enableEngineCaching", path is not None)
        if path is not None:
            self._Popart.set("cachePath", path)
        return self

    def logDir(self, log_dir: str) -> Options:
        self.set(log_dir=log_dir)
        return self

    def maxRepeatLogs(self, max_lines: Optional[int]) -> Options:
        self.createOrSet(max_repeat_logs=2**31 if max_lines is None else max_lines)
        return self

    def modelName(self, name: str) -> Options:
        self.createOrSet(model_name=name)
        return self

    def logCycleCount(self, log_cycle_count: bool) -> Options:
        self._Popart.set("instrumentWithHardwareCycleCounter", log_cycle_count)
        return self

    def enableProfiling(self, profile_dir: Optional[str] = None) -> Options:
        self.createOrSet(profile_dir=profile_dir or ".")
        return self

    def disableModuleNamescope(self) -> Options:
        self.createOrSet(module_namescope_enabled=False)
        return self

    def updatableNamedBuffers(self, buffers: List[str]) -> Options:
        self._Popart.set("updatableNamedBuffers", list(buffers))
        return self

    def showCompilationProgressBar(self, show: bool = True) -> Options:
        self.checkIsFrozen("show_compilation_progress_bar")
        self._progress_bar = show
        return self

    def relaxOptimizerAttributesChecks(self, relax: bool = True) -> Options:
        self.checkIsFrozen("relax_optimizer_checks")
        self._relax_optimizer_checks = relax
        return self

    def sourceLocationExcludes(self, excludes: List[str]) -> Options:
        self.checkIsFrozen("source_location_excludes")
        self._source_location_excludes = list(excludes)
        return self

    def appendToLocationExcludes(self, *excludes: str) -> Options:
        self.checkIsFrozen("source_location_excludes")
        self._source_location_excludes.extend(excludes)
        return self

    # Files and copies -------------------------------------------------------------------------

    def from_json(self, string: str) -> Options:
        """Call setters named in a JSON object, for example `{"Training.gradientAccumulation": 8}`."""
        for name, value in json.loads(string).items():
            self._call_setter(name, value)
        return self

    def loadFromFile(self, filepath: str) -> Options:
        """Call the setters written in a file, one `setter(arguments)` a line; # starts a comment."""
        with open(filepath, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                text = line.split("#")[0].strip()
                if not text:
                    continue
                name, bracket, arguments = text.partition("(")
                try:
                    value = json.loads(f"[{arguments.rstrip(')')}]") if bracket else []
                    self._call_setter(name, *value)
                except (ValueError, AttributeError, TypeError) as error:
                    raise ConfigFileError(
                        f"{filepath}, line {number}: {text!r} is not an option call ({error})"
                    ) from error
        return self

    def _call_setter(self, name: str, *values: Any) -> None:
        target: Any = self
        *groups, setter = name.split(".")
        for group in groups:
            target = getattr(target, group)
        getattr(target, setter)(*values)

    def toDict(self) -> Dict[str, Any]:
        """Every option by name, those of the groups included."""
        result = super().toDict()
        for group in self._groups():
            result.update(group.toDict())
        result.update(self._strategy.backendOptions())
        return result

    def clone(self) -> Options:
        """An unfrozen copy."""
        copied = copy.deepcopy(self)
        for part in (copied, copied._Popart, *copied._groups()):
            object.__setattr__(part, "_is_frozen", False)
        return copied

    def _freeze(self) -> None:
        super()._freeze()
        self._Popart._is_frozen = True

    def __deepcopy__(self, memo: Dict[int, Any]) -> Options:
        copied = object.__new__(type(self))
        memo[id(self)] = copied
        for name, value in self.__dict__.items():
            object.__setattr__(copied, name, copy.deepcopy(value, memo))
        return copied
