"""What compiling refuses in options, PopART's session options among them, and what it takes (section 9)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable, Dict, List

import popart
import poptorch
import pytest
import torch.nn.functional as F
from emulator_models import Layers, data, options
from torch import Tensor, nn

from ipu_vit.emulator import session_options

TABLE = json.loads((Path(__file__).parents[1] / "poptorch_api.json").read_text())
SESSION: Dict[str, Any] = TABLE["popart_session_options"]

# One value of each kind, fit for options of that kind.
VALUES = {"bool": True, "int": 1, "str": "text", "float": 1.5, "container": ["text"]}
# Options that PopTorch always passes on itself; `_Popart.set` of those is another error.
OWN = {**options()._values, **options().Training._values, **options().Distributed._values}


def training(model: nn.Module, opts: Any) -> Any:
    return poptorch.trainingModel(model, opts, poptorch.optim.SGD(model.parameters(), lr=0.1))


def refused(opts: Any, match: str, kind: type = poptorch.Error) -> None:
    """Compiling with these options fails, and not before."""
    executor = training(Layers(), opts)
    with pytest.raises(kind, match=match):
        executor.compile(*data(max(1, opts.Training.gradient_accumulation)))


def popart_options(name: str, value: Any) -> Any:
    opts = options()
    assert opts._Popart.set(name, value) is opts._Popart
    return opts


def test_rule_3_5_a_strategy_that_popart_has_no_more() -> None:
    opts = options()
    opts.Training.setMeanAccumulationAndReplicationReductionStrategy(poptorch.MeanReductionStrategy.PostAndLoss)
    refused(opts, "meanAccumulationAndReplicationReductionStrategy is out of range")


def test_rule_6_5_what_kinds_of_truth_are_taken() -> None:
    opts = options()
    with pytest.raises(AssertionError, match="takes a bool"):
        opts.Precision.enableFloatingPointExceptions(1)
    opts.Precision.enableStochasticRounding(1)  # taken, and refused later as an integer
    refused(opts, "enableStochasticRounding takes a bool")


def test_rule_9_2_executables_can_be_cached(log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    opts = options()
    assert opts.enableExecutableCaching("folder") is opts
    assert (opts._Popart.options["enableEngineCaching"], opts._Popart.options["cachePath"]) == (True, "folder")
    training(Layers(), opts).compile(*data(1))
    assert "enableExecutableCaching" not in log.text
    opts = opts.clone().useIpuModel(True)
    training(Layers(), opts).compile(*data(1))
    assert "enableExecutableCaching has no effect on the IPU Model" in log.text
    opts = opts.clone().enableExecutableCaching(None)
    assert opts._Popart.options["enableEngineCaching"] is False
    monkeypatch.setenv("POPTORCH_CACHE_DIR", "another")
    assert poptorch.Options()._Popart.options["cachePath"] == "another"
    assert poptorch.Options().enableExecutableCaching(None)._Popart.options["enableEngineCaching"] is False


def test_rule_9_4_offline_targets_compile_and_do_not_run() -> None:
    for version in (1, 2, 21):
        opts = options()
        assert opts.useOfflineIpuTarget(version) is opts
        assert opts.connection_type == poptorch.ConnectionType.Never.value
        executor = training(Layers(), opts)
        executor.compile(*data(1))
        with pytest.raises(AssertionError, match="offline"):
            executor(*data(1))
    assert poptorch.Options().useOfflineIpuTarget().ipu_version == 2


def test_rule_9_4_offline_targets_are_no_device() -> None:
    refused(options().useOfflineIpuTarget(3), r"\(1, 2, 21\), not 3")
    refused(options().useOfflineIpuTarget().useIpuModel(True), "IPU Model cannot be an offline target")
    refused(options().useOfflineIpuTarget().useIpuId(0), "leave out useIpuId")


def test_rule_9_5_connection_types() -> None:
    with pytest.raises(AssertionError, match=r"poptorch\.ConnectionType"):
        poptorch.Options().connectionType(1)
    with pytest.raises(AssertionError, match="integer"):
        poptorch.Options().useIpuId("0")
    opts = options().connectionType(poptorch.ConnectionType.OnDemand).useIpuId(0)
    executor = training(Layers(), opts)
    executor.compile(*data(1))
    executor(*data(1))
    refused(options().useIpuId(-1), "ipu_id takes an integer, not negative")


def test_rule_9_6_running_on_ipu_is_inside_a_trace() -> None:
    class Asks(Layers):
        answers: List[bool] = []

        def forward(self, x: Tensor, y: Tensor) -> Any:
            self.answers.append(poptorch.isRunningOnIpu())
            return super().forward(x, y)

    model = Asks()
    model(*data(1))
    executor = training(model, options())
    executor(*data(1))
    executor(*data(1))
    assert model.answers == [False, True] and not poptorch.isRunningOnIpu()


@pytest.mark.parametrize("kind", VALUES)
def test_rule_9_7_kinds_are_checked(kind: str) -> None:
    for name in set(SESSION[kind]) - set(OWN):
        for given, value in VALUES.items():
            if given == kind:
                session_options.check(popart_options(name, value))
            else:
                with pytest.raises(poptorch.Error, match=f"Session option {name} takes .* was set to"):
                    session_options.check(popart_options(name, value))


@pytest.mark.parametrize("name", sorted(set(SESSION["int_upper_bound_exclusive"]) - set(OWN)))
def test_rule_9_7_ranges_are_checked(name: str) -> None:
    bound = SESSION["int_upper_bound_exclusive"][name]
    for value in (0, bound - 1):
        session_options.check(popart_options(name, value))
    with pytest.raises(poptorch.Error, match=f"{name} is out of range: it takes 0 to {bound - 1}, not {bound}"):
        session_options.check(popart_options(name, bound))
    with pytest.raises(poptorch.Error, match="not negative"):
        session_options.check(popart_options(name, -1))


def test_rule_9_7_names_are_checked_when_compiled() -> None:
    refused(popart_options("prefetchDepth", 3), "no session option prefetchDepth, which was set to 3")
    refused(popart_options("autoRecomputations", 3), "did you mean autoRecomputation?")
    refused(popart_options("outlineThreshold", 10), r"outlineThreshold takes a float, such as 10\.0.*10 \(int\)")
    refused(popart_options("cachePath", None), "cachePath takes a string")
    refused(popart_options("device_iterations", 3), "device_iterations is set in two ways", AssertionError)
    training(Layers(), popart_options("outlineThreshold", 10.0)).compile(*data(1))


def test_rule_9_7_enumerations_are_passed_as_integers() -> None:
    pipeline = popart.RecomputationType.Pipeline
    refused(popart_options("autoRecomputation", pipeline), "autoRecomputation takes an integer.*int\\(member\\)")
    training(Layers(), popart_options("autoRecomputation", int(pipeline))).compile(*data(1))


def test_rule_9_7_patterns_and_engine_options() -> None:
    opts = options()
    opts._Popart.setPatterns({"OpToReshape": False}, level=0).setEngineOptions({"target.workerStackSizeInBytes": "1"})
    training(Layers(), opts).compile(*data(1))
    with pytest.raises(AssertionError):
        opts._Popart.setPatterns(["OpToReshape"])
    refused(popart_options("patterns", {"OpToReshape": False}), "need a patterns_level")


@pytest.mark.parametrize("name", ["deviceIterations", "replicationFactor", "Training.gradientAccumulation"])
@pytest.mark.parametrize("value", [0, -1])
def test_rule_9_8_ranges_show_when_compiled(name: str, value: int) -> None:
    opts = options()
    group, _, setter = name.rpartition(".")
    getattr(getattr(opts, group) if group else opts, setter)(value)
    refused(opts, "at least 1" if value == 0 else "not negative")


def test_rule_9_10_memory_proportions() -> None:
    opts = options().setAvailableMemoryProportion({"IPU0": 0.2, "IPU3": 0.5})
    assert opts.available_memory_proportion == {0: 0.2, 3: 0.5}
    training(Layers(), opts).compile(*data(1))
    for wrong, kind in (({"0": 0.2}, AssertionError), ({"IPUs": 0.2}, ValueError)):
        with pytest.raises(kind):
            opts.setAvailableMemoryProportion(wrong)
    refused(options().setAvailableMemoryProportion({"IPU0": "0.2"}), "takes a number such as 0.2 for an IPU, not '0.2'")


class Overlapped(Layers):
    def forward(self, x: Tensor, y: Tensor) -> Any:
        x = poptorch.set_overlap_for_input(x, poptorch.OverlapMode.OverlapAccumulationLoop)
        return poptorch.identity_loss(F.cross_entropy(self.logits(x), y), "none")


@pytest.mark.parametrize(
    "change, complaint",
    [
        (lambda opts: opts.setExecutionStrategy(poptorch.PipelinedExecution()), "do not go with PipelinedExecution"),
        (lambda opts: opts.TensorLocations.deleteIfExists("numIOTiles"), "needs IO tiles"),
        (lambda opts: opts.outputMode(poptorch.OutputMode.Final), "All or Sum, not Final"),
        (lambda opts: opts.outputMode(poptorch.OutputMode.Sum), None),
    ],
)
def test_rule_9_11_overlapped_io(change: Callable[[Any], Any], complaint: Any) -> None:
    opts = options()
    opts.setExecutionStrategy(poptorch.ShardedExecution())
    opts.TensorLocations.numIOTiles(32)
    change(opts)
    executor = training(Overlapped(), opts)
    if complaint is None:
        executor.compile(*data(1))
    else:
        with pytest.raises(poptorch.Error, match=complaint):
            executor.compile(*data(1))


def test_rule_9_12_synthetic_data_and_cycles(log: pytest.LogCaptureFixture) -> None:
    opts = options().enableSyntheticData(True)
    assert opts._Popart.options["syntheticDataMode"] == int(popart.SyntheticDataMode.RandomNormal)
    assert opts.enableSyntheticData(False)._Popart.options["syntheticDataMode"] == 0
    training(Layers(), options().logCycleCount(True)).compile(*data(1))
    assert "logCycleCount has no effect" in log.text
    refused(options().logCycleCount(True).useIpuModel(True), "logCycleCount needs IPU hardware")


def test_rule_9_13_errors() -> None:
    assert issubclass(poptorch.Error, RuntimeError)
    assert issubclass(poptorch.RecoverableError, poptorch.Error)
    assert issubclass(poptorch.UnrecoverableError, poptorch.Error)
    executor = training(Layers(), popart_options("nonsense", 1))
    with pytest.raises(poptorch.Error) as caught:
        executor.compile(*data(1))
    assert caught.value.message == str(caught.value)
    assert isinstance(caught.value.type, str) and isinstance(caught.value.location, str)
    assert poptorch.RecoverableError("reset", "PARTITION_RESET").recovery_action == "PARTITION_RESET"
    for name in ("Error", "RecoverableError", "UnrecoverableError"):
        assert getattr(poptorch.poptorch_core, name) is getattr(poptorch, name)
