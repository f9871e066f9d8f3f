"""The groups that `poptorch.Options` consists of.

A group is a dictionary of named values with a setter per name. Values can be read as attributes
(`options.device_iterations`), are checked by type against their default, and cannot change once an
executor or data loader has frozen them (rules 7.1, 9.7, 9.8).
"""

from __future__ import annotations

import os
from typing import Any, Dict, Iterator, Optional

import torch

from ipu_vit.emulator import enums
from ipu_vit.emulator.log import logger


class OptionsDict:
    """Named, typed values that can be frozen."""

    def __init__(self, **defaults: Any) -> None:
        object.__setattr__(self, "_values", dict(defaults))
        object.__setattr__(self, "_is_frozen", False)

    def set(self, **values: Any) -> None:
        """Store values; one of another type than the default's is a ValueError."""
        for name, value in values.items():
            self.checkIsFrozen(name)
            default = self._values.get(name)
            if default is not None and not isinstance(value, type(default)):
                raise ValueError(
                    f"Unexpected type {type(value).__name__} for option {name}: expected {type(default).__name__}"
                )
            self._values[name] = value

    def createOrSet(self, **values: Any) -> None:
        """Store values that may have no default."""
        for name, value in values.items():
            self.checkIsFrozen(name)
            self._values[name] = value

    def exists(self, name: str) -> bool:
        return name in self._values

    def deleteIfExists(self, name: str) -> None:
        self.checkIsFrozen(name)
        self._values.pop(name, None)

    def checkIsFrozen(self, option: Optional[str] = None) -> None:
        if self._is_frozen:
            raise AttributeError(
                f"Can't modify frozen Options (option {option!r}): they are in use by an executor or a data loader"
            )

    def toDict(self) -> Dict[str, Any]:
        """Every value by name; enumerations as their integers."""
        return {
            name: int(value) if isinstance(value, int) and not isinstance(value, bool) else value
            for name, value in self._values.items()
        }

    def _groups(self) -> Iterator[OptionsDict]:
        return (value for value in self.__dict__.values() if isinstance(value, OptionsDict))

    def _freeze(self) -> None:
        for group in self._groups():
            group._freeze()
        object.__setattr__(self, "_is_frozen", True)

    def __getattr__(self, name: str) -> Any:
        values = self.__dict__.get("_values", {})
        if name in values:
            return values[name]
        raise AttributeError(f"{type(self).__name__} has no option {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__.get("_values", {}):
            self.set(**{name: value})
        elif not name.startswith("_") and self.__dict__.get("_sealed", False):
            raise AttributeError(f"{type(self).__name__} has no option {name!r}")
        else:
            self.checkIsFrozen(name) if not name.startswith("_") else None
            object.__setattr__(self, name, value)


class _JitOptions(OptionsDict):
    def traceModel(self, trace_model: bool) -> _JitOptions:
        if trace_model:
            raise ValueError("Tracing with torch.jit.trace is no longer supported: remove Jit.traceModel(True)")
        logger.warning("Jit.traceModel is deprecated and has no effect")
        return self


class _PrecisionOptions(OptionsDict):
    def __init__(self, popart_options: _PopartOptions) -> None:
        super().__init__(enable_floating_point_exceptions=False, enable_stochastic_rounding=False)
        self._popart = popart_options
        self._partials = torch.float32

    def halfFloatCasting(self, half_float_casting: Any) -> _PrecisionOptions:
        logger.warning("Precision.halfFloatCasting is deprecated and has no effect")
        return self

    def runningStatisticsAlwaysFloat(self, value: bool) -> _PrecisionOptions:
        logger.warning("Precision.runningStatisticsAlwaysFloat is deprecated and has no effect")
        return self

    def enableFloatingPointExceptions(self, enabled: bool) -> _PrecisionOptions:
        if not isinstance(enabled, bool):
            raise ValueError(f"enableFloatingPointExceptions needs a bool, not {enabled!r}")
        self.set(enable_floating_point_exceptions=enabled)
        self._popart.set("enableFloatingPointChecks", enabled)
        return self

    def enableStochasticRounding(self, enabled: bool) -> _PrecisionOptions:
        self.set(enable_stochastic_rounding=enabled)
        self._popart.set("enableStochasticRounding", enabled)
        return self

    def setPartialsType(self, dtype: torch.dtype) -> _PrecisionOptions:
        if dtype not in (torch.float16, torch.float32):
            raise ValueError(f"setPartialsType takes torch.half or torch.float, not {dtype}")
        name = "half" if dtype == torch.float16 else "float"
        self._partials = dtype
        self._popart.set("partialsTypeMatMuls", name)
        # Replaces whatever was there, dithering included (rule 6.4).
        self._popart.set("convolutionOptions", {"partialsType": name})
        return self


class _TrainingOptions(OptionsDict):
    def __init__(self, popart_options: _PopartOptions) -> None:
        super().__init__(
            gradient_accumulation=1,
            accumulation_and_replication_reduction_type=enums.ReductionType.Mean,
            meanAccumulationAndReplicationReductionStrategy=enums.MeanReductionStrategy.Post,
            automatic_loss_scaling=False,
        )
        self._popart = popart_options

    def gradientAccumulation(self, gradient_accumulation: int) -> _TrainingOptions:
        self.set(gradient_accumulation=gradient_accumulation)
        return self

    def accumulationAndReplicationReductionType(self, reduction_type: enums.ReductionType) -> _TrainingOptions:
        if not isinstance(reduction_type, enums.ReductionType) or reduction_type == enums.ReductionType.NoReduction:
            raise ValueError(f"The reduction must be ReductionType.Sum or ReductionType.Mean, not {reduction_type!r}")
        self.set(accumulation_and_replication_reduction_type=reduction_type)
        return self

    def setMeanAccumulationAndReplicationReductionStrategy(
        self, mean_reduction_strategy: enums.MeanReductionStrategy
    ) -> _TrainingOptions:
        self.set(meanAccumulationAndReplicationReductionStrategy=mean_reduction_strategy)
        return self

    def setAutomaticLossScaling(self, enabled: bool) -> _TrainingOptions:
        self.set(automatic_loss_scaling=enabled)
        self._popart.set("automaticLossScalingSettings.enabled", enabled)
        return self

    def setConvolutionDithering(self, enabled: bool) -> _TrainingOptions:
        # Replaces whatever was there, the partials type included (rule 6.4).
        self._popart.set("convolutionOptions", {"enableConvolutionDithering": "true" if enabled else "false"})
        return self


class _PopartOptions:
    """Session options passed on to PopART by name; names and kinds are checked at compile (rule 9.7)."""

    def __init__(self) -> None:
        self.options: Dict[str, Any] = {}
        self._is_frozen = False

    def checkIsFrozen(self, option: Optional[str] = None) -> None:
        if self._is_frozen:
            raise AttributeError(f"Can't modify frozen Options (option {option!r})")

    def set(self, key: str, value: Any) -> _PopartOptions:
        self.checkIsFrozen(key)
        self.options[key] = value
        return self

    def setEngineOptions(self, engine_options: Dict[str, str]) -> _PopartOptions:
        return self.set("engineOptions", engine_options)

    def setPatterns(self, patterns: Dict[str, bool], level: int = 2) -> _PopartOptions:
        self.checkIsFrozen("patterns")
        self.options["patterns"] = dict(patterns)
        self.options["patterns_level"] = level
        return self


class _DistributedOptions(OptionsDict):
    """Which of several processes this one is (section 11)."""

    def __init__(self) -> None:
        super().__init__(num_distributed_processes=1, distributed_process_id=0, ipuof_configs={})
        self.setEnvVarNames("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")

    def disable(self) -> _DistributedOptions:
        self.set(num_distributed_processes=1, distributed_process_id=0)
        return self

    def setEnvVarNames(self, var_num_processes: str, var_process_id: str) -> _DistributedOptions:
        processes = int(os.environ.get(var_num_processes, "1"))
        return self.configureProcessId(int(os.environ.get(var_process_id, "0")), processes)

    def configureProcessId(self, process_id: int, num_processes: int) -> _DistributedOptions:
        self.set(distributed_process_id=process_id, num_distributed_processes=num_processes)
        return self

    @property
    def processId(self) -> int:
        return self.distributed_process_id  # type: ignore[no-any-return]

    @property
    def numProcesses(self) -> int:
        return self.num_distributed_processes  # type: ignore[no-any-return]


class TensorLocationSettings(OptionsDict):
    """Where one kind of tensor is stored."""

    def minElementsForOffChip(self, min_elements: int) -> TensorLocationSettings:
        self.createOrSet(minElementsForOffChip=min_elements)
        return self

    def minElementsForReplicatedTensorSharding(self, min_elements: int) -> TensorLocationSettings:
        self.createOrSet(minElementsForReplicatedTensorSharding=min_elements)
        return self

    def useOnChipStorage(self, use: bool = True) -> TensorLocationSettings:
        self.createOrSet(onChip=int(use))
        return self

    def useReplicatedTensorSharding(self, use: bool = True) -> TensorLocationSettings:
        self.createOrSet(useReplicatedTensorSharding=int(use))
        return self

    def useIOTilesToLoad(self, use: bool = True) -> TensorLocationSettings:
        self.createOrSet(useIOTilesToLoad=int(use))
        return self

    def useIOTilesToStore(self, use: bool = True) -> TensorLocationSettings:
        self.createOrSet(useIOTilesToStore=int(use))
        return self


class _TensorLocationOptions(OptionsDict):
    def numIOTiles(self, num_tiles: int) -> _TensorLocationOptions:
        if num_tiles % 2 or not 32 <= num_tiles <= 192:
            raise ValueError(f"numIOTiles must be even and from 32 to 192, not {num_tiles}")
        self.createOrSet(numIOTiles=num_tiles)
        return self

    def setActivationLocation(self, location: TensorLocationSettings) -> _TensorLocationOptions:
        return self._locate("location_activation", location)

    def setWeightLocation(self, location: TensorLocationSettings) -> _TensorLocationOptions:
        return self._locate("location_weight", location)

    def setOptimizerLocation(self, location: TensorLocationSettings) -> _TensorLocationOptions:
        return self._locate("location_optimizer", location)

    def setAccumulatorLocation(self, location: TensorLocationSettings) -> _TensorLocationOptions:
        return self._locate("location_accumulator", location)

    def _locate(self, name: str, location: TensorLocationSettings) -> _TensorLocationOptions:
        if not isinstance(location, TensorLocationSettings):
            raise TypeError(f"{name} takes a poptorch.TensorLocationSettings, not {type(location).__name__}")
        self.createOrSet(**{name: location.toDict()})
        return self
