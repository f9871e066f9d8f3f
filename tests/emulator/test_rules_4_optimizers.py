"""Optimizers' mathematics: rules 4.1 to 4.9, against the formulas in numpy or torch's own in float64."""

from __future__ import annotations

from typing import Any, Dict, List

import numpy as np
import poptorch
import pytest
import torch
from emulator_models import options
from optimizer_references import (
    CLASSES,
    Given,
    Reference,
    ReferenceAdam,
    ReferenceAdamW,
    ReferenceLAMB,
    ReferenceRMSprop,
    ReferenceSGD,
    Training,
    making,
    random_gradients,
    random_weights,
    referred,
    relative,
    sgd,
)
from torch import nn

TORCHS = ["SGD", "Adam", "AdamW", "RMSprop"]


def follows(training: Training, reference: Reference, updates: int = 5, count: int = 1) -> None:
    """Give both the same gradients and compare them."""
    gradients = random_gradients(updates * count, reference.weights)
    expected = referred(reference, updates, gradients)
    assert relative(training.updates(updates, gradients).weights, expected) < 1e-6


# --- what is accepted --------------------------------------------------------------------------------


class OwnStep(poptorch.optim.SGD):  # type: ignore[misc]
    def step(self, closure: Any = None) -> Any:
        raise RuntimeError("steps are the device's")


def test_rule_4_1_an_overridden_step_has_no_effect(log: pytest.LogCaptureFixture) -> None:
    weights = random_weights()
    follows(Training(weights, lambda params: OwnStep(params, lr=0.01)), ReferenceSGD(weights))
    assert any("OwnStep is a subclass" in line for line in log.messages)


@pytest.mark.parametrize("name", CLASSES)
def test_rule_4_1_step_changes_nothing_on_the_device(name: str, log: pytest.LogCaptureFixture) -> None:
    weights = random_weights()
    training = Training(weights, making(name)).updates(1, random_gradients(1, weights))
    before = training.weights
    training.optimizer.step()
    assert all(np.array_equal(a, b) for a, b in zip(before, training.weights))
    assert not [line for line in log.messages if "subclass" in line]


@pytest.mark.parametrize("name", TORCHS)
def test_rule_4_2_torchs_optimizers_do_the_same_as_poptorchs(name: str) -> None:
    weights = random_weights()
    gradients = random_gradients(3, weights)
    found = [Training(weights, making(name, module)).updates(3, gradients).weights
             for module in (torch.optim, poptorch.optim)]  # fmt: skip
    assert all(np.array_equal(a, b) for a, b in zip(*found))


@pytest.mark.parametrize("name", ["Adagrad", "Adadelta", "Adamax", "ASGD", "NAdam", "RAdam", "Rprop"])
def test_rule_4_2_other_optimizers_fail_at_wrap(name: str) -> None:
    with pytest.raises(AssertionError, match=name):
        Training(random_weights(), making(name, torch.optim))


def test_rule_4_2_without_an_optimizer_it_is_sgd() -> None:
    weights = random_weights()
    model, gradients = Given(*weights), random_gradients(1, weights)
    executor = poptorch.trainingModel(model)
    executor(*(torch.as_tensor(gradient).float() for gradient in gradients))
    executor.copyWeightsToHost()
    expected = [w - 0.01 * g[0] for w, g in zip(weights, gradients)]
    assert relative([w.detach().numpy() for w in model.weights], expected) < 1e-6


# --- SGD ---------------------------------------------------------------------------------------------

SGD_NUMBERS: List[Dict[str, Any]] = [
    {},
    {"weight_decay": 0.1},
    {"dampening": 0.25},
    {"momentum": 0.9},
    {"momentum": 0.9, "weight_decay": 0.1},
    {"momentum": 0.9, "weight_decay": 0.1, "dampening": 0.25},
    {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True},
]


