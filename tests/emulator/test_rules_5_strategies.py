"""Blocks, stages and strategies: what runs where, what is refused, and that numbers do not depend on it (section 5)."""

from __future__ import annotations

from typing import Any, Callable, List, Optional, Tuple

import poptorch
import pytest
import torch
import torch.nn.functional as F
from emulator_models import Layers, data, largest_difference, options, plain_twin
from torch import Tensor, nn

Placed = List[Tuple[int, int, List[str]]]


def names(*numbers: int) -> List[str]:
    return [f"layer {number}" for number in numbers]


def model_on(*ipus: Optional[int]) -> Layers:
    """Four layers, each a block with this ipu_id."""
    model = Layers()
    for number, (layer, ipu) in enumerate(zip(model.layers, ipus)):
        poptorch.BeginBlock(layer, f"layer {number}", ipu)
    return model


def options_with(strategy: Any, **values: int) -> Any:
    result = options(**values)
    result.setExecutionStrategy(strategy)
    return result


def training(model: nn.Module, opts: Any) -> Any:
    return poptorch.trainingModel(model, opts, poptorch.optim.SGD(model.parameters(), lr=0.1))


def compiled(model: nn.Module, opts: Any) -> Any:
    executor = training(model, opts)
    executor.compile(*data(opts.Training.gradient_accumulation * opts.replication_factor))
    return executor


def placed(model: nn.Module, strategy: Any, accumulation: int = 7) -> Placed:
    """Number, IPU and blocks of each stage."""
    program = compiled(model, options_with(strategy, accumulation=accumulation)).program
    return [(stage.stage, stage.ipu, stage.blocks) for stage in program.stages]


# Blocks ------------------------------------------------------------------------------------------


def test_rule_5_1_a_module_begins_one_block() -> None:
    layer = nn.Linear(2, 2)
    assert poptorch.BeginBlock(layer, "a", 0) is layer
    with pytest.raises(poptorch.Error, match="already been assigned"):
        poptorch.BeginBlock(layer, "b", 1)
    poptorch.removeBlocks(layer)
    poptorch.BeginBlock(layer, "b", 1)


def test_rule_5_2_what_runs_before_the_first_block_is_on_the_first_ipu() -> None:
    model = Layers()
    poptorch.BeginBlock(model.layers[2], "second half", 1)
    assert placed(model, poptorch.PipelinedExecution()) == [(0, 0, []), (1, 1, ["second half"])]


class InContext(Layers):
    """Its logits are computed by `inside`, its loss after that."""

    def __init__(self, inside: Callable[[Layers, Tensor], Tensor]) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return poptorch.identity_loss(F.cross_entropy(self.inside(self, x), y), "none")


def in_block(model: Layers, x: Tensor) -> Tensor:
    with poptorch.Block("a block", ipu_id=0):
        return model.logits(x)


def in_two_blocks(model: Layers, x: Tensor) -> Tensor:
    with poptorch.Block("outer", ipu_id=0):
        with poptorch.Block("inner", ipu_id=0):
            x = model.layers[0](x)
        return x + 1


@pytest.mark.parametrize("inside", [in_block, poptorch.BlockFunction("a block", ipu_id=0)(Layers.logits)])
def test_rule_5_3_no_block_is_active_after_a_block(inside: Callable[[Layers, Tensor], Tensor]) -> None:
    with pytest.raises(poptorch.Error, match="No active Block"):
        compiled(InContext(inside), options())


def test_rule_5_3_another_block_may_begin_after_a_block() -> None:
    def inside(model: Layers, x: Tensor) -> Tensor:
        logits = in_block(model, x)
        poptorch.Block.start("the loss", ipu_id=0)
        return logits

    compiled(InContext(inside), options())


def test_rule_5_4_leaving_an_inner_block_leaves_none() -> None:
    with pytest.raises(poptorch.Error, match="No active Block"):
        compiled(InContext(in_two_blocks), options())


def test_rule_5_5_ipus_are_counted_from_the_first() -> None:
    opts = options_with(poptorch.ShardedExecution())
    assert compiled(model_on(0, 3, 3, 3), opts).program.ipus == 4


# Stages ------------------------------------------------------------------------------------------


def test_rule_5_6_a_stage_is_as_the_ipu() -> None:
    expected: Placed = [(0, 0, names(0, 1)), (1, 1, names(2, 3))]
    assert placed(model_on(0, 0, 1, 1), poptorch.PipelinedExecution()) == expected
    assert poptorch.Options()._strategy.place("a block", 3).stage == 3


