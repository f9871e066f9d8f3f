"""What PopTorch refuses, refused at the same moment."""

from __future__ import annotations

from typing import Any

import poptorch
import pytest
import torch
import torch.nn.functional as F
from emulator_models import Layers, data, options
from torch import nn


def training(model: nn.Module, opts: Any = None) -> Any:
    return poptorch.trainingModel(model, opts or options(), poptorch.optim.SGD(model.parameters(), lr=0.1))


@pytest.mark.parametrize("ipus, needed", [(2, 3), (4, 7)])
def test_rule_5_9_accumulation_fills_the_pipeline(ipus: int, needed: int) -> None:
    with pytest.raises(poptorch.Error, match=f"gradientAccumulation .*{needed}"):
        training(Layers(ipus), options(accumulation=needed - 1)).compile(*data(needed - 1))
    training(Layers(ipus), options(accumulation=needed)).compile(*data(needed))


def test_rule_5_9_device_iterations_fill_the_inference_pipeline() -> None:
    model = Layers(4)
    with pytest.raises(poptorch.Error, match=r"deviceIterations .*\(4\)"):
        poptorch.inferenceModel(model, options(iterations=3)).compile(*data(3))
    poptorch.inferenceModel(model, options(iterations=4)).compile(*data(4))


def test_rule_5_9_sharding_needs_no_accumulation() -> None:
    opts = options()
    opts.setExecutionStrategy(poptorch.ShardedExecution())
    training(Layers(4), opts).compile(*data(1))


def test_rule_5_1_a_module_begins_one_block() -> None:
    layer = nn.Linear(2, 2)
    assert poptorch.BeginBlock(layer, "a", 0) is layer
    with pytest.raises(poptorch.Error, match="already been assigned"):
        poptorch.BeginBlock(layer, "b", 1)
    poptorch.removeBlocks(layer)
    poptorch.BeginBlock(layer, "b", 1)


def test_rule_5_3_no_block_is_active_after_a_block() -> None:
    class Outside(Layers):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
            with poptorch.Block("inside", ipu_id=0):
                logits = self.logits(x)
            return poptorch.identity_loss(F.cross_entropy(logits, y), "none")

    with pytest.raises(poptorch.Error, match="No active Block"):
        training(Outside()).compile(*data(1))


def test_rule_5_6_blocks_need_an_ipu_or_a_stage() -> None:
    model = Layers()
    poptorch.BeginBlock(model.layers[1], "second")
    with pytest.raises(poptorch.Error, match="'second' has no ipu_id"):
        training(model).compile(*data(1))


def test_rule_5_6_blocks_must_be_listed() -> None:
    opts = options(accumulation=7)
    opts.setExecutionStrategy(poptorch.PipelinedExecution("layer 0", "layer 1", "layer 2"))
    with pytest.raises(poptorch.Error, match="Unknown block 'layer 3'"):
        training(Layers(4), opts).compile(*data(7))


def test_rule_5_7_stages_do_not_go_back() -> None:
    model = Layers()
    for layer, ipu in zip(model.layers, (0, 1, 0, 1)):
        poptorch.BeginBlock(layer, f"{ipu} {id(layer)}", ipu)
    with pytest.raises(poptorch.Error, match="must not decrease"):
        training(model, options(accumulation=9)).compile(*data(9))


def test_rule_5_10_a_weight_lives_on_one_ipu() -> None:
    model = Layers(4)
    model.layers[2].weight = model.layers[1].weight
    with pytest.raises(poptorch.Error, match=r"layers\.1\.weight is used on IPU 1 and on IPU 2"):
        training(model, options(accumulation=7)).compile(*data(7))


def test_rule_5_11_ipus_are_a_power_of_two() -> None:
    with pytest.raises(poptorch.Error, match="power of two"):
        training(Layers(2), options(accumulation=3, replicas=3)).compile(*data(9))


def test_rule_2_1_training_needs_a_loss() -> None:
    class NoLoss(Layers):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
            return self.logits(x).sum()

    with pytest.raises(poptorch.Error, match="Couldn't find a loss"):
        training(NoLoss()).compile(*data(1))


def test_rule_2_1_two_losses_need_a_common_one() -> None:
    class TwoLosses(Layers):
        join = False

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
            logits = self.logits(x)
            total = F.cross_entropy(logits, y) + F.mse_loss(logits, logits.detach() + 1)
            return poptorch.identity_loss(total, "none") if self.join else total

    with pytest.raises(poptorch.Error, match="Multiple independent losses"):
        training(TwoLosses()).compile(*data(1))
    joined = TwoLosses()
    joined.join = True
    training(joined).compile(*data(1))


@pytest.mark.parametrize(
    "change",
    [lambda x, y: (x[:-1], y[:-1]), lambda x, y: (x.double(), y), lambda x, y: (x, y, 1)],
    ids=["shape", "type", "count"],
)
def test_rule_1_10_what_was_compiled_stays(change: Any) -> None:
    executor = training(Layers())
    x, y = data(4)
    executor(x, y)
    with pytest.raises(poptorch.Error):
        executor(*change(x, y))


def test_rule_1_1_batches_divide() -> None:
    with pytest.raises(AssertionError, match="7 rows"):
        training(Layers(), options(accumulation=3)).compile(*data(7))


def test_rule_1_12_no_zero_sized_tensors() -> None:
    with pytest.raises(poptorch.Error, match="zero-sized"):
        training(Layers()).compile(*data(0))


def test_rule_1_14_inference_does_not_accumulate() -> None:
    with pytest.raises(poptorch.Error, match="gradientAccumulation"):
        poptorch.inferenceModel(Layers(), options(accumulation=2))


def test_rule_8_1_a_module_trains_once_at_a_time() -> None:
    model = Layers()
    executor = training(model)
    with pytest.raises(RuntimeError, match="already wrapped"):
        training(model)
    executor.compile(*data(1))
    executor.destroy()
    training(model)


def test_rule_9_7_options_freeze() -> None:
    opts = options()
    training(Layers(), opts)
    executor = poptorch.inferenceModel(Layers(), opts)
    with pytest.raises(AttributeError, match="frozen"):
        executor.options.deviceIterations(2)


def test_rule_9_8_options_know_their_types_and_names() -> None:
    with pytest.raises(ValueError, match="device_iterations"):
        poptorch.Options().deviceIterations("4")
    with pytest.raises(AttributeError):
        poptorch.Options().noSuchOption(1)


def test_rule_3_1_gradients_are_reduced() -> None:
    with pytest.raises(ValueError, match=r"ReductionType\.Sum"):
        poptorch.Options().Training.accumulationAndReplicationReductionType(poptorch.ReductionType.NoReduction)


def test_rule_12_1_forward_cannot_look_at_values() -> None:
    class Looks(Layers):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
            return super().forward(x if x.sum().item() > 0 else -x, y)

    with pytest.raises(poptorch.Error, match="only supported in eager mode"):
        training(Looks()).compile(*data(1))


def test_rule_8_4_devices_are_attached_once() -> None:
    executor = training(Layers())
    x, y = data(4)
    executor(x, y)
    with pytest.raises(poptorch.Error, match="attached"):
        executor.attachToDevice()
    executor.detachFromDevice()
    with pytest.raises(poptorch.Error, match="detached"):
        executor(x, y)
    with pytest.raises(poptorch.Error, match="not attached"):
        executor.detachFromDevice()
    executor.attachToDevice()
    executor(x, y)