@pytest.mark.parametrize("combined", [False, True])
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("values", SGD_NUMBERS)
def test_rule_4_3_and_4_4_sgd_is_its_formula_in_both_variants(
    values: Dict[str, Any], accumulation: int, combined: bool
) -> None:
    weights = random_weights()
    optimizer = sgd(**values, use_combined_accum=combined, loss_scaling=64.0)
    training = Training(weights, optimizer, options(accumulation=accumulation, replicas=2))
    follows(training, ReferenceSGD(weights, **values), count=2 * accumulation)


@pytest.mark.parametrize("combined", [False, True])
def test_rule_4_3_sums_are_reduced_in_both_variants(combined: bool) -> None:
    weights = random_weights()
    opts = options(accumulation=3, replicas=4)
    opts.Training.accumulationAndReplicationReductionType(poptorch.ReductionType.Sum)
    values = {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True}
    gradients = random_gradients(36, weights)
    found = Training(weights, sgd(**values, use_combined_accum=combined), opts).updates(3, gradients).weights
    assert relative(found, referred(ReferenceSGD(weights, **values), 3, gradients, mean=False)) < 1e-6


def test_rule_4_3_dampening_acts_on_the_first_step_unlike_torch() -> None:
    found = Training([np.zeros(1)], sgd(lr=1.0, momentum=0.9, dampening=0.75)).updates(1, [np.ones((1, 1))])
    assert found.weights[0].tolist() == [-0.25]
    weight = nn.Parameter(torch.zeros(1))
    weight.grad = torch.ones(1)
    torch.optim.SGD([weight], lr=1.0, momentum=0.9, dampening=0.75).step()
    assert weight.tolist() == [-1.0]


@pytest.mark.parametrize("name, value", [("lr", -0.1), ("momentum", -0.5), ("dampening", -0.5), ("weight_decay", -0.1)])
def test_rule_4_3_negative_numbers_fail_when_compiling(name: str, value: float) -> None:
    weights = random_weights()
    training = Training(weights, sgd(momentum=0.9, dampening=0.5, weight_decay=0.1))
    training.optimizer.param_groups[0][name] = value
    training.executor.setOptimizer(training.optimizer)
    with pytest.raises(poptorch.Error, match=f"{name} .* must not be negative, but is {value}"):
        training.run(random_gradients(1, weights))


@pytest.mark.parametrize("scaling", [0.0, -1.0])
def test_rule_4_3_velocity_scaling_must_be_positive(scaling: float) -> None:
    weights = random_weights()
    training = Training(weights, sgd(momentum=0.9, use_combined_accum=True, velocity_scaling=scaling))
    with pytest.raises(poptorch.Error, match="velocity_scaling .* must be positive"):
        training.run(random_gradients(1, weights))


def test_rule_4_3_nesterov_excludes_dampening() -> None:
    weights = random_weights()
    with pytest.raises(ValueError, match="[Nn]esterov"):  # torch's own constructor
        Training(weights, sgd(momentum=0.9, nesterov=True, dampening=0.5))
    training = Training(weights, sgd(momentum=0.9, nesterov=True))
    training.optimizer.param_groups[0]["dampening"] = 0.5
    training.executor.setOptimizer(training.optimizer)
    with pytest.raises(poptorch.Error, match="nesterov needs dampening 0"):
        training.run(random_gradients(1, weights))


def changing(training: Training, gradients: Any, name: str, values: List[float]) -> List[Any]:
    """The one weight after each update, with a new value of a group's attribute before it."""
    found = []
    for value, gradient in zip(values, gradients):
        training.optimizer.param_groups[0][name] = value
        training.executor.setOptimizer(training.optimizer)
        training.run([np.full((1, 1), gradient)])
        found.append(float(training.weights[0][0]))
    return found


