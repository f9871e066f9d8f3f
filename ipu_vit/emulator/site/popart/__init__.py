"""Stands in for PopART's Python package, of which PopTorch programs use enumerations.

`options._Popart.set(name, int(popart.RecomputationType.Pipeline))` is how they pass one on: a member
itself is no integer, and refused (rule 9.7).
"""

from __future__ import annotations

from ipu_vit.emulator.popart_enums import (
    AccumulateOuterFragmentSchedule,
    AutodiffStitchStrategy,
    BatchSerializationBatchSchedule,
    BatchSerializationMethod,
    BatchSerializationTransformContext,
    CommGroupType,
    DeviceConnectionType,
    GradientTensorTrackingMethod,
    Instrumentation,
    MeanReductionStrategy,
    MergeVarUpdateType,
    RecomputationType,
    ReductionType,
    SubgraphCopyingStrategy,
    SyncPattern,
    SyntheticDataMode,
    VirtualGraphMode,
)
from ipu_vit.emulator.version import POPTORCH_VERSION as __version__

__all__ = [
    "AccumulateOuterFragmentSchedule",
    "AutodiffStitchStrategy",
    "BatchSerializationBatchSchedule",
    "BatchSerializationMethod",
    "BatchSerializationTransformContext",
    "CommGroupType",
    "DeviceConnectionType",
    "GradientTensorTrackingMethod",
    "Instrumentation",
    "MeanReductionStrategy",
    "MergeVarUpdateType",
    "RecomputationType",
    "ReductionType",
    "SubgraphCopyingStrategy",
    "SyncPattern",
    "SyntheticDataMode",
    "VirtualGraphMode",
]
