"""The groups that `poptorch.Options` consists of. Their setters return the group (rule 9.9)."""

from __future__ import annotations

import copy
import os
from typing import Any, Dict, List, Optional, Set, Union

import torch

from ipu_vit.emulator.enums import HalfFloatCastingBehavior, MeanReductionStrategy, ReductionType
from ipu_vit.emulator.log import logger
from ipu_vit.emulator.options_dict import OptionsDict


class PopartOptions:
    """`Options._Popart`: session options passed on to PopART by name, which are checked at compile (rule 9.7)."""

    def __init__(self) -> None:
        self._is_frozen = False
        self.options: Dict[str, Any] = {"instrumentWithHardwareCycleCounter": False, "rearrangeAnchorsOnHost": False}

    def checkIsFrozen(self, option: Any = None) -> None:
        if self._is_frozen and option != "_is_frozen":
            raise AttributeError("Can't modify frozen Options: an executor or a data loader uses them")

    def set(self, key: str, value: Union[int, float, str, List[str], Set[str]]) -> PopartOptions:
        """Keep a value for the compiler, whatever it is."""
        self.checkIsFrozen()
        self.options[key] = value
        return self

    def setEngineOptions(self, engine_options: Dict[str, str]) -> PopartOptions:
        return self.set("engineOptions", engine_options)  # type: ignore[arg-type]

    def setPatterns(self, patterns: Dict[str, bool], level: int = 2) -> PopartOptions:
        """Turn patterns of PopART's compiler on and off, beginning with those of a level."""
        if not isinstance(level, int) or not isinstance(patterns, dict):
            raise AssertionError(f"setPatterns takes a dictionary and an integer, not {patterns!r} and {level!r}")
        self.set("patterns_level", level)
        return self.set("patterns", patterns)  # type: ignore[arg-type]

    def __deepcopy__(self, memo: Dict[int, Any]) -> PopartOptions:
        copied = type(self)()
        memo[id(self)] = copied
        copied.options = copy.deepcopy(self.options, memo)
        return copied

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.options.items())})"


class JitOptions(OptionsDict):
    """`Options.Jit`: how a model was traced before PopTorch 3."""

    def traceModel(self, trace_model: bool) -> JitOptions:
        if trace_model:
            raise ValueError("Jit.traceModel(True) is not supported any more: torch.jit.trace has no part in PopTorch")
        logger.warning("Jit.traceModel is deprecated and has no effect")
        return self


class PrecisionOptions(OptionsDict):
    """`Options.Precision`: number formats (rules 6.2 to 6.5)."""

    def __init__(self, popart_options: PopartOptions) -> None:
        self._popart_options = popart_options
        super().__init__()

    def halfFloatCasting(self, half_float_casting: HalfFloatCastingBehavior) -> PrecisionOptions:
        logger.warning("Precision.halfFloatCasting is deprecated and has no effect: types follow PyTorch's rules")
        return self

    def runningStatisticsAlwaysFloat(self, value: bool) -> PrecisionOptions:
        logger.warning("Precision.runningStatisticsAlwaysFloat is deprecated and has no effect")
        return self

    def enableFloatingPointExceptions(self, enabled: bool) -> PrecisionOptions:
        if not isinstance(enabled, bool):
            raise AssertionError(f"enableFloatingPointExceptions takes a bool, not {enabled!r}")
        self._popart_options.set("enableFloatingPointChecks", enabled)
        return self

    def enableStochasticRounding(self, enabled: bool) -> PrecisionOptions:
        self._popart_options.set("enableStochasticRounding", enabled)
        return self

    def setPartialsType(self, dtype: torch.dtype) -> PrecisionOptions:
        if dtype not in (torch.float16, torch.float32):
            raise ValueError(f"setPartialsType takes torch.half or torch.float, not {dtype}")
        name = "half" if dtype == torch.float16 else "float"
        self._popart_options.set("partialsTypeMatMuls", name)
        # Replaces whatever was there, dithering included (rule 6.4).
        self._popart_options.set("convolutionOptions", {"partialsType": name})  # type: ignore[arg-type]
        return self

    @property
    def enable_stochastic_rounding(self) -> bool:
        """Whether the device rounds at random. Not part of PopTorch."""
        return self._popart_options.options.get("enableStochasticRounding") is True


class TrainingOptions(OptionsDict):
    """`Options.Training`: gradients on their way to the weights (section 3)."""

    def __init__(self, popart_options: PopartOptions) -> None:
        self._popart_options = popart_options
        super().__init__(
            gradient_accumulation=1,
            accumulation_and_replication_reduction_type=ReductionType.Mean,
            meanAccumulationAndReplicationReductionStrategy=MeanReductionStrategy.Post,
        )

    def gradientAccumulation(self, gradient_accumulation: int) -> TrainingOptions:
        self.set(gradient_accumulation=gradient_accumulation)
        return self

    def accumulationAndReplicationReductionType(self, reduction_type: ReductionType) -> TrainingOptions:
        if not isinstance(reduction_type, ReductionType) or reduction_type == ReductionType.NoReduction:
            raise ValueError(
                "accumulationAndReplicationReductionType takes poptorch.ReductionType.Sum or "
                f"poptorch.ReductionType.Mean, not {reduction_type!r}"
            )
        self.set(accumulation_and_replication_reduction_type=reduction_type)
        return self

    def setMeanAccumulationAndReplicationReductionStrategy(
        self, mean_reduction_strategy: MeanReductionStrategy
    ) -> TrainingOptions:
        self.set(meanAccumulationAndReplicationReductionStrategy=mean_reduction_strategy)
        return self

    def setAutomaticLossScaling(self, enabled: bool) -> TrainingOptions:
        self._popart_options.set("automaticLossScalingSettings.enabled", enabled)
        return self

    def setConvolutionDithering(self, enabled: bool) -> TrainingOptions:
        # Replaces whatever was there, the partials type included (rule 6.4).
        self._popart_options.set("convolutionOptions", {"enableConvDithering": enabled})  # type: ignore[arg-type]
        return self

    @property
    def automatic_loss_scaling(self) -> bool:
        """Whether the loss scale adapts itself. Not part of PopTorch."""
        return self._popart_options.options.get("automaticLossScalingSettings.enabled") is True