@pytest.mark.parametrize("combined", [False, True])
@pytest.mark.parametrize("name, values", [
    ("lr", [0.1, 0.2, 0.05, 0.1]), ("momentum", [0.9, 0.5, 0.7, 0.9]), ("weight_decay", [0.1, 0.3, 0.2, 0.1]),
    ("dampening", [0.0, 0.25, 0.5, 0.0]),
])  # fmt: skip
def test_rule_4_4_the_combined_variant_meets_changes_one_update_late(
    name: str, values: List[float], combined: bool
) -> None:
    """Except for lr, and for dampening's factor on the gradient: what is computed ahead uses the old numbers."""
    start: Dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, "dampening": 0.0}
    gradients = [1.0, -2.0, 0.5, 3.0]
    training = Training([np.array([2.0])], sgd(**start, use_combined_accum=combined))
    # Before the first update, the first values are what was computed ahead with.
    start[name] = values[0]
    w, v, old, expected = 2.0, 0.0, dict(start), []
    for value, g in zip(values, gradients):
        now = {**start, name: value}
        ahead = old if combined else now
        v = ahead["momentum"] * v + (1 - ahead["dampening"]) * ahead["weight_decay"] * w + (1 - now["dampening"]) * g
        w, old = w - now["lr"] * v, now
        expected.append(w)
    assert changing(training, gradients, name, values) == pytest.approx(expected, rel=1e-6)


def test_rule_4_4_velocity_scaling_is_ignored_with_a_warning_unless_combined(log: pytest.LogCaptureFixture) -> None:
    training = Training([np.zeros(1)], sgd(momentum=0.9, velocity_scaling=4.0, loss_scaling=16.0))
    assert any("velocity_scaling is ignored" in line for line in log.messages)
    log.clear()
    training.updates(1, [np.ones((1, 1))])
    assert training.state["Accl1___weights.0"].tolist() == [16.0]  # the loss scale's
    combined = sgd(momentum=0.5, velocity_scaling=4.0, loss_scaling=16.0, use_combined_accum=True)
    training = Training([np.zeros(1)], combined).updates(1, [np.ones((1, 1))])
    assert training.state["Accl___weights.0"].tolist() == [2.0]  # 4 x 1, times the momentum ahead of time
    assert training.weights[0] == pytest.approx(-0.01)
    assert log.messages == []


def test_rule_4_4_a_changed_loss_scale_meets_velocities_of_the_old() -> None:
    """They are stored times the loss scale and nobody rescales them: PopTorch's numbers, if not what one wants."""
    training = Training([np.zeros(1)], sgd(lr=1.0, momentum=0.5, loss_scaling=2.0)).updates(1, [np.ones((1, 1))])
    training.optimizer.loss_scaling = 8.0
    training.executor.setOptimizer(training.optimizer)
    training.updates(1, [np.ones((1, 1))])
    # v = 0.5 * 2 + 8 = 9, divided by 8 instead of 0.5 * 1 + 1.
    assert training.weights[0].tolist() == [-1.0 - 9 / 8]


def test_rule_4_4_types_of_the_separate_variant() -> None:
    """Accumulator and velocity are rounded whenever they are stored, and nothing else is."""
    gradients = np.random.default_rng(3).normal(size=(6, 2))
    optimizer = sgd(lr=0.5, momentum=0.9, weight_decay=0.1, velocity_accum_type=torch.float16,
                    accum_type=torch.float16, loss_scaling=8.0)  # fmt: skip
    training = Training([np.full(2, 0.3)], optimizer, options(accumulation=2)).updates(3, [gradients])
    w, v = np.full(2, np.float32(0.3)), np.zeros(2, np.float16)
    for first, second in gradients.astype(np.float32).reshape(3, 2, 2) * np.float32(8):
        s = first.astype(np.float16)
        s = (np.float32(0.5) * s.astype(np.float32) + np.float32(0.5) * second).astype(np.float16)
        g = s.astype(np.float32) / np.float32(8)
        v = (np.float32(0.9) * v.astype(np.float32) + np.float32(8) * (g + np.float32(0.1) * w)).astype(np.float16)
        w = w - np.float32(0.5) / np.float32(8) * v.astype(np.float32)
    assert training.weights[0] == pytest.approx(w, rel=1e-6)
    assert training.state["Accl1___weights.0"].dtype == np.float16
    assert training.state["Accl1___weights.0"].tolist() == v.tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_rule_4_4_the_combined_variant_has_the_weights_type(dtype: torch.dtype) -> None:
    other = torch.float32 if dtype == torch.float16 else torch.float16
    optimizer = sgd(momentum=0.9, use_combined_accum=True, accum_type=other, velocity_accum_type=other)
    training = Training([np.zeros(2)], optimizer, options(accumulation=2), dtype=dtype)
    state = training.updates(1, [np.ones((2, 2))]).state
    assert {name: str(array.dtype) for name, array in state.items()} == {"Accl___weights.0": str(dtype)[6:]}


