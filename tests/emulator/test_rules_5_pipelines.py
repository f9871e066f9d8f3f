"""Section 5, models over several IPUs: which block operators belong to, what IPUs share, what is recomputed."""

from __future__ import annotations

from typing import Any, Callable, List, Sequence, Tuple

import poptorch
import pytest
import torch
import torch.nn.functional as F
from emulator_models import Layers, data, largest_difference, options, plain_twin
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

AUTO = poptorch.AutoStage.AutoIncrement


class Chain(nn.Module):
    """Calls functions or layers one after the other, then takes a loss."""

    def __init__(self, *steps: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.steps = steps
        self.layers = nn.ModuleList(step for step in dict.fromkeys(steps) if isinstance(step, nn.Module))

    def forward(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        x = x * self.weight
        for step in self.steps:
            x = step(x)
        return x, poptorch.identity_loss(x.mean(), "none")


def trainer(model: nn.Module, opts: Any, **values: Any) -> Any:
    return poptorch.trainingModel(model, opts, poptorch.optim.SGD(model.parameters(), **{"lr": 0.1, **values}))


def program_of(model: nn.Module, strategy: Any, *inputs: Tensor, accumulation: int = 1) -> Any:
    opts = options(accumulation=accumulation)
    opts.setExecutionStrategy(strategy)
    opts.useIpuModel(True)  # which has any number of IPUs
    executor = trainer(model, opts)
    executor.compile(*(inputs or (torch.ones(2 * accumulation, 3),)))
    return executor.program


def operators_by_block(model: nn.Module) -> List[Tuple[List[str], List[str]]]:
    """Blocks and operators of each stage."""
    program = program_of(model, poptorch.ShardedExecution(AUTO))
    return [(stage.blocks, stage.operators) for stage in program.stages]


# Blocks (5.1 to 5.4, 5.15) -----------------------------------------------------------------------


def test_rule_5_1_a_block_lasts_until_the_next() -> None:
    """What runs after a module, outside of it, still belongs to its block."""
    first = poptorch.BeginBlock(nn.Sigmoid(), "first", 0)
    second = poptorch.BeginBlock(nn.Tanh(), "second", 1)
    model = Chain(torch.exp, first, torch.sin, torch.cos, second, torch.abs)
    assert operators_by_block(model) == [
        ([], ["mul", "exp"]),
        (["first"], ["sigmoid", "sin", "cos"]),
        (["second"], ["tanh", "abs", "mean", "clone"]),
    ]


def test_rule_5_1_a_block_on_a_container_begins_before_its_first_layer() -> None:
    inner = nn.Sequential(nn.Sigmoid(), poptorch.BeginBlock(nn.Tanh(), "inside", 1))
    model = Chain(torch.exp, poptorch.BeginBlock(inner, "around", 0))
    assert [blocks for blocks, _ in operators_by_block(model)] == [[], ["around"], ["inside"]]


def test_rule_5_1_removed_blocks_are_forgotten() -> None:
    model = Chain(poptorch.BeginBlock(nn.Sigmoid(), "a", 1), poptorch.BeginBlock(nn.Tanh(), "b", 0))
    poptorch.removeBlocks(model)
    assert operators_by_block(model) == [([], ["mul", "sigmoid", "tanh", "mean", "clone"])]


def test_rule_5_1_functions_can_begin_a_block() -> None:
    model = Chain(torch.exp, poptorch.BeginBlock(torch.sin, "a function", 1), torch.cos)
    assert operators_by_block(model) == [([], ["mul", "exp"]), (["a function"], ["sin", "cos", "mean", "clone"])]


def test_rule_5_1_a_module_that_is_called_again_begins_its_block_again() -> None:
    """Which a pipeline cannot have, for its stages would go back."""
    layer = poptorch.BeginBlock(nn.Linear(3, 3), "layer", 0)
    other = poptorch.BeginBlock(nn.Linear(3, 3), "other", 1)
    again = program_of(Chain(layer, other, layer), poptorch.ShardedExecution())
    assert [(stage.ipu, stage.operators.count("addmm")) for stage in again.stages] == [(0, 2), (1, 1)]
    with pytest.raises(poptorch.Error, match="must not decrease"):
        program_of(Chain(layer, other, layer), poptorch.PipelinedExecution(), accumulation=5)


def test_rule_5_2_operators_before_the_first_block_are_stage_0() -> None:
    model = Chain(torch.exp, poptorch.BeginBlock(nn.Tanh(), "on the second", 1))
    stages = program_of(model, poptorch.PipelinedExecution(AUTO), accumulation=3).stages
    assert [(stage.stage, stage.ipu) for stage in stages] == [(0, 0), (1, 1)]
    assert stages[0].parameters == ["weight"]


class Blocks(nn.Module):
    """Blocks as contexts and as decorated functions."""

    def __init__(self, last: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.last = last

    @poptorch.BlockFunction("decorated", ipu_id=1)
    def decorated(self, x: Tensor) -> Tensor:
        return torch.tanh(x)

    def loss(self, x: Tensor) -> Tensor:
        return poptorch.identity_loss((x * self.weight).mean(), "none")

    def forward(self, x: Tensor) -> Tensor:
        with poptorch.Block("context", ipu_id=0):
            x = torch.sin(x)
        x = self.decorated(x)
        if self.last == "outside":
            return self.loss(x)
        if self.last == "nested":
            with poptorch.Block("outer", ipu_id=2):
                with poptorch.Block("inner", ipu_id=3):
                    x = torch.cos(x)
                return self.loss(x)
        with poptorch.Block("last", ipu_id=2):
            return self.loss(x)


def test_rule_5_3_contexts_and_functions_are_blocks() -> None:
    program = program_of(Blocks("in a block"), poptorch.PipelinedExecution(), accumulation=5)
    assert [(stage.ipu, stage.blocks, stage.operators) for stage in program.stages] == [
        (0, ["context"], ["sin"]),
        (1, ["decorated"], ["tanh"]),
        (2, ["last"], ["mul", "mean", "clone"]),
    ]


@pytest.mark.parametrize("last", ["outside", "nested"])
def test_rule_5_4_operators_outside_closed_blocks_are_refused(last: str) -> None:
    with pytest.raises(poptorch.Error, match=r"No active Block.*test_rules_5_pipelines\.py"):
        program_of(Blocks(last), poptorch.PipelinedExecution(), accumulation=7)
    assert torch.isfinite(Blocks(last)(torch.ones(2, 3)))  # rule 5.13: on a CPU blocks do nothing


def test_rule_5_15_hooks_run_in_the_order_they_were_registered() -> None:
    """Before the block's own: in the block before; after it, or when the layer is done: in the new one."""
    layer = nn.Tanh()
    layer.register_forward_pre_hook(lambda module, inputs: (torch.sin(inputs[0]),))
    poptorch.BeginBlock(layer, "layer", 1)
    layer.register_forward_pre_hook(lambda module, inputs: (torch.cos(inputs[0]),))
    layer.register_forward_hook(lambda module, inputs, output: torch.exp(output))
    assert operators_by_block(Chain(torch.abs, layer)) == [
        ([], ["mul", "abs", "sin"]),
        (["layer"], ["cos", "tanh", "exp", "mean", "clone"]),
    ]


# IPUs and stages (5.5 to 5.9) --------------------------------------------------------------------


def on_ipus(ipus: Sequence[int]) -> Chain:
    return Chain(*(poptorch.BeginBlock(nn.Linear(3, 3), f"layer {i}", ipu) for i, ipu in enumerate(ipus)))


def changes(ipus: Sequence[int]) -> int:
    """How often the IPU changes; what comes before the first block is on IPU 0."""
    return sum(one != other for one, other in zip([0, *ipus], ipus))


@settings(max_examples=60)
@given(ipus=st.lists(st.integers(0, 3), min_size=1, max_size=6), accumulation=st.integers(1, 13))
def test_rule_5_8_and_5_9_any_order_of_ipus(ipus: List[int], accumulation: int) -> None:
    """Stages are counted by changes of the IPU, and a pipeline is filled or refused exactly then."""
    forward = 1 + changes(ipus)
    opts = options(accumulation=accumulation)
    opts.setExecutionStrategy(poptorch.PipelinedExecution(AUTO))
    opts.useIpuModel(True)
    executor = trainer(on_ipus(ipus), opts)
    x = torch.ones(accumulation, 3)
    if accumulation < 2 * forward - 1:
        with pytest.raises(poptorch.Error, match=rf"gradientAccumulation .*\({2 * forward - 1}\)"):
            executor.compile(x)
        return
    executor.compile(x)
    assert executor.program.forward_stages == forward
    assert executor.program.ipus == max(ipus) + 1  # rule 5.5
    assert [stage.ipu for stage in executor.program.stages] == [0, *ipus]


@settings(max_examples=40)
@given(ipus=st.lists(st.integers(0, 3), min_size=1, max_size=5), iterations=st.integers(1, 6))
def test_rule_5_9_any_inference_pipeline(ipus: List[int], iterations: int) -> None:
    forward = 1 + changes(ipus)
    opts = options(iterations=iterations)
    opts.setExecutionStrategy(poptorch.PipelinedExecution(AUTO))
    opts.useIpuModel(True)
    executor = poptorch.inferenceModel(on_ipus(ipus), opts)
    if iterations < forward:
        with pytest.raises(poptorch.Error, match=rf"deviceIterations .*\({forward}\)"):
            executor.compile(torch.ones(iterations, 3))
    else:
        executor.compile(torch.ones(iterations, 3))


@settings(max_examples=40)
@given(ipus=st.lists(st.integers(0, 3), min_size=1, max_size=5))
def test_rule_5_7_stages_as_ipus_never_go_back(ipus: List[int]) -> None:
    opts = options(accumulation=11)
    opts.useIpuModel(True)
    executor = trainer(on_ipus(ipus), opts)
    if ipus == sorted(ipus):
        executor.compile(torch.ones(11, 3))
        assert [stage.stage for stage in executor.program.stages] == sorted({0, *ipus})
    else:
        with pytest.raises(poptorch.Error, match="must not decrease"):
            executor.compile(torch.ones(11, 3))


@settings(max_examples=25)
@given(ipus=st.lists(st.integers(0, 3), min_size=4, max_size=4), seed=st.integers(0, 99), replicas=st.integers(1, 2))
def test_numbers_do_not_depend_on_where_layers_are(ipus: List[int], seed: int, replicas: int) -> None:
    model = Layers(seed=seed)
    twin = plain_twin(model)
    for position, (layer, ipu) in enumerate(zip(model.layers, ipus)):
        poptorch.BeginBlock(layer, f"layer {position}", ipu)
    opts = options(accumulation=9, replicas=replicas)
    opts.setExecutionStrategy(poptorch.PipelinedExecution(AUTO))
    opts.useIpuModel(True)
    assume(changes(ipus) <= 4)
    x, y = data(9 * replicas, seed)
    executor = trainer(model, opts)
    executor(x, y)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    F.cross_entropy(twin.logits(x.double()), y).backward()  # type: ignore[operator]
    optimizer.step()
    assert largest_difference(model, twin) < 2e-6


# What IPUs cannot share (5.10) -------------------------------------------------------------------


class Tied(nn.Module):
    """Multiplies by the same weight at its beginning and at its end, as language models do."""

    def __init__(self, ipus: Sequence[int]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.middle, self.last = (nn.Linear(3, 3, bias=False) for _ in range(3))
        self.last.weight = self.first.weight
        for name, ipu in zip(("first", "middle", "last"), ipus):
            poptorch.BeginBlock(getattr(self, name), name, ipu)

    def forward(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        out = self.last(torch.tanh(self.middle(torch.tanh(self.first(x)))))
        return out, poptorch.identity_loss(out.pow(2).mean(), "none")


def test_rule_5_10_a_weight_is_used_by_stages_of_one_ipu() -> None:
    """Back on its first IPU, a stage may use the weight again; its gradient is the sum of both uses'."""
    model = Tied([0, 1, 0])
    twin = plain_twin(model)
    opts = options(accumulation=5)
    opts.setExecutionStrategy(poptorch.PipelinedExecution(AUTO))
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    executor = trainer(model, opts)
    executor(x)
    assert [stage.parameters for stage in executor.program.stages] == [
        ["first.weight"],
        ["middle.weight"],
        ["first.weight"],
    ]
    twin(x.double())[1].backward()
    torch.optim.SGD(twin.parameters(), lr=0.1).step()
    assert largest_difference(model, twin) < 2e-6


@pytest.mark.parametrize("strategy", [poptorch.PipelinedExecution(AUTO), poptorch.ShardedExecution()])
def test_rule_5_10_a_weight_is_refused_on_two_ipus(strategy: Any) -> None:
    with pytest.raises(poptorch.Error, match=r"first\.weight is used on IPU 0 and on IPU 1"):
        program_of(Tied([0, 0, 1]), strategy, accumulation=5)


class Skips(nn.Module):
    """Uses its second input in the first stage, the last, or both."""

    def __init__(self, *where: int) -> None:
        super().__init__()
        self.where = where
        self.layers = nn.ModuleList(poptorch.BeginBlock(nn.Linear(3, 3), f"{ipu}", ipu) for ipu in range(2))

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        for ipu, layer in enumerate(self.layers):
            x = layer(x)
            if ipu in self.where:
                x = x + other
        return poptorch.identity_loss(x.mean(), "none")


def test_rule_5_10_an_input_may_go_to_any_one_ipu() -> None:
    inputs = torch.ones(3, 3), torch.ones(3, 3)
    for where in ((), (0,), (1,)):
        program_of(Skips(*where), poptorch.PipelinedExecution(), *inputs, accumulation=3)
    with pytest.raises(poptorch.Error, match="Input 1 is used on IPU 0 and on IPU 1"):
        program_of(Skips(0, 1), poptorch.PipelinedExecution(), *inputs, accumulation=3)


def test_rule_5_10_what_is_made_of_an_input_may_go_on() -> None:
    class Passes(Skips):
        def forward(self, x: Tensor, other: Tensor) -> Tensor:
            return super().forward(x, other * 2)

    program = program_of(
        Passes(0, 1), poptorch.PipelinedExecution(), torch.ones(3, 3), torch.ones(3, 3), accumulation=3
    )
    # One row of three numbers each: the two inputs; what the second stage gets of both.
    assert [stage.received_bytes for stage in program.stages] == [2 * 12, 2 * 12]


def test_rule_5_13_strategies_can_be_used_again() -> None:
    """Numbers of blocks begin anew with every trace, also after one that failed."""
    opts = options(accumulation=5)
    strategy = poptorch.PipelinedExecution(AUTO)
    opts.setExecutionStrategy(strategy)
    model = Chain(poptorch.BeginBlock(nn.Tanh(), ipu_id=0), poptorch.BeginBlock(nn.Sigmoid(), ipu_id=1))
    for wrong in (True, False, False):
        model.steps = model.steps[:2] + ((lambda x: x.sum().item()),) * wrong
        executor = trainer(model, opts)
        if wrong:
            with pytest.raises(poptorch.Error):
                executor.compile(torch.ones(5, 3))
            model = Chain(*model.steps)
            continue
        executor.compile(torch.ones(5, 3))
        assert [(stage.stage, stage.blocks) for stage in executor.program.stages] == [(0, []), (1, ["0"]), (2, ["1"])]
        executor.destroy()


# Recomputation (5.16 to 5.18) --------------------------------------------------------------------


class TwoStages(nn.Module):
    """Two layers on two IPUs, with a checkpoint after the first's activation if asked for."""

    def __init__(self, ipus: int = 2, checkpoints: bool = False, dropout: float = 0.5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.checkpoints, self.dropout = checkpoints, dropout
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)
        if ipus == 2:
            poptorch.BeginBlock(self.second, "second", 1)

    def forward(self, x: Tensor, y: Tensor) -> Tuple[Tensor, Tensor]:
        hidden = torch.relu(self.first(x))
        if self.checkpoints:
            hidden = poptorch.recomputationCheckpoint(hidden)
        hidden = F.dropout(hidden, self.dropout, self.training) * 2
        logits = self.second(hidden)
        return logits, F.cross_entropy(logits, y)


def recomputation(strategy: Any, ipus: int, chosen: Any = None, training: bool = True) -> Tuple[int, bool]:
    opts = options(accumulation=3) if training else options(iterations=2)
    opts.setExecutionStrategy(strategy)
    if chosen is not None:
        opts._Popart.set("autoRecomputation", chosen)
    model = TwoStages(ipus)
    executor = trainer(model, opts) if training else poptorch.inferenceModel(model, opts)
    executor.compile(*data(6))
    return executor.program.recomputation, executor.program.recomputes


def test_rule_5_16_only_pipelines_over_several_ipus_recompute_by_themselves() -> None:
    assert recomputation(poptorch.PipelinedExecution(), 2) == (3, True)
    assert recomputation(poptorch.PipelinedExecution(), 1) == (0, False)
    assert recomputation(poptorch.ShardedExecution(), 2) == (0, False)
    assert recomputation(poptorch.PipelinedExecution(), 2, training=False) == (0, False)


@pytest.mark.parametrize("chosen", [0, 1, 2, 3, 4])
def test_rule_5_16_the_program_may_choose(chosen: int) -> None:
    assert recomputation(poptorch.PipelinedExecution(), 2, chosen) == (chosen, chosen > 0)
    assert recomputation(poptorch.ShardedExecution(), 1, chosen) == (chosen, chosen > 0)


@pytest.mark.parametrize("chosen", [5, -1, True, "Pipeline"])
def test_rule_5_16_choices_are_numbers_in_range(chosen: Any) -> None:
    with pytest.raises(poptorch.Error, match="autoRecomputation"):
        recomputation(poptorch.PipelinedExecution(), 2, chosen)


@pytest.mark.parametrize("dtype, size", [(torch.float32, 4), (torch.float16, 2)])
@pytest.mark.parametrize("checkpoints", [False, True])
def test_rule_5_16_what_stages_keep_and_compute_again(dtype: torch.dtype, size: int, checkpoints: bool) -> None:
    model = TwoStages(2, checkpoints, dropout=0.0).to(dtype)
    executor = trainer(model, options(accumulation=3))
    x, y = data(15)
    executor.compile(x.to(dtype), y)
    first, second = executor.program.stages
    # Five rows each: inputs of 6, the layer's, the activation's and the product's 8 numbers.
    assert first.received_bytes == 5 * 6 * size
    assert first.kept_bytes == first.received_bytes + checkpoints * 5 * 8 * size
    assert first.activation_bytes == 3 * 5 * 8 * size
    assert first.recomputed_bytes == first.activation_bytes - checkpoints * 5 * 8 * size
    assert first.parameter_bytes == (6 * 8 + 8) * size
    # The hidden numbers, and the labels from the host; then logits, their log softmax, the loss and its divisor.
    assert second.kept_bytes == second.received_bytes == 5 * 8 * size + 5 * y.element_size()
    assert second.recomputed_bytes == second.activation_bytes == (2 * 5 * 3 + 2) * size
    assert second.parameter_bytes == (8 * 3 + 3) * size
    assert (first.multiply_adds, second.multiply_adds) == (5 * 6 * 8, 5 * 8 * 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_rule_5_17_checkpoints_and_recomputation_change_no_number(dtype: torch.dtype) -> None:
    """Not even those of dropout, whose masks are drawn once."""
    results = []
    for checkpoints in (False, True):
        for chosen in (None, 0, 1, 4):
            opts = options(accumulation=3, seed=3)
            if chosen is not None:
                opts._Popart.set("autoRecomputation", chosen)
            model = TwoStages(2, checkpoints).to(dtype)
            executor = trainer(model, opts, momentum=0.9)
            for seed in range(2):
                x, y = data(6, seed)
                logits, _ = executor(x.to(dtype), y)
            results.append([logits, *model.state_dict().values()])
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other))


def test_rule_5_17_the_returned_value_has_to_be_used() -> None:
    """The checkpoint is what comes back; what was given is as before."""

    class Ignores(TwoStages):
        def forward(self, x: Tensor, y: Tensor) -> Tuple[Tensor, Tensor]:
            hidden = torch.relu(self.first(x))
            marked = poptorch.recomputationCheckpoint(hidden, hidden * 2)
            assert type(marked) is tuple and len(marked) == 2
            assert type(poptorch.recomputationCheckpoint([hidden])) is list
            assert isinstance(poptorch.recomputationCheckpoint(hidden), Tensor)
            logits = self.second(marked[0])
            return logits, F.cross_entropy(logits, y)

    trainer(Ignores(), options(accumulation=3))(*data(6))


def test_rule_5_18_there_are_checkpoints_and_nothing_else() -> None:
    """PopTorch offers marks for what to store, none for what to compute again."""
    named = [name for name in dir(poptorch) if "recomput" in name.lower()]
    assert named == ["recomputationCheckpoint"]