class DistributedOptions(OptionsDict):
    """`Options.Distributed`: which of several processes this one is (section 11)."""

    def __init__(self) -> None:
        super().__init__(num_distributed_processes=1, distributed_process_id=0, ipuof_configs={})
        self._read_environment("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")

    def disable(self) -> DistributedOptions:
        """Be the only process, whatever the environment says."""
        self.set(num_distributed_processes=1, distributed_process_id=0)
        return self

    def setEnvVarNames(self, var_num_processes: str, var_process_id: str) -> DistributedOptions:
        """Take the number of processes and of this one from environment variables of these names."""
        self._read_environment(var_num_processes, var_process_id)
        return self

    def configureProcessId(self, process_id: int, num_processes: int) -> DistributedOptions:
        self.set(distributed_process_id=process_id, num_distributed_processes=num_processes)
        return self

    def _read_environment(self, var_num_processes: str, var_process_id: str) -> None:
        self.set(
            num_distributed_processes=int(os.environ.get(var_num_processes, "1")),
            distributed_process_id=int(os.environ.get(var_process_id, "0")),
        )

    @property
    def processId(self) -> int:
        return int(self.distributed_process_id)

    @property
    def numProcesses(self) -> int:
        return int(self.num_distributed_processes)


class TensorLocationSettings(OptionsDict):
    """`poptorch.TensorLocationSettings`: where one kind of tensor is stored."""

    def minElementsForOffChip(self, min_elements: int) -> TensorLocationSettings:
        return self._keep_int("minElementsForOffChip", min_elements)

    def minElementsForReplicatedTensorSharding(self, min_elements: int) -> TensorLocationSettings:
        return self._keep_int("minElementsForReplicatedTensorSharding", min_elements)

    def useOnChipStorage(self, use: Optional[bool] = True) -> TensorLocationSettings:
        """On the chip, off it, or, with None, wherever it would be."""
        if use is None:
            self.deleteIfExists("onChip")
            return self
        return self._keep_bool("onChip", use)

    def useReplicatedTensorSharding(self, use: bool = True) -> TensorLocationSettings:
        return self._keep_bool("useReplicatedTensorSharding", use)

    def useIOTilesToLoad(self, use: bool = True) -> TensorLocationSettings:
        return self._keep_bool("useIOTilesToLoad", use)

    def useIOTilesToStore(self, use: bool = True) -> TensorLocationSettings:
        return self._keep_bool("useIOTilesToStore", use)

    def _keep_int(self, name: str, value: int) -> TensorLocationSettings:
        if not isinstance(value, int):
            raise AssertionError(f"{name} takes an integer, not {value!r}")
        self.createOrSet(**{name: value})
        return self

    def _keep_bool(self, name: str, value: bool) -> TensorLocationSettings:
        if not isinstance(value, bool):
            raise AssertionError(f"Setting {name} of a tensor location takes a bool, not {value!r}")
        self.createOrSet(**{name: int(value)})
        return self


class TensorLocationOptions(OptionsDict):
    """`Options.TensorLocations`: where each kind of tensor is stored."""

    def numIOTiles(self, num_tiles: int) -> TensorLocationOptions:
        """Set tiles aside for traffic with the host (rule 9.11)."""
        if not isinstance(num_tiles, int) or num_tiles % 2 or not 32 <= num_tiles <= 192:
            raise AssertionError(f"numIOTiles takes an even number from 32 to 192, not {num_tiles!r}")
        self.createOrSet(numIOTiles=num_tiles)
        return self

    def setActivationLocation(self, location: TensorLocationSettings) -> TensorLocationOptions:
        return self._locate("location_activation", location)

    def setWeightLocation(self, location: TensorLocationSettings) -> TensorLocationOptions:
        return self._locate("location_weight", location)

    def setOptimizerLocation(self, location: TensorLocationSettings) -> TensorLocationOptions:
        return self._locate("location_optimizer", location)

    def setAccumulatorLocation(self, location: TensorLocationSettings) -> TensorLocationOptions:
        return self._locate("location_accumulator", location)

    def _locate(self, name: str, location: TensorLocationSettings) -> TensorLocationOptions:
        if not isinstance(location, TensorLocationSettings):
            raise AssertionError(f"{name} takes a poptorch.TensorLocationSettings, not {location!r}")
        self.createOrSet(**{name: location.toDict()})
        return self
