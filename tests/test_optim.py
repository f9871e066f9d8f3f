"""What the optimizer is given, and its updates against PyTorch's own optimizers."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List

import poptorch
import pytest
import torch
from emulator_models import options
from optimizer_references import ReferenceLAMB
from schedule_references import big_vision_rsqrt, classy_vision, mae, mmcv, vit_jax
from tiny_runs import CPU, complaint, random_weights, tiny_preset
from torch import Tensor, nn

from ipu_vit.__main__ import main
from ipu_vit.build import build_model
from ipu_vit.checkpoint import Checkpoints
from ipu_vit.config import load_settings
from ipu_vit.optim import build_optimizer, set_learning_rate
from ipu_vit.schedules import learning_rate
from ipu_vit.settings import OptimizerSettings, ScheduleSettings, Settings
from ipu_vit.train import Trainer


def tiny_model() -> Any:
    return build_model(Settings(model={"image_size": 8, "patch_size": 4, "width": 16, "depth": 12, "heads": 2,
                                       "mlp_width": 32, "classes": 3}, data={"evaluation_resize": 8}))  # fmt: skip


# --- what the optimizer is given ---------------------------------------------------------------------


def test_numbers_reach_sgd() -> None:
    chosen = OptimizerSettings(momentum=0.75, nesterov=True, loss_scaling=64.0, accumulator_type="float32")
    optimizer = build_optimizer(tiny_model(), chosen, 0.5)
    assert isinstance(optimizer, poptorch.optim.SGD)
    for group in optimizer.param_groups:
        assert (group["lr"], group["momentum"], group["nesterov"]) == (0.5, 0.75, True)
    assert (optimizer.loss_scaling, optimizer.max_grad_norm, optimizer.use_combined_accum) == (64.0, math.inf, False)
    assert (optimizer.accum_type, optimizer.velocity_accum_type) == (torch.float32, torch.float16)


@pytest.mark.parametrize("name, kind", [("adam", "Adam"), ("adamw", "AdamW"), ("lamb", "LAMB")])
def test_numbers_reach_optimizers_with_moments(name: str, kind: str) -> None:
    own: Any = {"bias_correction": False} if name == "lamb" else {"max_grad_norm": 1.5}
    chosen = OptimizerSettings(
        name=name, betas=(0.8, 0.95), eps=1e-6, loss_scaling=64.0, first_moment_type="float16", **own
    )
    optimizer = build_optimizer(tiny_model(), chosen, 0.5)
    assert isinstance(optimizer, getattr(poptorch.optim, kind))
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (0.5, (0.8, 0.95), 1e-6)
    assert (optimizer.loss_scaling, optimizer.accum_type) == (64.0, torch.float16)
    assert optimizer.first_order_momentum_accum_type == torch.float16
    assert optimizer.second_order_momentum_accum_type == torch.float32
    for attribute, value in own.items():
        assert getattr(optimizer, attribute) == value


def test_numbers_reach_rmsprop() -> None:
    chosen = OptimizerSettings(name="rmsprop", momentum=0.5, alpha=0.75, eps=1e-3, centered=True)
    optimizer = build_optimizer(tiny_model(), chosen, 0.5)
    assert isinstance(optimizer, poptorch.optim.RMSprop)
    for group in optimizer.param_groups:
        assert (group["momentum"], group["alpha"], group["eps"], group["centered"]) == (0.5, 0.75, 1e-3, True)


@pytest.mark.parametrize("name", ["sgd", "rmsprop"])
def test_no_momentum_takes_no_memory(name: str) -> None:
    """PopTorch keeps a velocity for a momentum that is given, be it 0."""
    optimizer = build_optimizer(tiny_model(), OptimizerSettings(name=name, momentum=0), 0.5)
    assert optimizer.variable_attrs.isConstant("momentum")


def test_learning_rate_is_not_compiled_in() -> None:
    """A constant could not follow the schedule: PopTorch refuses to change it."""
    optimizer = build_optimizer(tiny_model(), OptimizerSettings(), 0.5)
    assert not optimizer.variable_attrs.isConstant("lr")
    set_learning_rate(optimizer, 0.125)
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.125]


def test_groups_without_a_share_follow_the_schedule() -> None:
    """Such groups come from checkpoints of earlier versions."""
    optimizer = build_optimizer(tiny_model(), OptimizerSettings(), 0.5)
    for group in optimizer.param_groups:
        del group["lr_scale"]
    set_learning_rate(optimizer, 0.125)
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.125]


# --- updates -----------------------------------------------------------------------------------------


class Part(nn.Module):
    """A linear map after a normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.linear = nn.Linear(4, 4)


