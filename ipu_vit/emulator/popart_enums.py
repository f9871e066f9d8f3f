"""PopART's enumerations, as its Python package has them: members are no integers, but can be made one.

In C++ some members are called None, which Python cannot say; there they have a second name.
"""

from __future__ import annotations

import enum
from typing import Any


class _PopartEnum(enum.Enum):
    def __int__(self) -> int:
        return int(self.value)

    __index__ = __int__


def _enumeration(name: str, names: str, **second_names: int) -> Any:
    """An enumeration that counts from 0."""
    members = {member: number for number, member in enumerate(names.split())}
    return _PopartEnum(name, {**members, **second_names}, module=__name__)  # type: ignore[call-arg]


RecomputationType = _enumeration("RecomputationType", "None Standard NormOnly Pipeline RecomputeAll", NoRecompute=0)
MergeVarUpdateType = _enumeration("MergeVarUpdateType", "None All AutoLoose AutoTight", Off=0)
VirtualGraphMode = _enumeration("VirtualGraphMode", "Off Manual Auto ExecutionPhases")
SyntheticDataMode = _enumeration("SyntheticDataMode", "Off Zeros RandomNormal RandomUniform")
SubgraphCopyingStrategy = _enumeration("SubgraphCopyingStrategy", "OnEnterAndExit JustInTime")
AccumulateOuterFragmentSchedule = _enumeration(
    "AccumulateOuterFragmentSchedule", "Scheduler Serial OverlapCycleOptimized OverlapMemoryOptimized"
)
ReductionType = _enumeration("ReductionType", "Sum Mean NoReduction")
MeanReductionStrategy = _enumeration("MeanReductionStrategy", "Running Post")
AutodiffStitchStrategy = _enumeration(
    "AutodiffStitchStrategy", "RecomputeMinimal RecomputeAllNonInputs AddFwdOutputs SafeAddFwdOutputs"
)
GradientTensorTrackingMethod = _enumeration(
    "GradientTensorTrackingMethod",
    "AllNonViewChangingGradientTensors ConvAndMatmulGradients GradientsOfUserSpecifiedTensors",
)
BatchSerializationMethod = _enumeration("BatchSerializationMethod", "UnrollDynamic UnrollStatic Loop")
BatchSerializationBatchSchedule = _enumeration(
    "BatchSerializationBatchSchedule", "Scheduler Isomorphic OverlapOnIo OverlapOnCompute"
)
BatchSerializationTransformContext = _enumeration("BatchSerializationTransformContext", "Fwd Bwd")
Instrumentation = _enumeration("Instrumentation", "Outer Inner")
SyncPattern = _enumeration("SyncPattern", "Full SinglePipeline ReplicaAndLadder")
CommGroupType = _enumeration("CommGroupType", "All Consecutive Orthogonal None", Ungrouped=3)
DeviceConnectionType = _enumeration("DeviceConnectionType", "Always OnDemand Never")
