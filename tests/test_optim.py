"""Learning rates against closed forms, and what the optimizer is given."""

from __future__ import annotations

import math
from typing import Any

import poptorch
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import CPU

from ipu_vit.build import build_model
from ipu_vit.config import load_settings
from ipu_vit.optim import build_optimizer, learning_rate, set_learning_rate
from ipu_vit.settings import OptimizerSettings, ScheduleSettings, Settings
from ipu_vit.train import Trainer


def published(curve: str) -> ScheduleSettings:
    return ScheduleSettings(lr=0.08, updates=5000, warmup=800, warmup_start=0.02, curve=curve)


@pytest.mark.parametrize(
    "curve, rates",
    [
        ("cosine_times_warmup", {800: 0.0750, 1500: 0.0635, 2500: 0.0400, 4000: 0.0076}),
        ("warmup_then_cosine", {800: 0.0800, 1500: 0.0746, 2500: 0.0518, 4000: 0.0107}),
    ],
)
def test_curves_at_published_points(curve: str, rates: Any) -> None:
    for update, rate in rates.items():
        assert learning_rate(published(curve), update) == pytest.approx(rate, abs=6e-5)


schedules = st.tuples(
    st.floats(1e-6, 10), st.integers(2, 5000), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1, exclude_max=True)
)


@given(schedules)
def test_cosine_times_warmup(numbers: Any) -> None:
    """As mmcv 0.x computes it: annealing to 0 over all updates, and for i < w times 1 - (1 - i/w)(1 - start)."""
    lr, updates, share, start, at = numbers
    warmup, update = int(share * (updates - 1)), int(at * updates)
    schedule = ScheduleSettings(lr=lr, updates=updates, warmup=warmup, warmup_start=start, curve="cosine_times_warmup")
    expected = 0 + 0.5 * (lr - 0) * (math.cos(math.pi * update / updates) + 1)
    if update < warmup:
        expected *= 1 - (1 - update / warmup) * (1 - start)
    assert learning_rate(schedule, update) == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_warmup_then_cosine_is_pytorchs() -> None:
    """`LinearLR` followed by `CosineAnnealingLR`, as the later version of the recipe has it."""
    updates, warmup, start = 50, 8, 0.02
    schedule = ScheduleSettings(lr=0.3, updates=updates, warmup=warmup, warmup_start=start, curve="warmup_then_cosine")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    line = torch.optim.lr_scheduler.LinearLR(optimizer, start, 1.0, warmup)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates - warmup)
    both = torch.optim.lr_scheduler.SequentialLR(optimizer, [line, cosine], [warmup])
    for update in range(updates):
        assert learning_rate(schedule, update) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6, abs=1e-12)
        optimizer.step()
        both.step()


@pytest.mark.parametrize("curve", ["cosine_times_warmup", "warmup_then_cosine"])
def test_without_warmup_both_are_the_cosine(curve: str) -> None:
    schedule = ScheduleSettings(lr=2.0, updates=4, curve=curve)
    rates = [learning_rate(schedule, update) for update in range(5)]
    assert rates == pytest.approx([2, 1 + math.sqrt(0.5), 1, 1 - math.sqrt(0.5), 0])


# --- the optimizer -----------------------------------------------------------------------------------


def tiny_model() -> Any:
    return build_model(Settings(model={"image_size": 8, "patch_size": 4, "width": 16, "depth": 12, "heads": 2,
                                       "mlp_width": 32, "classes": 3}, data={"evaluation_resize": 8}))  # fmt: skip


def test_class_token_and_positions_do_not_decay() -> None:
    model = tiny_model()
    optimizer = build_optimizer(model, OptimizerSettings(weight_decay=0.25), 0.5)
    decay = {parameter: group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        assert decay.pop(parameter) == (0.0 if name in ("embedding.class_token", "embedding.position") else 0.25), name
    assert not decay


def test_everything_decays_if_no_name_is_left_out() -> None:
    (group,) = build_optimizer(tiny_model(), OptimizerSettings(no_decay=[]), 0.5).param_groups
    assert len(group["params"]) == len(list(tiny_model().parameters()))


def test_numbers_reach_the_optimizer() -> None:
    chosen = OptimizerSettings(
        momentum=0.7, nesterov=True, loss_scaling=64.0, accumulator_type="float32", max_grad_norm=1.5
    )
    optimizer = build_optimizer(tiny_model(), chosen, 0.5)
    assert isinstance(optimizer, poptorch.optim.SGD)
    for group in optimizer.param_groups:
        assert (group["lr"], group["momentum"], group["nesterov"]) == (0.5, 0.7, True)
    assert (optimizer.loss_scaling, optimizer.max_grad_norm, optimizer.use_combined_accum) == (64.0, 1.5, False)
    assert (optimizer.accum_type, optimizer.velocity_accum_type) == (torch.float32, torch.float16)


def test_learning_rate_is_not_compiled_in() -> None:
    """A constant could not follow the schedule: PopTorch refuses to change it."""
    optimizer = build_optimizer(tiny_model(), OptimizerSettings(), 0.5)
    assert not optimizer.variable_attrs.isConstant("lr")
    set_learning_rate(optimizer, 0.125)
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.125]


def test_updates_follow_the_schedule(tmp_path: Any) -> None:
    """What the device moves the weights by is each update's own learning rate."""
    settings = load_settings("quickstart", [
        "device=cpu", "weights=none", "precision=float32", f"output={tmp_path}", "data=generated", "data.workers=0",
        "model.image_size=8", "model.width=12", "model.mlp_width=16", "data.evaluation_resize=8",
        "pipeline.global_batch=14", "pipeline.micro_batch=2",
        "schedule.updates=4", "schedule.warmup=2", "schedule.lr=0.03",
        "optimizer.momentum=0", "optimizer.weight_decay=0", "pipeline.stochastic_rounding=false",
        "optimizer.accumulator_type=float32", "optimizer.velocity_type=float32",
    ])  # fmt: skip
    trainer = Trainer(settings, CPU)
    bias = trainer.model.head.classify.bias
    before, moves, rates = bias.detach().clone(), [], []
    for step in trainer.host_steps():
        trainer.executor.copyWeightsToHost()
        moves.append(float((bias.detach() - before).norm()))
        before = bias.detach().clone()
        rates.append(step.lr)
    expected = [0.03 * 0.5 * (1 + math.cos(math.pi * i / 4)) * warmth for i, warmth in enumerate([0.02, 0.51, 1, 1])]
    assert rates == pytest.approx(expected)
    # Of random labels the gradient stays as it is, while the learning rate grows to the twentyfold and falls again.
    gradients = [move / rate for move, rate in zip(moves, rates)]
    assert min(gradients) > 0.05 and max(gradients) < math.sqrt(2)