def test_rule_4_4_plain_sgd_keeps_nothing() -> None:
    """And its options are ignored: a gradient beyond half is added to the weights as it is."""
    half = {"accum_type": torch.float16, "velocity_accum_type": torch.float16}
    training = Training([np.zeros(1)], sgd(lr=1.0, **half)).updates(1, [np.full((1, 1), 1e6)])
    assert training.weights[0].tolist() == [-1e6] and training.state == {}


# --- Adam, AdamW, LAMB, RMSprop ----------------------------------------------------------------------


@pytest.mark.parametrize("values", [{}, {"betas": (0.5, 0.7)}, {"eps": 0.1}, {"weight_decay": 0.3}])
@pytest.mark.parametrize("name, reference", [("Adam", ReferenceAdam), ("AdamW", ReferenceAdamW)])
def test_rule_4_5_adam_is_its_formula_and_torchs(name: str, reference: Any, values: Dict[str, Any]) -> None:
    weights = random_weights()
    follows(Training(weights, making(name, **values), options(accumulation=2)),
            reference(weights, lr=0.01, **values), updates=20, count=2)  # fmt: skip
    gradients = random_gradients(20, weights, seed=5)
    params = [nn.Parameter(torch.as_tensor(weight).clone()) for weight in weights]
    plain = getattr(torch.optim, name)(params, lr=0.01, **values)
    for rows in zip(*gradients):
        for param, row in zip(params, rows):
            param.grad = torch.as_tensor(row)
        plain.step()
    found = Training(weights, making(name, **values)).updates(20, gradients).weights
    assert relative(found, [param.detach().numpy() for param in params]) < 1e-6


@pytest.mark.parametrize("module", [torch.optim, poptorch.optim])
@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_rule_4_5_amsgrad_is_a_value_error(name: str, module: Any) -> None:
    with pytest.raises(ValueError, match="amsgrad"):
        Training(random_weights(), making(name, module, amsgrad=True))


def test_rule_4_5_steps_are_counted_in_float32() -> None:
    training = Training([np.zeros(2)], making("Adam")).updates(3, [np.ones((3, 2))])
    assert training.state["Step___weights.0"].dtype == np.float32
    assert training.state["Step___weights.0"] == 3
    state = training.optimizer.state_dict()
    state["ipu_state"]["Step___weights.0"] = torch.tensor(2.0**24)
    training.optimizer.load_state_dict(state)
    assert training.updates(2, [np.ones((2, 2))]).state["Step___weights.0"] == 2**24


def test_rule_4_5_moments_have_types_of_their_own() -> None:
    gradients = np.random.default_rng(3).normal(size=(5, 3))
    types = {"first_order_momentum_accum_type": torch.float16, "second_order_momentum_accum_type": torch.float16}
    for kinds in ({}, *({name: kind} for name, kind in types.items()), types):
        training = Training([np.full(3, 0.3)], making("AdamW", betas=(0.9, 0.99), **kinds)).updates(5, [gradients])
        first, second = (np.float16 if name in kinds else np.float32 for name in types)
        w, m, v = np.full(3, 0.3), np.zeros(3, first), np.zeros(3, second)
        for t, g in enumerate(gradients.astype(np.float32), start=1):
            m = (m.astype(np.float64) * 0.9 + 0.1 * g).astype(first)
            v = (v.astype(np.float64) * 0.99 + 0.01 * g**2).astype(second)
            x = (m.astype(np.float64) / (1 - 0.9**t)) / (np.sqrt(v.astype(np.float64) / (1 - 0.99**t)) + 1e-8)
            w = w - 0.01 * (x + 0.01 * w)
        assert training.state["Accl1___weights.0"].dtype == first
        assert training.state["Accl2___weights.0"].dtype == second
        assert training.weights[0] == pytest.approx(w, rel=1e-6)


