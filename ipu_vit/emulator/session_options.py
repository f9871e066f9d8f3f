"""PopART's session options: the names that a program may set, and what each takes (rule 9.7).

`Options._Popart.set` takes any name and value. Compiling passes everything on, PopTorch's own options
too, and only then does it show whether PopART knows the name and likes the value.
"""

from __future__ import annotations

import difflib
import numbers
from typing import Any, Dict, FrozenSet

from ipu_vit.emulator.errors import Error
from ipu_vit.emulator.options import Options


def _names(words: str) -> FrozenSet[str]:
    return frozenset(words.split())


BOOLS = _names("""
    aliasZeroCopy auto_round_num_ipus automaticLossScalingSettings.enabled
    batchSerializationSettings.concatOnExecutionPhaseChange batchSerializationSettings.concatOnPipelineStageChange
    batchSerializationSettings.concatOnVirtualGraphChange broadcast_buffers compileEngine constantWeights
    decomposeGradSum delayVarUpdates disableGradAccumulationTensorStreams disableOptimizerStateTensorStreams dotOpNames
    enableDistributedReplicatedGraphs enableEngineCaching enableExplicitIR enableExplicitMainLoops
    enableFloatingPointChecks enableFullyConnectedPass enableGradientAccumulation enableInplaceAmbiguityChecking
    enableLoadAndOffloadRNGState enableMergeExchange enableNonStableSoftmax enableOutlining
    enableOutliningCopyCostPruning enablePipelining enablePrefetchDatastreams enableReplicatedGraphs
    enableSerializedMatmuls enableStableNorm enableStochasticRounding enableSupportedDataTypeCasting
    ensureFp32LossScaleTensor explicitRecomputation exportPoplarComputationGraph exportPoplarVertexGraph groupHostSync
    groupNormStridedChannelGrouping instrumentWithHardwareCycleCounter opxAliasChecking opxModifyChecking
    rearrangeAnchorsOnHost rearrangeStreamsOnHost replicatedCollectivesSettings.mergeAllReduceCollectives
    replicatedCollectivesSettings.prepareScheduleForMergingCollectives scheduleNonWeightUpdateGradientConsumersEarly
    separateCallOpPdfs separate_backward_phase serial_phases_execution strictOpVersions useHostCopyOps use_model
""")

INTS = _names("""
    accumulateOuterFragmentSettings.schedule accumulationAndReplicationReductionType accumulationFactor
    accumulation_and_replication_reduction_type autoRecomputation autodiffSettings.stitchStrategy
    automaticLossScalingSettings.gradientTensorTrackingMethod automaticLossScalingSettings.updatePeriod
    batchSerializationSettings.batchSchedule batchSerializationSettings.factor batchSerializationSettings.method
    batchSerializationSettings.transformContext compilationProgressTotal connection_type defaultBufferingDepth
    defaultPrefetchBufferingDepth device_iterations distributed_process_id executionPhaseSettings.phases
    executionPhaseSettings.stages execution_mode finalDotOp firstDotOp globalReplicaOffset globalReplicationFactor
    gradient_accumulation input_cgt input_group_size ipu_id ipu_version looseThresholdAtPeak max_repeat_logs
    meanAccumulationAndReplicationReductionStrategy mergeVarUpdate mergeVarUpdateMemThreshold numIOTiles
    num_distributed_processes output_mode output_return_period random_seed replication_factor subgraphCopyingStrategy
    swapLimitScheduler sync_pattern syntheticDataMode tensors_liveness transitiveClosureOptimizationThreshold
    virtualGraphMode
""")

STRINGS = _names("""
    cachePath customCodeletCompileFlags kahnTieBreaker logDir log_dir model_name partialsTypeMatMuls
    saveInitializersToFile serializedPoprithmsShiftGraphsDir
""")

FLOATS = _names("""
    automaticLossScalingSettings.binEdgeLocation automaticLossScalingSettings.thresholdUpperCountProportion
    outlineSequenceBreakCost outlineThreshold timeLimitScheduler
""")

CONTAINERS = _names("""
    accumulateOuterFragmentSettings.excludedVirtualGraphs convolutionOptions customCodelets dotChecks engineOptions
    gclOptions hardwareInstrumentations lstmOptions matmulOptions reportOptions updatableNamedBuffers
""")