def test_rule_5_6_blocks_need_an_ipu() -> None:
    with pytest.raises(AssertionError, match="'layer 2' has no ipu_id"):
        compiled(model_on(0, 0, None, 1), options(accumulation=3))


def test_rule_5_6_increments_count_from_one() -> None:
    strategy = poptorch.PipelinedExecution(poptorch.AutoStage.AutoIncrement)
    expected: Placed = [(1, 0, names(0)), (2, 1, names(1)), (3, 0, names(2)), (4, 1, names(3))]
    assert placed(model_on(0, 1, 0, 1), strategy) == expected


@pytest.mark.parametrize("second", ["layer 2", ["layer 2", "layer 3"], poptorch.Stage("layer 2", "layer 3")])
def test_rule_5_6_explicit_stages(second: Any) -> None:
    listed = [poptorch.Stage("layer 0", "layer 1"), second] + (["layer 3"] if second == "layer 2" else [])
    found = placed(model_on(0, 0, 1, 1), poptorch.PipelinedExecution(*listed))
    assert found[0] == (0, 0, names(0, 1))
    assert found[1:] == ([(1, 1, names(2)), (2, 1, names(3))] if second == "layer 2" else [(1, 1, names(2, 3))])


def test_rule_5_6_blocks_must_be_listed_once() -> None:
    with pytest.raises(AssertionError, match="Unknown block 'layer 3'"):
        compiled(model_on(0, 0, 1, 1), options_with(poptorch.PipelinedExecution(*names(0, 1, 2)), accumulation=7))
    with pytest.raises(AssertionError, match="'a' is in more than one stage"):
        poptorch.PipelinedExecution(poptorch.Stage("a"), poptorch.Stage("b", "a"))
    strategy = poptorch.PipelinedExecution("a", poptorch.Stage("b").ipu(0))
    assert strategy.stage("b").blocks == ("b",)
    with pytest.raises(AssertionError, match="Unknown block 'c'"):
        strategy.stage("c")


def test_rule_5_7_stages_do_not_go_back() -> None:
    with pytest.raises(poptorch.Error, match="must not decrease"):
        compiled(model_on(0, 1, 0, 1), options(accumulation=9))
    compiled(model_on(0, 1, 0, 1), options_with(poptorch.ShardedExecution()))


@pytest.mark.parametrize(
    "ipus, forward", [((0, 0, 0, 0), 1), ((0, 0, 1, 1), 2), ((0, 1, 2, 3), 4), ((1, 1, 1, 1), 2), ((1, 0, 1, 1), 4)]
)
def test_rule_5_8_stages_are_changes_of_the_ipu(ipus: Tuple[int, ...], forward: int) -> None:
    strategy = poptorch.PipelinedExecution(poptorch.AutoStage.AutoIncrement)
    opts = options_with(strategy, accumulation=2 * forward - 1)
    assert compiled(model_on(*ipus), opts).program.forward_stages == forward


@pytest.mark.parametrize("ipus, needed", [(2, 3), (4, 7)])
def test_rule_5_9_accumulation_fills_the_pipeline(ipus: int, needed: int) -> None:
    with pytest.raises(poptorch.Error, match=f"gradientAccumulation .*{needed}"):
        compiled(Layers(ipus), options(accumulation=needed - 1))
    compiled(Layers(ipus), options(accumulation=needed))


def test_rule_5_9_device_iterations_fill_the_inference_pipeline() -> None:
    model = Layers(4)
    with pytest.raises(poptorch.Error, match=r"deviceIterations .*\(4\)"):
        poptorch.inferenceModel(model, options(iterations=3)).compile(*data(3))
    poptorch.inferenceModel(model, options(iterations=4)).compile(*data(4))


def test_rule_5_9_one_ipu_needs_one_micro_batch() -> None:
    compiled(Layers(), options(accumulation=1))


def test_rule_5_10_a_weight_lives_on_one_ipu() -> None:
    model = Layers(4)
    model.layers[2].weight = model.layers[1].weight
    with pytest.raises(poptorch.Error, match=r"layers\.1\.weight is used on IPU 1 and on IPU 2"):
        compiled(model, options(accumulation=7))


class UsesInputTwice(Layers):
    def forward(self, x: Tensor, y: Tensor) -> Any:
        loss = super().forward(x, y)[1]
        return poptorch.identity_loss(loss + x.mean(), "none")


