"""Settings to `poptorch.Options`: one for training, one for evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import poptorch
import torch

from ipu_vit.device import Device
from ipu_vit.distributed import ALONE, Processes
from ipu_vit.run_folder import make_folder
from ipu_vit.settings import Settings

# PopART's number for the schedule that shares memory best between the gradients of a pipeline.
_OVERLAP_MEMORY_OPTIMIZED = 3


def training_options(settings: Settings, device: Device, processes: Processes = ALONE) -> Any:
    """Options of the training executor and its data loader, in one of the processes."""
    pipeline = settings.pipeline
    plan = pipeline.batch_plan()
    options = _common_options(settings, device, processes)
    options.deviceIterations(plan.device_iterations)
    if processes.replicas is None:
        options.replicationFactor(pipeline.replicas_of_each(processes.size))
    options.Training.gradientAccumulation(plan.accumulation)
    options.Training.accumulationAndReplicationReductionType(poptorch.ReductionType.Mean)
    options.Precision.enableStochasticRounding(pipeline.stochastic_rounding)
    if pipeline.replicated_tensor_sharding and plan.replicas > 1:
        sharded = poptorch.TensorLocationSettings().useOnChipStorage(True).useReplicatedTensorSharding(True)
        options.TensorLocations.setOptimizerLocation(sharded)
    if settings.optimizer.automatic_loss_scaling:
        options.Training.setAutomaticLossScaling(True)
    # Gradients need not be readable from the host, which saves their streams' memory.
    options._Popart.set("disableGradAccumulationTensorStreams", True)
    if settings.optimizer.max_grad_norm is None:
        # Clipping needs all gradients at once, and PopTorch then chooses the schedule itself.
        options._Popart.set("accumulateOuterFragmentSettings.schedule", _OVERLAP_MEMORY_OPTIMIZED)
    return options


def evaluation_options(settings: Settings, device: Device, processes: Processes = ALONE) -> Any:
    """Options of the evaluation executor: one replica, or PopRun's, and as many iterations as fill the pipeline."""
    options = _common_options(settings, device, processes)
    options.deviceIterations(len(settings.pipeline.layers_per_ipu))
    return options


def _common_options(settings: Settings, device: Device, processes: Processes) -> Any:
    pipeline = settings.pipeline
    options = _options_of_process(pipeline.ipus, processes)
    options.randomSeed(settings.seed)
    options.setExecutionStrategy(poptorch.PipelinedExecution(poptorch.AutoStage.SameAsIpu))
    options.outputMode(poptorch.OutputMode.All)
    ipus = len(pipeline.layers_per_ipu)
    proportions = pipeline.available_memory_proportion
    if len(proportions) == 1:
        proportions = proportions * ipus
    options.setAvailableMemoryProportion({f"IPU{ipu}": share for ipu, share in enumerate(proportions)})
    options.Precision.setPartialsType(torch.float16 if pipeline.partials == "float16" else torch.float32)
    options._Popart.set("defaultBufferingDepth", pipeline.prefetch_depth)
    if settings.data.source == "synthetic":
        options.enableSyntheticData(True)
    if device.kind == "ipu_model":
        options.useIpuModel(True)
    elif pipeline.executable_cache is not None:
        make_folder(Path(pipeline.executable_cache), "pipeline.executable_cache")
        options.enableExecutableCaching(pipeline.executable_cache)
    return options


def _options_of_process(ipus: int, processes: Processes) -> Any:
    """Options that know which process they are of; PopRun's are told everything about it but the IPUs of a replica."""
    if processes.replicas is not None:
        import popdist.poptorch

        return popdist.poptorch.Options(ipus_per_replica=ipus)
    options = poptorch.Options()
    options.Distributed.configureProcessId(processes.rank, processes.size)
    return options