def test_rule_4_6_adamw_corrects_its_bias_whatever_it_is_told() -> None:
    weights = random_weights()
    gradients = random_gradients(4, weights)
    told, not_told = (
        Training(weights, making("AdamW", **values)).updates(4, gradients).weights
        for values in ({"bias_correction": False}, {})
    )
    assert all(np.array_equal(a, b) for a, b in zip(told, not_told))
    assert relative(told, referred(ReferenceAdamW(weights, lr=0.01), 4, gradients)) < 1e-6


@pytest.mark.parametrize("bias_correction", [True, False])
@pytest.mark.parametrize("max_weight_norm", [0.5, 2.5, 100.0])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_rule_4_7_lamb_is_its_formula(bias_correction: bool, max_weight_norm: float, weight_decay: float) -> None:
    """The weights' norms are below and above the bounds."""
    weights = random_weights()
    values = {"bias_correction": bias_correction, "max_weight_norm": max_weight_norm, "weight_decay": weight_decay}
    opts = options(accumulation=3, replicas=2)
    follows(Training(weights, making("LAMB", **values), opts), ReferenceLAMB(weights, lr=0.01, **values), 10, 6)


def test_rule_4_7_lambs_defaults() -> None:
    optimizer = poptorch.optim.LAMB(Given(np.zeros(2)).parameters())
    (group,) = optimizer.param_groups
    assert {name: group[name] for name in ("lr", "betas", "eps", "weight_decay", "max_weight_norm")} == {
        "lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2, "max_weight_norm": 65500.0,
    }  # fmt: skip
    assert optimizer.bias_correction is True


def test_rule_4_7_the_ratio_is_1_without_a_norm() -> None:
    weights = [np.zeros(3), np.ones(2)]
    gradients = [np.ones((1, 3)), np.zeros((1, 2))]
    found = Training(weights, making("LAMB", lr=0.125, weight_decay=0.0)).updates(1, gradients).weights
    assert found[0] == pytest.approx([-0.125] * 3, rel=1e-6)  # x is 1, the weights' norm 0
    assert found[1].tolist() == [1.0, 1.0]  # x is 0


def test_rule_4_7_lambs_own_step_is_for_the_host() -> None:
    weights = random_weights()
    params = [nn.Parameter(torch.as_tensor(weight).clone()) for weight in weights]
    optimizer = poptorch.optim.LAMB(params, lr=0.01, max_weight_norm=1.5)
    gradients = random_gradients(5, weights)
    for rows in zip(*gradients):
        for param, row in zip(params, rows):
            param.grad = torch.as_tensor(row)
        assert optimizer.step(lambda: 7) == 7
    expected = referred(ReferenceLAMB(weights, lr=0.01, max_weight_norm=1.5), 5, gradients)
    assert relative([param.detach().numpy() for param in params], expected) < 1e-12


@pytest.mark.parametrize("use_tf_variant", [False, True])
@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("numbers", [{}, {"alpha": 0.6, "eps": 1e-3, "weight_decay": 0.2}])
def test_rule_4_8_rmsprop_is_its_formula(
    use_tf_variant: bool, centered: bool, momentum: float, numbers: Dict[str, Any]
) -> None:
    weights = random_weights()
    values = {"centered": centered, "momentum": momentum, "use_tf_variant": use_tf_variant, **numbers}
    opts = options(accumulation=2)
    follows(Training(weights, making("RMSprop", **values), opts), ReferenceRMSprop(weights, lr=0.01, **values), 8, 2)


