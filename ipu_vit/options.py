"""Settings to `poptorch.Options`: one for training, one for evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import poptorch
import torch

from ipu_vit.device import Device
from ipu_vit.run_folder import make_folder
from ipu_vit.settings import Settings

# PopART's number for the schedule that shares memory best between the gradients of a pipeline.
_OVERLAP_MEMORY_OPTIMIZED = 3


def training_options(settings: Settings, device: Device) -> Any:
    """Options of the training executor and its data loader."""
    pipeline = settings.pipeline
    plan = pipeline.batch_plan()
    options = _common_options(settings, device)
    options.deviceIterations(plan.device_iterations)
    options.replicationFactor(plan.replicas)
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


def evaluation_options(settings: Settings, device: Device) -> Any:
    """Options of the evaluation executor: one replica, and as many iterations as fill the pipeline."""
    options = _common_options(settings, device)
    options.deviceIterations(len(settings.pipeline.layers_per_ipu))
    return options


def _common_options(settings: Settings, device: Device) -> Any:
    pipeline = settings.pipeline
    options = poptorch.Options()
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