def test_rule_5_10_an_input_goes_to_one_ipu() -> None:
    with pytest.raises(poptorch.Error, match="Input 0 is used on IPU 0 and on IPU 1"):
        compiled(UsesInputTwice(2), options(accumulation=3))
    compiled(UsesInputTwice(1), options(accumulation=3))
    compiled(UsesInputTwice(2), options_with(poptorch.ShardedExecution()))


def test_rule_5_11_ipus_are_a_power_of_two(log: pytest.LogCaptureFixture) -> None:
    opts = options(accumulation=3, replicas=3)
    with pytest.raises(poptorch.Error, match="6 IPUs, .* power of two: use 8"):
        compiled(Layers(2), opts)
    opts = options(accumulation=3, replicas=3)
    opts.autoRoundNumIPUs(True)
    compiled(Layers(2), opts)
    assert "Reserving 8 IPUs" in log.text


@pytest.mark.parametrize("model", [False, True])
def test_rule_5_11_a_process_has_64_ipus(model: bool) -> None:
    for replicas, refused in ((64, False), (128, True)):
        opts = options(replicas=replicas)
        opts.useIpuModel(model)
        if refused:
            with pytest.raises(poptorch.Error, match="takes 128"):
                compiled(Layers(), opts)
        else:
            compiled(Layers(), opts)


def test_rule_5_11_the_ipu_model_has_any_number() -> None:
    opts = options(accumulation=3, replicas=3)
    opts.useIpuModel(True)
    compiled(Layers(2), opts)


# Strategies --------------------------------------------------------------------------------------


def test_rule_5_12_sharding_needs_no_accumulation() -> None:
    assert issubclass(poptorch.ShardedExecution, poptorch.PipelinedExecution)
    assert placed(model_on(0, 0, 1, 1), poptorch.ShardedExecution(), accumulation=1) == [
        (0, 0, names(0, 1)),
        (1, 1, names(2, 3)),
    ]


@pytest.mark.parametrize("strategy", [poptorch.SerialPhasedExecution, poptorch.ParallelPhasedExecution])
def test_rule_5_12_phases_are_explicit(strategy: Any) -> None:
    with pytest.raises(AssertionError, match="list the phases"):
        strategy()
    with pytest.raises(AssertionError, match="Unknown block 'layer 3'"):
        compiled(model_on(0, 0, 0, 0), options_with(strategy(names(0, 1), names(2))))
    with pytest.raises(AssertionError, match="more than one stage"):
        strategy(["a"], ["b", "a"])


def test_rule_5_12_phases() -> None:
    phase = poptorch.Phase(poptorch.Stage("a"), poptorch.Stage("b", "c"))
    assert phase.stage(1).blocks == ("b", "c")
    assert [stage.blocks for stage in poptorch.Phase("a", "b").stages] == [("a", "b")]
    with pytest.raises(AssertionError, match="as many IPUs"):
        phase.ipus(0)
    with pytest.raises(AssertionError, match="Stage objects or names"):
        poptorch.Phase("a", poptorch.Stage("b"))
    strategy = poptorch.SerialPhasedExecution(phase, [poptorch.Stage("d")], "e")
    assert strategy.phase(0) is phase
    assert [strategy.phase(number).stage(0).blocks for number in (1, 2)] == [("d",), ("e",)]
    with pytest.raises(AssertionError):
        strategy.phase(-1)


def two_by_two() -> List[Any]:
    return [poptorch.Phase(*map(poptorch.Stage, names(*pair))) for pair in ((0, 1), (2, 3))]


@pytest.mark.parametrize(
    "strategy, ipus",
    [(poptorch.SerialPhasedExecution, [0, 1, 0, 1]), (poptorch.ParallelPhasedExecution, [0, 2, 1, 3])],
)
def test_rule_5_12_phases_choose_ipus(strategy: Any, ipus: List[int]) -> None:
    nobody = model_on(None, None, None, None)
    assert [ipu for _, ipu, _ in placed(nobody, strategy(*two_by_two()), 1)] == ipus
    chosen = strategy(*two_by_two())
    chosen.phase(1).ipus(5, 4)
    assert [ipu for _, ipu, _ in placed(model_on(7, 6, 7, 6), chosen, 1)] == [7, 6, 5, 4]


def test_rule_5_12_phases_go_forward_and_their_stages_as_they_like() -> None:
    model = model_on(0, 1, 0, 1)
    compiled(
        model,
        options_with(poptorch.SerialPhasedExecution([poptorch.Stage(*names(0, 2)), poptorch.Stage(*names(1, 3))])),
    )
    listed = [names(1), names(0, 2, 3)]
    with pytest.raises(poptorch.Error, match="must not decrease"):
        compiled(model_on(0, 0, 0, 0), options_with(poptorch.SerialPhasedExecution(*listed)))