class Given(nn.Module):
    """Parameters with a ViT's names, whose gradient is the input, all of them end to end (1, parameters)."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = Part()
        self.embedding.register_parameter("class_token", nn.Parameter(torch.zeros(1, 1, 4)))
        self.layers = nn.ModuleList([Part(), Part()])
        self.head = nn.Linear(4, 3)
        random_weights(self, seed)

    def forward(self, gradient: Tensor) -> Any:
        weights = torch.cat([parameter.flatten() for parameter in self.parameters()])
        return poptorch.identity_loss((weights * gradient[0].to(weights.dtype)).sum(), reduction="none")


def gradients_of(model: nn.Module, updates: int, seed: int = 1) -> Tensor:
    size = sum(parameter.numel() for parameter in model.parameters())
    return torch.randn(updates, 1, size, generator=torch.Generator().manual_seed(seed))


def moved_by(
    model: nn.Module, optimizer: Any, gradients: Tensor, lr: Callable[[int], float], accumulation: int = 1
) -> Dict[str, Tensor]:
    """The weights after an update on the device with each of the gradients, which all its micro batches have."""
    executor = poptorch.trainingModel(model, options(accumulation=accumulation), optimizer)
    for update, gradient in enumerate(gradients):
        set_learning_rate(optimizer, lr(update))
        executor.setOptimizer(optimizer)
        executor(gradient.repeat(accumulation, 1))
    executor.copyWeightsToHost()
    return {name: parameter.detach().double() for name, parameter in model.named_parameters()}


LR, UPDATES, DECAY = 0.02, 50, 0.1
# Of 2 layers between an embedding and a head, with a layer decay of a half.
SHARES = {"embedding": 0.125, "layers.0": 0.25, "layers.1": 0.5, "head": 1.0}
CURVES: Dict[str, Any] = {
    "cosine_times_warmup": ({"warmup_start": 0.02, "warmup": 8},
                            partial(mmcv, lr=LR, updates=UPDATES, warmup=8, start=0.02)),
    "warmup_then_cosine": ({"warmup": 5}, partial(classy_vision, lr=LR, updates=UPDATES, length=0.1)),
    "warmup_then_linear": ({"warmup": 8, "final": 1e-5 / LR},
                           partial(vit_jax, lr=LR, updates=UPDATES, warmup=8, decay="linear")),
    "warmup_then_rsqrt": ({"warmup": 8, "timescale": 9, "cooldown": 10},
                          partial(big_vision_rsqrt, lr=LR, updates=UPDATES, warmup=8, timescale=9, cooldown=10)),
    "cosine_with_an_end": ({"curve": "warmup_then_cosine", "warmup": 8, "final": 0.1},
                           partial(mae, lr=LR, updates=UPDATES, warmup=8, end=0.1 * LR)),
}  # fmt: skip


class PlainLAMB:
    """LAMB in numpy, parameter by parameter, with torch's outside."""

    def __init__(self, groups: List[Dict[str, Any]], **values: Any) -> None:
        self.param_groups = groups
        self._references = [
            ReferenceLAMB([group["params"][0].detach()], weight_decay=group["weight_decay"], **values)
            for group in groups
        ]

    def step(self) -> None:
        for group, reference in zip(self.param_groups, self._references):
            (parameter,) = group["params"]
            reference.values["lr"] = group["lr"]
            reference.update([parameter.grad.numpy()])
            parameter.data.copy_(torch.from_numpy(reference.weights[0]))