#: How many values the options have that are enumerations of PopART's.
ENUMERATIONS: Dict[str, int] = {
    "accumulateOuterFragmentSettings.schedule": 4,
    "accumulationAndReplicationReductionType": 3,
    "accumulation_and_replication_reduction_type": 3,
    "autoRecomputation": 5,
    "autodiffSettings.stitchStrategy": 4,
    "automaticLossScalingSettings.gradientTensorTrackingMethod": 3,
    "batchSerializationSettings.batchSchedule": 4,
    "batchSerializationSettings.method": 3,
    "batchSerializationSettings.transformContext": 2,
    "connection_type": 3,
    "execution_mode": 3,
    "meanAccumulationAndReplicationReductionStrategy": 2,
    "mergeVarUpdate": 4,
    "output_mode": 4,
    "subgraphCopyingStrategy": 2,
    "sync_pattern": 3,
    "syntheticDataMode": 4,
    "tensors_liveness": 4,
    "virtualGraphMode": 4,
}

_KINDS = (
    (BOOLS, "a bool", "True or False"),
    (INTS, "an integer, not negative", "3; an enumeration's member as int(member)"),
    (STRINGS, "a string", "'text'"),
    (FLOATS, "a float", "10.0"),
    (CONTAINERS, "a list or set of strings or integers, or a dictionary", "{'name': 'value'}"),
)
_ALL = frozenset().union(*(names for names, _, _ in _KINDS))
# Kept in Python, or passed on in ways of their own.
_NOT_PASSED_ON = _names("anchored_tensors ipuof_configs patterns_level")


def check(options: Options) -> None:
    """Raise Error for the first option that PopART would not take."""
    for name, value in options.toDict().items():
        if name == "patterns":
            _check_patterns(value, options)
        elif name == "available_memory_proportion":
            _check_memory(value)
        elif name not in _NOT_PASSED_ON and not name.startswith("location_"):
            _check(name, value)


def auto_recomputation(options: Options, ipus: int) -> int:
    """`popart.RecomputationType`, by number: what stages keep for the backward pass (rule 5.16)."""
    standard = 3 if options._strategy.pipelined and ipus > 1 else 0
    return int(options._Popart.options.get("autoRecomputation", standard))


def _check(name: str, value: Any) -> None:
    if name not in _ALL:
        similar = difflib.get_close_matches(name, _ALL, n=1)
        hint = f": did you mean {similar[0]}?" if similar else ""
        raise Error(f"PopART has no session option {name}, which was set to {value!r}{hint}")
    if not _fits(name, value):
        takes, example = next((takes, example) for names, takes, example in _KINDS if name in names)
        raise Error(
            f"Session option {name} takes {takes}, such as {example}; it was set to {value!r} ({type(value).__name__})"
        )
    if name in ENUMERATIONS and value >= ENUMERATIONS[name]:
        raise Error(f"Session option {name} is out of range: it takes 0 to {ENUMERATIONS[name] - 1}, not {value!r}")


def _fits(name: str, value: Any) -> bool:
    if isinstance(value, bool):
        return name in BOOLS
    if isinstance(value, int):
        return name in INTS and value >= 0
    if isinstance(value, float):
        return name in FLOATS
    if isinstance(value, str):
        return name in STRINGS
    if isinstance(value, (list, tuple, set)):
        return name in CONTAINERS and all(isinstance(item, (str, int)) for item in value)
    return isinstance(value, dict) and name in CONTAINERS and all(isinstance(key, str) for key in value)


def _check_patterns(patterns: Any, options: Options) -> None:
    level = options._Popart.options.get("patterns_level")
    if not isinstance(level, int) or isinstance(level, bool) or level < 0:
        raise Error(f"patterns need a patterns_level, which is {level!r}: use _Popart.setPatterns(patterns, level)")
    if not isinstance(patterns, dict) or not all(isinstance(on, bool) for on in patterns.values()):
        raise Error(f"patterns are given as {{'name': True}}, not as {patterns!r}")


def _check_memory(shares: Dict[int, Any]) -> None:
    for ipu, share in shares.items():
        if ipu < 0 or isinstance(share, bool) or not isinstance(share, numbers.Real):
            raise Error(f"setAvailableMemoryProportion takes a number such as 0.2 for an IPU, not {share!r} for {ipu}")