def test_rule_5_12_what_strategies_tell_the_compiler() -> None:
    serial = poptorch.SerialPhasedExecution(["a"])
    assert serial.useSeparateBackwardPhase().setTensorsLiveness(poptorch.Liveness.OffChipAfterEachPhase) is serial
    assert serial.backendOptions() == {
        "execution_mode": 2,
        "separate_backward_phase": True,
        "tensors_liveness": 3,
        "serial_phases_execution": True,
    }
    parallel = poptorch.ParallelPhasedExecution(["a"]).sendTensorsOffChipAfterFwd()
    assert parallel.backendOptions() == {
        "execution_mode": 2,
        "separate_backward_phase": False,
        "tensors_liveness": 1,
        "serial_phases_execution": False,
    }
    assert poptorch.PipelinedExecution().backendOptions() == {"execution_mode": 0}
    assert poptorch.ShardedExecution().backendOptions() == {"execution_mode": 1}
    with pytest.raises(AssertionError):
        serial.setTensorsLiveness(1)
    with pytest.raises(AssertionError):
        parallel.sendTensorsOffChipAfterFwd(1)
    with pytest.raises(AssertionError):
        parallel.useSeparateBackwardPhase("yes")


@pytest.mark.parametrize(
    "strategy",
    [
        poptorch.PipelinedExecution(),
        poptorch.ShardedExecution(),
        poptorch.SerialPhasedExecution(*two_by_two()),
        poptorch.ParallelPhasedExecution(*two_by_two()).sendTensorsOffChipAfterFwd(),
    ],
    ids=lambda strategy: type(strategy).__name__,
)
def test_rule_5_12_numbers_are_those_of_plain_training(strategy: Any) -> None:
    model = model_on(0, 1, 2, 3)
    twin = plain_twin(model)
    executor = training(model, options_with(strategy, accumulation=7))
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    for step in range(3):
        x, y = data(14, seed=step)
        executor(x, y)
        optimizer.zero_grad()
        F.cross_entropy(twin.logits(x.double()), y).backward()  # type: ignore[operator]
        optimizer.step()
    executor.copyWeightsToHost()
    assert largest_difference(model, twin) < 1e-5


def test_rule_5_13_blocks_do_nothing_on_a_cpu() -> None:
    plain, marked = Layers(), model_on(3, 1, 2, 0)
    x, y = data(4)
    assert torch.equal(plain(x, y)[0], marked(x, y)[0])
    compiled(marked, options_with(poptorch.ShardedExecution()))
    assert torch.equal(plain(x, y)[0], marked(x, y)[0])
    assert torch.equal(in_block(plain, x), plain(x, y)[0])


def test_rule_5_14_a_stage_chooses_its_ipu() -> None:
    strategy = poptorch.PipelinedExecution(poptorch.Stage(*names(0)).ipu(1), *names(1, 2, 3))
    assert [ipu for _, ipu, _ in placed(model_on(0, 0, None, None), strategy, accumulation=9)] == [1, 0, 2, 3]
    with pytest.raises(AssertionError):
        poptorch.Stage("a").ipu("0")
    with pytest.raises(AssertionError):
        poptorch.Stage(0)


def test_rule_5_15_a_hook_before_the_block_is_in_the_block_before() -> None:
    def double(module: nn.Module, inputs: Any) -> Any:
        return inputs[0].mul(2)

    for first, stage_of_mul in ((True, 0), (False, 1)):
        model = Layers()
        if first:
            model.layers[2].register_forward_pre_hook(double)
        poptorch.BeginBlock(model.layers[2], "second half", 1)
        if not first:
            model.layers[2].register_forward_pre_hook(double)
        stages = compiled(model, options(accumulation=3)).program.stages
        assert ["mul" in stage.operators for stage in stages] == [stage_of_mul == 0, stage_of_mul == 1]


def test_rule_5_16_recomputation_is_for_pipelines() -> None:
    from ipu_vit.emulator.session_options import auto_recomputation

    opts = poptorch.Options()
    assert (auto_recomputation(opts, ipus=1), auto_recomputation(opts, ipus=2)) == (0, 3)
    opts.setExecutionStrategy(poptorch.ShardedExecution())
    assert auto_recomputation(opts, ipus=2) == 0
    opts._Popart.set("autoRecomputation", 1)
    assert auto_recomputation(opts, ipus=2) == 1