def test_rule_4_8_the_tf_variant_keeps_the_learning_rate_in_the_momentum() -> None:
    gradients, rates = [1.0, -2.0, 0.5], [0.1, 0.4, 0.05]
    training = Training([np.ones(1)], making("RMSprop", lr=0.1, momentum=0.5, use_tf_variant=True))
    w, v, b, expected = 1.0, 1.0, 0.0, []
    for lr, g in zip(rates, gradients):
        v = 0.99 * v + 0.01 * g**2
        b = 0.5 * b + lr * g / np.sqrt(v + 1e-8)
        w -= b
        expected.append(w)
    assert changing(training, gradients, "lr", rates) == pytest.approx(expected, rel=1e-6)


def test_rule_4_8_types_of_the_mean_square_and_the_mean() -> None:
    types = {"first_order_momentum_accum_type": torch.float16, "momentum": 0.5, "centered": True}
    state = Training([np.ones(2)], making("RMSprop", **types)).updates(1, [np.ones((1, 2))]).state
    assert {name: str(array.dtype) for name, array in state.items()} == {
        "Accl1___weights.0": "float16", "Accl2___weights.0": "float32", "Accl3___weights.0": "float32",
    }  # fmt: skip


def test_rule_4_8_groups_must_agree_on_centered() -> None:
    def make(params: Any) -> Any:
        first, second = params
        return poptorch.optim.RMSprop([{"params": [first], "centered": True}, {"params": [second]}], lr=0.1)

    with pytest.raises(AssertionError, match="centered"):
        Training(random_weights(), make)


@pytest.mark.parametrize("name", ["RMSprop", "LAMB"])
def test_rule_4_8_only_sgd_and_adam_clip(name: str) -> None:
    with pytest.raises(TypeError, match="max_grad_norm"):
        Training(random_weights(), making(name, max_grad_norm=1.0))


# --- clipping ----------------------------------------------------------------------------------------


def norm(arrays: Any) -> float:
    return float(np.sqrt(sum((array**2).sum() for array in arrays)))


def clipped(arrays: Any, bound: float, scale: float = 1.0) -> List[Any]:
    """The arrays times max_norm / max(max_norm, norm), whose norm is taken of the scaled ones."""
    factor = bound / max(bound, scale * norm(arrays))
    return [array * factor for array in arrays]


@pytest.mark.parametrize("bound", [0.5, 3.0, 1000.0])
def test_rule_4_9_adam_clips_after_the_decay_term(bound: float) -> None:
    weights = random_weights()
    gradients = random_gradients(12, weights)
    values = {"weight_decay": 0.5, "eps": 1e-3}
    optimizer = making("Adam", max_grad_norm=bound, loss_scaling=64.0, **values)
    found = Training(weights, optimizer, options(accumulation=2)).updates(6, gradients).weights
    reference = ReferenceAdam(weights, lr=0.01, eps=1e-3)  # without decay: it is in what is clipped
    for shares in zip(*(np.split(gradient, 6) for gradient in gradients)):
        decayed = [share.mean(0) + 0.5 * weight for share, weight in zip(shares, reference.weights)]
        reference.update(clipped(decayed, bound))
    assert relative(found, reference.weights) < 1e-6


@pytest.mark.parametrize("bound", [0.5, 1000.0])
def test_rule_4_9_adamw_clips_the_gradient_alone(bound: float) -> None:
    weights = random_weights()
    gradients = random_gradients(12, weights)
    values = {"weight_decay": 0.5, "eps": 1e-3}
    optimizer = making("AdamW", max_grad_norm=bound, loss_scaling=64.0, **values)
    found = Training(weights, optimizer, options(accumulation=2)).updates(6, gradients).weights
    reference = ReferenceAdamW(weights, lr=0.01, **values)
    for shares in zip(*(np.split(gradient, 6) for gradient in gradients)):
        reference.update(clipped([share.mean(0) for share in shares], bound))
    assert relative(found, reference.weights) < 1e-6