@pytest.mark.parametrize(
    "own, curve, reference",
    [
        ({"name": "sgd", "momentum": 0}, "warmup_then_cosine", torch.optim.SGD),
        ({"name": "sgd"}, "cosine_times_warmup", partial(torch.optim.SGD, momentum=0.9)),
        ({"name": "sgd", "nesterov": True}, "warmup_then_rsqrt",
         partial(torch.optim.SGD, momentum=0.9, nesterov=True)),
        ({"name": "adam"}, "warmup_then_linear", torch.optim.Adam),
        ({"name": "adamw", "betas": (0.9, 0.95)}, "cosine_with_an_end", partial(torch.optim.AdamW, betas=(0.9, 0.95))),
        ({"name": "rmsprop"}, "warmup_then_cosine", partial(torch.optim.RMSprop, momentum=0.9)),
        ({"name": "rmsprop", "momentum": 0, "centered": True, "alpha": 0.9}, "warmup_then_rsqrt",
         partial(torch.optim.RMSprop, centered=True, alpha=0.9)),
        ({"name": "lamb", "eps": 1e-6}, "warmup_then_linear", partial(PlainLAMB, eps=1e-6)),
        ({"name": "lamb", "bias_correction": False}, "warmup_then_cosine", partial(PlainLAMB, bias_correction=False)),
    ],
)  # fmt: skip
def test_fifty_updates_are_the_references(own: Any, curve: str, reference: Any) -> None:
    """With decay, layer decay and a schedule at work, in float32 here and in float64 there."""
    more, expected_lr = CURVES[curve]
    schedule = ScheduleSettings(**{"lr": LR, "updates": UPDATES, "curve": curve, **more})
    chosen = OptimizerSettings(
        **own, weight_decay=DECAY, no_decay=["class_token", "norm", "bias"], layer_decay=0.5,
        accumulator_type="float32", **({"velocity_type": "float32"} if own["name"] == "sgd" else {}),
    )  # fmt: skip
    model, plain = Given(), Given().double()
    gradients = gradients_of(model, UPDATES)
    ours = moved_by(model, build_optimizer(model, chosen, LR), gradients, partial(learning_rate, schedule))

    groups = [
        {"params": [parameter], "weight_decay": DECAY if name.endswith("linear.weight") or name == "head.weight" else 0,
         "share": next(share for part, share in SHARES.items() if name.startswith(part))}
        for name, parameter in plain.named_parameters()
    ]  # fmt: skip
    theirs = reference(groups, lr=LR)
    for update, gradient in enumerate(gradients.double()):
        plain.zero_grad()
        plain(gradient).backward()
        for group in theirs.param_groups:
            group["lr"] = expected_lr(update) * group["share"]
        theirs.step()
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(ours[name], parameter.detach(), rtol=2e-5, atol=2e-6, msg=name)


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


def test_a_run_goes_on_with_its_moments_and_shares(tmp_path: Path) -> None:
    arguments = [
        "train", str(tiny_preset(tmp_path)), "optimizer.name=adamw", "optimizer.layer_decay=0.5",
        "optimizer.betas=[0.8,0.9]", "schedule.curve=warmup_then_linear", "schedule.lr=0.01",
    ]  # fmt: skip
    assert main(arguments) == 0
    checkpoints = Checkpoints(tmp_path / "run/checkpoints", keep=3)
    whole = checkpoints.latest()
    checkpoints.path(4).unlink()
    assert main(arguments) == 0
    again = checkpoints.latest()
    assert whole is not None and again is not None and again.update == 4
    torch.testing.assert_close(again.model, whole.model, rtol=0, atol=0)
    torch.testing.assert_close(again.optimizer["ipu_state"], whole.optimizer["ipu_state"], rtol=0, atol=0)
    assert again.optimizer["param_groups"] == whole.optimizer["param_groups"]


