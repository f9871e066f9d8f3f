"""Options: what setters take, keep and return, and what compiling makes of it (section 9; options of 1, 3 and 6)."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any, Callable, Dict, Tuple

import poptorch
import pytest
import torch
from emulator_models import Layers, options
from torch import nn

TABLE = json.loads((Path(__file__).parents[1] / "poptorch_api.json").read_text())
API: Dict[str, Any] = TABLE["api"]
SESSION: Dict[str, Any] = TABLE["popart_session_options"]

LOCATION = poptorch.TensorLocationSettings().useOnChipStorage(True)
# Arguments for each setter, by its path below `poptorch.Options`.
ARGUMENTS: Dict[str, Tuple[Any, ...]] = {
    "anchorTensor": ("short", "long"),
    "appendToLocationExcludes": ("a", "b"),
    "autoRoundNumIPUs": (True,),
    "broadcastBuffers": (False,),
    "connectionType": (poptorch.ConnectionType.OnDemand,),
    "deviceIterations": (4,),
    "disableModuleNamescope": (),
    "enableExecutableCaching": ("folder",),
    "enableProfiling": ("folder",),
    "enableStableNorm": (True,),
    "enableSyntheticData": (True,),
    "from_json": ('{"deviceIterations": 3}',),
    "inputReplicaGrouping": (2, poptorch.CommGroupType.Orthogonal),
    "logCycleCount": (False,),
    "logDir": ("folder",),
    "maxRepeatLogs": (None,),
    "modelName": ("name",),
    "outputMode": (poptorch.OutputMode.All,),
    "randomSeed": (3,),
    "relaxOptimizerAttributesChecks": (),
    "replicationFactor": (2,),
    "setAvailableMemoryProportion": ({"IPU0": 0.2},),
    "setExecutionStrategy": (poptorch.ShardedExecution(),),
    "showCompilationProgressBar": (False,),
    "sourceLocationExcludes": (["a"],),
    "syncPattern": (poptorch.SyncPattern.SinglePipeline,),
    "updatableNamedBuffers": (["a"],),
    "useIpuId": (1,),
    "useIpuModel": (True,),
    "useOfflineIpuTarget": (21,),
    "Distributed.configureProcessId": (1, 2),
    "Distributed.disable": (),
    "Distributed.setEnvVarNames": ("A_VARIABLE", "ANOTHER"),
    "Precision.enableFloatingPointExceptions": (True,),
    "Precision.enableStochasticRounding": (True,),
    "Precision.setPartialsType": (torch.half,),
    "TensorLocations.numIOTiles": (32,),
    "TensorLocations.setAccumulatorLocation": (LOCATION,),
    "TensorLocations.setActivationLocation": (LOCATION,),
    "TensorLocations.setOptimizerLocation": (LOCATION,),
    "TensorLocations.setWeightLocation": (LOCATION,),
    "Training.accumulationAndReplicationReductionType": (poptorch.ReductionType.Sum,),
    "Training.gradientAccumulation": (4,),
    "Training.setAutomaticLossScaling": (True,),
    "Training.setConvolutionDithering": (True,),
    "Training.setMeanAccumulationAndReplicationReductionStrategy": (poptorch.MeanReductionStrategy.Running,),
    "_Popart.set": ("any", "thing"),
    "_Popart.setEngineOptions": ({"a": "b"},),
    "_Popart.setPatterns": ({"a": True},),
}
DEPRECATED: Dict[str, Tuple[Any, ...]] = {
    "Jit.traceModel": (False,),
    "Precision.halfFloatCasting": (poptorch.HalfFloatCastingBehavior.Default,),
    "Precision.runningStatisticsAlwaysFloat": (True,),
}
NOT_SETTERS = {"defaultOutputMode", "toDict", "clone", "loadFromFile", "_Popart.checkIsFrozen"}


def setter(opts: Any, path: str) -> Callable[..., Any]:
    for name in path.split("."):
        opts = getattr(opts, name)
    return opts  # type: ignore[no-any-return]


def training(model: nn.Module, opts: Any) -> Any:
    return poptorch.trainingModel(model, opts, poptorch.optim.SGD(model.parameters(), lr=0.1))


# Batches, accumulation, numbers ------------------------------------------------------------------


def test_rule_1_8_the_default_mode_depends_on_the_wrapper() -> None:
    opts = poptorch.Options()
    assert opts.defaultOutputMode() and opts.output_mode == 4
    assert training(Layers(), opts).options.output_mode == poptorch.OutputMode.Final
    assert poptorch.inferenceModel(Layers(), opts).options.output_mode == poptorch.OutputMode.All
    assert opts.defaultOutputMode()


def test_rule_1_8_output_modes_are_checked_when_set() -> None:
    opts = poptorch.Options()
    for period in (None, 0, -1):
        with pytest.raises(AssertionError, match="at least 1"):
            opts.outputMode(poptorch.OutputMode.EveryN, period)
    for mode in (2, "All", None):
        with pytest.raises(AssertionError, match=r"poptorch\.OutputMode"):
            opts.outputMode(mode)
    opts.outputMode(poptorch.OutputMode.EveryN, 5)
    assert (opts.output_mode, opts.output_return_period) == (1, 5)


def test_rule_3_1_gradients_are_reduced() -> None:
    for reduction in (poptorch.ReductionType.NoReduction, 1):
        with pytest.raises(ValueError, match=r"ReductionType\.Sum"):
            poptorch.Options().Training.accumulationAndReplicationReductionType(reduction)


@pytest.mark.parametrize("path", DEPRECATED)
def test_rule_6_2_deprecated_options_warn(path: str, log: pytest.LogCaptureFixture) -> None:
    opts = poptorch.Options()
    group = getattr(opts, path.split(".")[0])
    assert setter(opts, path)(*DEPRECATED[path]) is group
    assert "deprecated" in log.text
    with pytest.raises(ValueError, match="traceModel"):
        opts.Jit.traceModel(True)


def test_rule_6_4_the_last_caller_sets_the_convolutions() -> None:
    opts = poptorch.Options()
    opts.Training.setConvolutionDithering(True)
    opts.Precision.setPartialsType(torch.float16)
    assert opts._Popart.options["convolutionOptions"] == {"partialsType": "half"}
    assert opts._Popart.options["partialsTypeMatMuls"] == "half"
    opts.Training.setConvolutionDithering(True)
    assert "partialsType" not in opts._Popart.options["convolutionOptions"]
    assert opts._Popart.options["partialsTypeMatMuls"] == "half"
    opts.Precision.setPartialsType(torch.float32)
    assert opts._Popart.options["partialsTypeMatMuls"] == "float"
    for dtype in (torch.bfloat16, torch.float64, "half"):
        with pytest.raises(ValueError, match="setPartialsType"):
            opts.Precision.setPartialsType(dtype)


def test_rule_6_6_seeding_the_device_seeds_the_host() -> None:
    poptorch.Options().randomSeed(42)
    found = torch.rand(3)
    torch.manual_seed(42)
    assert torch.equal(found, torch.rand(3))
    with pytest.raises(AssertionError, match="integer"):
        poptorch.Options().randomSeed(4.2)


def test_rule_9_7_wrapping_copies_and_freezes_options() -> None:
    opts = options()
    executor = training(Layers(), opts)
    assert executor.options is not opts
    for frozen in (opts, executor.options):
        with pytest.raises(AttributeError, match="frozen"):
            frozen.deviceIterations(3)
        with pytest.raises(AttributeError, match="frozen"):
            frozen.Training.gradientAccumulation(3)
    training(Layers(), opts.clone().deviceIterations(3))  # copies can be changed, and used again


@pytest.mark.parametrize("given", [{"deviceIterations": 2}, 4, poptorch.Options])
def test_options_of_another_kind_are_refused(given: Any) -> None:
    with pytest.raises(poptorch.Error, match="poptorch.Options"):
        poptorch.inferenceModel(Layers(), given)


def test_only_modules_are_wrapped() -> None:
    with pytest.raises(poptorch.Error, match="Module"):
        poptorch.inferenceModel(torch.relu)


@pytest.mark.parametrize("path", sorted(ARGUMENTS))
def test_rule_9_7_frozen_options_do_not_change(path: str) -> None:
    opts = training(Layers(), options()).options
    with pytest.raises(AttributeError, match="frozen"):
        setter(opts, path)(*ARGUMENTS[path])
    setter(opts.clone(), path)(*ARGUMENTS[path])
    setter(copy.deepcopy(opts), path)(*ARGUMENTS[path])


def test_rule_9_7_frozen_values_do_not_change() -> None:
    opts = training(Layers(), options()).options
    for group in (opts, opts.Training, opts.Distributed, opts.Precision, opts._Popart):
        with pytest.raises(AttributeError, match="frozen"):
            group.checkIsFrozen()
    with pytest.raises(AttributeError, match="frozen"):
        opts.device_iterations = 2
    with pytest.raises(AttributeError, match="frozen"):
        opts.Training.set(gradient_accumulation=2)


# Setters -----------------------------------------------------------------------------------------


def test_rule_9_8_setters_know_types_and_names() -> None:
    opts = poptorch.Options()
    with pytest.raises(AssertionError, match="device_iterations takes a value of type int, not '4'"):
        opts.deviceIterations("4")
    with pytest.raises(AssertionError, match="gradient_accumulation"):
        opts.Training.gradientAccumulation(2.0)
    with pytest.raises(AssertionError, match="MeanReductionStrategy"):
        opts.Training.setMeanAccumulationAndReplicationReductionStrategy(0)
    poptorch.Options().deviceIterations(True)
    with pytest.raises(AttributeError, match="noSuchOption"):
        opts.noSuchOption(1)
    with pytest.raises(AssertionError, match="no_such_option"):
        opts.set(no_such_option=1)
    with pytest.raises(AssertionError, match="no option deviceIterations"):
        opts.deviceIterations = 4
    opts.device_iterations = 4
    assert opts.device_iterations == opts("device_iterations") == 4


@pytest.mark.parametrize(
    "wrong",
    [
        lambda opts: opts.syncPattern(0),
        lambda opts: opts.setExecutionStrategy(poptorch.AutoStage.SameAsIpu),
        lambda opts: opts.TensorLocations.setWeightLocation({"onChip": 1}),
        lambda opts: opts.logDir(Path("folder")),
        lambda opts: poptorch.TensorLocationSettings().useOnChipStorage(1),
        lambda opts: poptorch.TensorLocationSettings().minElementsForOffChip(1.0),
    ],
)
def test_rule_9_8_wrong_kinds_are_assertions(wrong: Callable[[Any], Any]) -> None:
    with pytest.raises(AssertionError):
        wrong(poptorch.Options())


def test_rule_9_9_every_setter_is_tested() -> None:
    methods = {
        path[len("poptorch.Options.") :]
        for path, entry in API.items()
        if path.startswith("poptorch.Options.") and entry["kind"] == "method" and "__" not in path
    }
    assert methods == set(ARGUMENTS) | set(DEPRECATED) | NOT_SETTERS


@pytest.mark.parametrize("path", sorted(ARGUMENTS))
def test_rule_9_9_setters_return_their_group(path: str) -> None:
    opts = poptorch.Options()
    group = setter(opts, path.rpartition(".")[0]) if "." in path else opts
    assert setter(opts, path)(*ARGUMENTS[path]) is (None if path == "anchorTensor" else group)


def test_rule_9_9_anchors_are_kept() -> None:
    opts = poptorch.Options()
    opts.anchorTensor("a", "tensor:0")
    opts.anchorTensor("b", "tensor:1", poptorch.OutputMode.EveryN, 3)
    opts.anchorTensor("c", "tensor:2", poptorch.OutputMode.Sum, 3)
    opts.outputMode(poptorch.OutputMode.EveryN, 2)
    assert opts.anchors() == {
        "a": ("tensor:0", poptorch.OutputMode.EveryN, 2),
        "b": ("tensor:1", poptorch.OutputMode.EveryN, 3),
        "c": ("tensor:2", poptorch.OutputMode.Sum, 1),
    }


@pytest.mark.parametrize("tiles", [0, 30, 33, 194, "32"])
def test_rule_9_11_io_tiles(tiles: Any) -> None:
    with pytest.raises(AssertionError, match="even number from 32 to 192"):
        poptorch.Options().TensorLocations.numIOTiles(tiles)
    for fine in (32, 192):
        assert poptorch.Options().TensorLocations.numIOTiles(fine).numIOTiles(fine).exists("numIOTiles")


# Copies ------------------------------------------------------------------------------------------


def test_what_the_compiler_is_told() -> None:
    opts = poptorch.Options()
    with pytest.raises(AssertionError, match=r"OutputMode\.Default"):
        opts.toDict()
    opts.outputMode(poptorch.OutputMode.All).deviceIterations(3)
    opts.Training.gradientAccumulation(5)
    opts.TensorLocations.setOptimizerLocation(poptorch.TensorLocationSettings().useReplicatedTensorSharding(True))
    opts._Popart.set("autoRecomputation", 3)
    found = opts.toDict()
    assert (found["device_iterations"], found["gradient_accumulation"], found["autoRecomputation"]) == (3, 5, 3)
    assert found["location_optimizer"] == {"useReplicatedTensorSharding": 1}
    assert (found["execution_mode"], found["num_distributed_processes"]) == (0, 1)


def test_options_can_be_pickled_and_shown() -> None:
    opts = poptorch.Options().deviceIterations(3)
    opts.Training.gradientAccumulation(5)
    opts.setExecutionStrategy(poptorch.SerialPhasedExecution(["a"], ["b"]))
    twin = pickle.loads(pickle.dumps(opts))
    assert repr(twin) == repr(opts)
    assert "device_iterations=3" in repr(opts) and "gradient_accumulation=5" in repr(opts)
    twin.Precision.enableStochasticRounding(True)
    assert twin._Popart.options["enableStochasticRounding"] is True
    assert "enableStochasticRounding" not in opts._Popart.options


def test_storage_may_stay_undecided() -> None:
    location = poptorch.TensorLocationSettings().useOnChipStorage(False).minElementsForOffChip(3)
    assert location.toDict() == {"onChip": 0, "minElementsForOffChip": 3}
    assert location.useOnChipStorage(None).toDict() == {"minElementsForOffChip": 3}


def test_profiling_asks_for_a_report(log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    opts = poptorch.Options().enableProfiling("folder")
    assert opts._Popart.options["engineOptions"] == {
        "debug.allowOutOfMemory": "true",
        "autoReport.directory": "folder",
        "autoReport.all": "true",
    }
    assert not log.text
    monkeypatch.setenv("POPLAR_ENGINE_OPTIONS", '{"autoReport.directory": "another"}')
    opts.enableProfiling()
    assert "POPLAR_ENGINE_OPTIONS" in log.text