@pytest.mark.parametrize("loss_scaling", [1.0, 64.0])
def test_rule_4_9_plain_sgd_clips_the_scaled_gradient(loss_scaling: float) -> None:
    weights = random_weights()
    gradients = random_gradients(5, weights)
    optimizer = sgd(max_grad_norm=3.0, weight_decay=0.5, loss_scaling=loss_scaling)
    found = Training(weights, optimizer).updates(5, gradients).weights
    reference = ReferenceSGD(weights, weight_decay=0.5)
    for rows in zip(*gradients):
        reference.update(clipped(rows, 3.0, loss_scaling))
    assert relative(found, reference.weights) < 1e-6


def test_rule_4_9_plain_sgd_without_loss_scaling_is_torchs_clip_grad_norm() -> None:
    weights = random_weights()
    gradients = random_gradients(5, weights)
    params = [nn.Parameter(torch.as_tensor(weight).clone()) for weight in weights]
    plain = torch.optim.SGD(params, lr=0.01)
    for rows in zip(*gradients):
        for param, row in zip(params, rows):
            param.grad = torch.as_tensor(row)
        torch.nn.utils.clip_grad_norm_(params, 1.5)
        plain.step()
    found = Training(weights, sgd(max_grad_norm=1.5)).updates(5, gradients).weights
    assert relative(found, [param.detach().numpy() for param in params]) < 1e-6


@pytest.mark.parametrize("combined", [False, True])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum, accumulation", [(0.9, 1), (0.9, 3), (None, 3)])
def test_rule_4_9_sgd_clips_the_velocity_and_stores_it_whole(
    combined: bool, nesterov: bool, momentum: Any, accumulation: int
) -> None:
    """What weights are moved by is clipped, with momentum and decay in it, times the velocity's scale."""
    if nesterov and not momentum:
        return
    weights = random_weights()
    gradients = random_gradients(5 * accumulation, weights)
    mm, scale = momentum or 0.0, 4.0 if combined else 16.0
    bound = 2 * scale
    optimizer = sgd(momentum=momentum, nesterov=nesterov or None, weight_decay=0.5, max_grad_norm=bound,
                    loss_scaling=16.0, velocity_scaling=4.0, use_combined_accum=combined)  # fmt: skip
    found = Training(weights, optimizer, options(accumulation=accumulation)).updates(5, gradients).weights
    expected, velocities, factors = list(weights), [np.zeros_like(weight) for weight in weights], []
    for shares in zip(*(np.split(gradient, 5) for gradient in gradients)):
        decayed = [share.mean(0) + 0.5 * weight for share, weight in zip(shares, expected)]
        velocities = [mm * velocity + g for velocity, g in zip(velocities, decayed)]
        steps = [g + mm * v for g, v in zip(decayed, velocities)] if nesterov else velocities
        factors.append(bound / max(bound, scale * norm(steps)))
        expected = [weight - 0.01 * step * factors[-1] for weight, step in zip(expected, steps)]
    assert min(factors) < 0.9
    assert relative(found, expected) < 1e-6


def test_rule_4_9_the_default_is_no_bound_and_nan_is_none() -> None:
    weights = random_weights()
    assert sgd()(Given(*weights).parameters()).max_grad_norm == float("inf")
    training = Training(weights, sgd(max_grad_norm=float("nan")))
    with pytest.raises(poptorch.Error, match="max_grad_norm must not be NaN"):
        training.run(random_gradients(1, weights))


def test_rule_4_9_a_serial_schedule_cannot_clip() -> None:
    weights, opts = random_weights(), options()
    opts._Popart.set("accumulateOuterFragmentSettings.schedule", 1)
    Training(weights, sgd(), opts).run(random_gradients(1, weights))
    training = Training(weights, sgd(max_grad_norm=1.0), opts)
    with pytest.raises(poptorch.Error, match="Serial"):
        training.run(random_gradients(1, weights))