# --- clipping and loss scaling -----------------------------------------------------------------------


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_bound_is_pytorchs_where_it_can_be(name: str, accumulation: int) -> None:
    """With moments the gradient is bounded; with sgd the velocity, which is the gradient if there is no momentum."""
    own: Any = {"momentum": 0} if name == "sgd" else {}
    chosen = OptimizerSettings(name=name, accumulator_type="float32", max_grad_norm=8.0, loss_scaling=64.0, **own)
    model, plain = Given(), Given().double()
    # Norms of standard normal gradients of that many parameters lie around 10, and every other update's at a tenth.
    gradients = gradients_of(model, 20) * torch.tensor([1.0, 0.1]).repeat(10)[:, None, None]
    ours = moved_by(model, build_optimizer(model, chosen, LR), gradients, lambda _: LR, accumulation)

    theirs = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name](
        plain.parameters(), lr=LR, weight_decay=0.0
    )
    bounded = []
    for gradient in gradients.double():
        theirs.zero_grad()
        plain(gradient).backward()
        bounded.append(float(torch.nn.utils.clip_grad_norm_(plain.parameters(), 8.0)) > 8)
        theirs.step()
    assert bounded == [True, False] * 10
    for parameter_name, parameter in plain.named_parameters():
        torch.testing.assert_close(ours[parameter_name], parameter.detach(), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("nesterov", [False, True])
def test_bound_of_sgd_with_momentum_is_that_of_bounded_gradients(nesterov: bool, accumulation: int) -> None:
    """Of gradients far above the bound, updates are as long in the end as with exactly bounded gradients."""
    chosen = OptimizerSettings(
        momentum=0.5, nesterov=nesterov, accumulator_type="float32", velocity_type="float32", max_grad_norm=0.25
    )
    model = Given()
    before = torch.cat([parameter.detach().flatten().double() for parameter in model.parameters()])
    gradient = gradients_of(model, 1)
    ours = moved_by(model, build_optimizer(model, chosen, LR), gradient.repeat(10, 1, 1), lambda _: LR, accumulation)
    moved = torch.cat([parameter.flatten() for parameter in ours.values()]) - before
    direction = -gradient.flatten().double() / gradient.double().norm()
    torch.testing.assert_close(moved, direction * LR * 10 * 0.25 / (1 - 0.5), rtol=1e-3, atol=1e-5)


def test_loss_scale_may_be_the_devices_business() -> None:
    """The device changes it for float16 gradients, and the updates stay those of the unscaled loss."""
    chosen = OptimizerSettings(name="adamw", loss_scaling=4.0, automatic_loss_scaling=True, eps=1e-3)
    results = []
    for automatic in (False, True):
        model = Given().half()
        opts = options()
        opts.Training.setAutomaticLossScaling(automatic)
        optimizer = build_optimizer(model, chosen, LR)
        executor = poptorch.trainingModel(model, opts, optimizer)
        for gradient in gradients_of(model, 5):
            executor(gradient)
        scaled = optimizer.state_dict()["ipu_state"].get("lossScaleUpdateFactor")
        assert (scaled is not None and float(scaled) > 1) == automatic
        executor.copyWeightsToHost()
        results.append(torch.cat([parameter.detach().flatten().float() for parameter in model.parameters()]))
    torch.testing.assert_close(*results, rtol=2e-3, atol=2e-3)


# --- what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["name=sam"], "optimizer.name=sam takes two backward passes for each update, and PopTorch compiles one; "
                       "accepted: sgd, adam, adamw, lamb, rmsprop, for example from weights that were trained with "
                       "SAM"),
        (["name=lion"], "optimizer.name=lion is not sgd or adam or adamw or lamb or rmsprop (on the command line)"),
        (["betas=[0.9, 0.95]"], "optimizer.betas=[0.9, 0.95] is a setting of adam and adamw and lamb, which "
                                "optimizer.name=sgd has not; accepted: [0.9, 0.999]"),
        (["name=adamw", "bias_correction=false"], "optimizer.bias_correction=false is a setting of lamb, which "
                                                  "optimizer.name=adamw has not; accepted: true"),
        (["name=lamb", "max_grad_norm=1"], "optimizer.max_grad_norm=1.0 is a setting of sgd and adam and adamw, which "
                                           "optimizer.name=lamb has not; accepted: none"),
        (["name=adam", "velocity_type=float32"], "optimizer.velocity_type=float32 is a setting of sgd, which "
                                                 "optimizer.name=adam has not; accepted: float16"),
        (["name=adam", "betas=[0.9, 1]"], "optimizer.betas=[0.9, 1.0] is not accepted; accepted: two numbers at least "
                                          "0 and below 1"),
        (["name=adam", "betas=0.9"], "optimizer.betas=0.9 is not a list of 2 numbers (on the command line)"),
        (["nesterov=true", "momentum=0"], "optimizer.nesterov=true looks ahead by optimizer.momentum=0.0; accepted: "
                                          "momentum above 0"),
        (["max_grad_norm=1", "automatic_loss_scaling=true"],
         "optimizer.automatic_loss_scaling=true cannot go with optimizer.max_grad_norm=1.0 of sgd: PopART bounds "
         "gradients that are still multiplied by the loss scale; accepted: one of the two, or adam or adamw"),
    ],
)  # fmt: skip
def test_what_an_optimizer_has_not_is_refused(overrides: Any, message: str) -> None:
    assert complaint("quickstart", *(f"optimizer.{override}" for override in overrides)) == message


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "lamb", "rmsprop"])
def test_a_preset_may_change_the_optimizer_alone(name: str) -> None:
    """What the preset leaves at its default is in nobody's way."""
    assert load_settings("vit_b16_ft_4xb544", [f"optimizer.name={name}"]).optimizer.name == name
