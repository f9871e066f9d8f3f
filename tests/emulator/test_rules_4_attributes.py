"""Optimizers' attributes and state: rules 4.10 to 4.18, against the formulas in numpy."""

from __future__ import annotations

import copy
import pickle
from typing import Any, Dict, List

import numpy as np
import poptorch
import pytest
import torch
from emulator_models import options
from optimizer_references import (
    CLASSES,
    Given,
    ReferenceAdam,
    ReferenceAdamW,
    ReferenceSGD,
    Training,
    making,
    random_gradients,
    random_weights,
    referred,
    relative,
    sgd,
)


@pytest.mark.parametrize("name, attribute", [
    ("SGD", "accum_type"), ("SGD", "velocity_accum_type"), ("Adam", "accum_type"),
    ("AdamW", "first_order_momentum_accum_type"), ("RMSprop", "second_order_momentum_accum_type"),
    ("LAMB", "accum_type"),
])  # fmt: skip
def test_rule_4_10_only_half_and_float_are_types(name: str, attribute: str) -> None:
    for kind in (torch.float16, torch.float32):
        making(name, **{attribute: kind})(Given(np.zeros(1)).parameters())
    with pytest.raises(AssertionError, match=attribute):
        making(name, **{attribute: torch.bfloat16})(Given(np.zeros(1)).parameters())


def test_rule_4_10_torchs_optimizers_may_be_given_poptorchs_attributes() -> None:
    def make(**attributes: Any) -> Any:
        def optimizer(params: Any) -> Any:
            made = torch.optim.SGD(params, lr=0.01, momentum=0.9)
            vars(made).update(attributes)
            return made

        return optimizer

    training = Training([np.zeros(1)], make(loss_scaling=8.0, velocity_accum_type=torch.float16))
    training.run([np.ones((1, 1))])
    update = training.executor._compiled.runner.updates[0].update
    assert {name: (t.dtype, t.tolist()) for name, t in update.state()["ipu_state"].items()} == {
        "Accl1___weights.0": (torch.float16, [8.0])
    }
    with pytest.raises(ValueError, match="accum_type"):
        Training([np.zeros(1)], make(accum_type=torch.bfloat16))


def test_rule_4_10_halves_are_rounded_at_random_if_the_program_asks_for_it() -> None:
    """A tenth is no half: on average, moments and weights of many elements hold it nevertheless."""
    size = 40_000
    means: Dict[bool, List[float]] = {}
    for stochastic in (False, True):
        opts = options()
        opts.Precision.enableStochasticRounding(stochastic)
        values = {"betas": (0.9, 0.9), "eps": 0.1, "weight_decay": 0.0}
        types = {"first_order_momentum_accum_type": torch.float16, "second_order_momentum_accum_type": torch.float16}
        training = Training([np.zeros(size)], making("Adam", lr=0.1, **values, **types), opts, dtype=torch.float16)
        training.run([np.ones((1, size))])
        stored = [*(training.state[f"Accl{i}___weights.0"] for i in (1, 2)), training.weights[0]]
        means[stochastic] = [float(array.astype(np.float64).mean()) for array in stored]
    exact = [0.1, 0.1, -0.1 / 1.1]
    assert means[True] == pytest.approx(exact, rel=1e-5)
    assert means[False] != pytest.approx(exact, rel=1e-4)


def test_rule_4_11_groups_have_numbers_of_their_own() -> None:
    weights = random_weights()

    def make(params: Any) -> Any:
        first, second = params
        return poptorch.optim.AdamW(
            [{"params": [first], "lr": 0.1, "weight_decay": 0.0}, {"params": [second], "betas": (0.5, 0.6)}], lr=0.02
        )

    gradients = random_gradients(4, weights)
    expected = [
        *referred(ReferenceAdamW(weights[:1], lr=0.1, weight_decay=0.0), 4, gradients[:1]),
        *referred(ReferenceAdamW(weights[1:], lr=0.02, betas=(0.5, 0.6)), 4, gradients[1:]),
    ]
    assert relative(Training(weights, make).updates(4, gradients).weights, expected) < 1e-6


def test_rule_4_11_what_is_per_optimizer_is_ignored_in_groups(log: pytest.LogCaptureFixture) -> None:
    weights = random_weights()

    def make(params: Any) -> Any:
        return poptorch.optim.SGD([{"params": list(params), "loss_scaling": 8.0, "max_grad_norm": 0.1}], lr=0.01)

    training = Training(weights, make)
    gradients = random_gradients(3, weights)
    assert relative(training.updates(3, gradients).weights, referred(ReferenceSGD(weights), 3, gradients)) < 1e-6
    training.executor.setOptimizer(training.optimizer)
    assert log.messages == []  # they were there at wrap
    training.optimizer.param_groups[0]["colour"] = "red"
    for _ in range(2):
        training.executor.setOptimizer(training.optimizer)
    (line,) = log.messages
    assert "colour of group 0" in line


def test_rule_4_11_checks_of_attributes_can_be_relaxed(log: pytest.LogCaptureFixture) -> None:
    weights, opts = random_weights(), options()
    opts.relaxOptimizerAttributesChecks(True)
    training = Training(weights, sgd(), opts).updates(1, random_gradients(1, weights))
    training.optimizer.param_groups[0]["colour"] = "red"
    training.executor.setOptimizer(training.optimizer)
    assert log.messages == []


def test_rule_4_11_only_sgd_needs_a_learning_rate() -> None:
    params = list(Given(np.zeros(1)).parameters())
    with pytest.raises(TypeError, match="lr"):
        poptorch.optim.SGD(params)
    found = {name: getattr(poptorch.optim, name)(params).param_groups[0]["lr"] for name in CLASSES[1:]}
    assert found == {"Adam": 1e-3, "AdamW": 1e-3, "RMSprop": 1e-2, "LAMB": 1e-3}


NEW_VALUES = {
    "lr": 0.5, "weight_decay": 0.25, "momentum": 0.25, "dampening": 0.25, "eps": 0.25, "alpha": 0.25,
    "betas": (0.25, 0.25), "max_weight_norm": 0.25,
}  # fmt: skip


def compiled(name: str, module: Any = poptorch.optim, attributes: Any = (), **values: Any) -> Training:
    weights = random_weights()

    def make(params: Any) -> Any:
        made = getattr(module, name)(params, **{"lr": 0.01, **values})
        vars(made).update(attributes)
        return made

    return Training(weights, make).updates(1, random_gradients(1, weights))


def can_change(training: Training, attribute: str, value: Any) -> bool:
    if attribute in training.optimizer.param_groups[0]:
        training.optimizer.param_groups[0][attribute] = value
    else:
        setattr(training.optimizer, attribute, value)
    try:
        training.executor.setOptimizer(training.optimizer)
    except poptorch.Error as error:
        assert attribute in str(error)
        return False
    return True


PASSED = [
    (name, attribute)
    for name, attributes in {
        "SGD": ["lr", "weight_decay", "momentum", "dampening"],
        "Adam": ["lr", "weight_decay", "eps", "betas"],
        "AdamW": ["lr", "weight_decay", "eps", "betas"],
        "RMSprop": ["lr", "weight_decay", "momentum", "alpha", "eps"],
        "LAMB": ["lr", "weight_decay", "eps", "betas", "max_weight_norm"],
    }.items()
    for attribute in attributes
]


@pytest.mark.parametrize("name, attribute", PASSED)
def test_rule_4_12_what_the_constructor_is_given_is_variable(name: str, attribute: str) -> None:
    default = getattr(poptorch.optim, name)(Given(np.zeros(1)).parameters(), lr=0.01).param_groups[0][attribute]
    assert can_change(compiled(name, **{attribute: default}), attribute, NEW_VALUES[attribute])
    if attribute != "lr":
        assert not can_change(compiled(name), attribute, NEW_VALUES[attribute])


@pytest.mark.parametrize("name", CLASSES)
def test_rule_4_12_the_loss_scale_is_variable_if_given(name: str) -> None:
    assert can_change(compiled(name, loss_scaling=1.0), "loss_scaling", 2.0)
    assert not can_change(compiled(name), "loss_scaling", 2.0)


def test_rule_4_12_variable_attributes_can_be_marked_before_compile() -> None:
    weights = random_weights()
    training = Training(weights, sgd(weight_decay=0.1))
    training.optimizer.variable_attrs.markAsVariable("dampening")
    training.optimizer.variable_attrs.markAsConstant("weight_decay")
    training.executor.setOptimizer(training.optimizer)
    training.updates(1, random_gradients(1, weights))
    assert can_change(training, "dampening", 0.25)
    assert not can_change(training, "weight_decay", 0.25)
    with pytest.raises(AssertionError, match="colour"):
        training.optimizer.variable_attrs.markAsVariable("colour")


@pytest.mark.parametrize("name, attribute, value, changes", [
    ("SGD", "lr", 0.01, True), ("SGD", "weight_decay", 0.0, False), ("SGD", "weight_decay", 0.1, True),
    ("SGD", "momentum", 0.0, False), ("SGD", "momentum", 0.9, True), ("SGD", "dampening", 0.0, False),
    ("Adam", "weight_decay", 0.0, False), ("Adam", "weight_decay", 0.01, True), ("Adam", "eps", 1e-8, False),
    ("AdamW", "weight_decay", 0.01, False), ("AdamW", "weight_decay", 0.0, True), ("AdamW", "eps", 1e-3, True),
    ("AdamW", "betas", (0.5, 0.6), False), ("RMSprop", "alpha", 0.5, False), ("RMSprop", "eps", 1e-3, True),
    ("RMSprop", "momentum", 0.9, True),
])  # fmt: skip
def test_rule_4_12_torchs_attributes_are_constant_at_certain_values(
    name: str, attribute: str, value: Any, changes: bool
) -> None:
    training = compiled(name, torch.optim, **{attribute: value})
    assert can_change(training, attribute, NEW_VALUES[attribute]) == changes


def test_rule_4_12_torchs_nesterov_and_loss_scale() -> None:
    assert not can_change(compiled("SGD", torch.optim, momentum=0.9), "nesterov", True)
    assert can_change(compiled("SGD", torch.optim, {"loss_scaling": 2.0}), "loss_scaling", 4.0)
    assert not can_change(compiled("SGD", torch.optim, {"loss_scaling": 1.0}), "loss_scaling", 4.0)


def test_rule_4_12_a_variable_cannot_become_constant() -> None:
    """torch's weight decay of 0 is a constant, so it cannot be switched off either."""
    assert not can_change(compiled("SGD", torch.optim, weight_decay=0.1), "weight_decay", 0.0)


def test_rule_4_12_a_constant_cannot_become_variable() -> None:
    training = compiled("SGD")
    training.optimizer.variable_attrs.markAsVariable("momentum")
    assert not can_change(training, "momentum", 0.0)


def test_rule_4_12_refused_changes_change_nothing() -> None:
    training = compiled("SGD", weight_decay=0.0)
    before = training.weights
    training.optimizer.param_groups[0]["lr"] = 1.0
    assert not can_change(training, "momentum", 0.5)
    gradients = random_gradients(1, before)
    training.updates(1, gradients)
    assert relative(training.weights, [w - 0.01 * g[0] for w, g in zip(before, gradients)]) < 1e-6


def test_rule_4_13_an_explicit_momentum_of_0_costs_a_velocity() -> None:
    assert list(compiled("SGD", momentum=0.0).state) == ["Accl1___weights.0", "Accl1___weights.1"]
    assert compiled("SGD").state == {}


@pytest.mark.parametrize("before, after, what", [
    (sgd(), making("Adam"), "kind of optimizer"),
    (sgd(momentum=0.9), sgd(momentum=0.9, use_combined_accum=True), "kind of optimizer"),
    (sgd(momentum=0.9), sgd(momentum=0.9, velocity_accum_type=torch.float16), "velocity"),
    (making("Adam"), making("Adam", second_order_momentum_accum_type=torch.float16), "second momentum"),
    (sgd(), sgd(max_grad_norm=1.0), "max_grad_norm"),
    (sgd(), sgd(momentum=0.9), "momentum"),
    (making("RMSprop"), making("RMSprop", use_tf_variant=True), "use_tf_variant"),
    (sgd(), lambda p: poptorch.optim.SGD([{"params": [each]} for each in p], lr=0.1), "number of parameter groups"),
])  # fmt: skip
def test_rule_4_13_what_can_never_change(before: Any, after: Any, what: str) -> None:
    weights = random_weights()
    training = Training(weights, before).updates(1, random_gradients(1, weights))
    with pytest.raises(poptorch.Error, match=what):
        training.executor.setOptimizer(after(training.model.parameters()))


def test_rule_4_14_a_scheduler_alone_does_nothing() -> None:
    weights, opts = [np.zeros(1)], options(iterations=2)
    training = Training(weights, sgd(lr=1.0), opts)
    # Made after the wrap, and setting the optimizer's rate to 0.25 when it is made.
    scheduler = torch.optim.lr_scheduler.LambdaLR(training.optimizer, lambda epoch: 2.0 ** (epoch - 2))
    rows = [np.ones((2, 1))]
    training.run(rows)
    assert training.weights[0].tolist() == [-2.0]
    training.optimizer.step()  # or torch warns
    scheduler.step()
    training.run(rows)
    assert training.weights[0].tolist() == [-4.0]
    training.executor.setOptimizer(training.optimizer)
    training.run(rows)
    assert training.weights[0].tolist() == [-5.0]  # 0.5 in both device iterations


@pytest.mark.parametrize("name", CLASSES)
def test_rule_4_14_schedulers_work_on_every_optimizer(name: str) -> None:
    training = Training([np.ones(2)], making(name, lr=1.0))
    scheduler = torch.optim.lr_scheduler.StepLR(training.optimizer, 1, gamma=0.5)
    rates = []
    for _ in range(3):
        training.executor.setOptimizer(training.optimizer)
        training.run([np.ones((1, 2))])
        rates.append(training.optimizer.param_groups[0]["lr"])
        training.optimizer.step()
        scheduler.step()
    assert rates == [1.0, 0.5, 0.25]


@pytest.mark.parametrize("module", [torch.optim, poptorch.optim])
@pytest.mark.parametrize("name, attribute, value", [
    ("SGD", "lr", torch.tensor(0.1)), ("SGD", "momentum", "0.9"), ("Adam", "eps", torch.tensor(1e-8)),
    ("Adam", "betas", [0.9, 0.99]), ("AdamW", "betas", (0.9, torch.tensor(0.99))), ("RMSprop", "alpha", None),
])  # fmt: skip
def test_rule_4_15_values_are_python_numbers(name: str, attribute: str, value: Any, module: Any) -> None:
    model = Given(*random_weights())
    optimizer = making(name, module)(model.parameters())
    optimizer.param_groups[0][attribute] = value
    with pytest.raises(AssertionError, match=attribute):
        poptorch.trainingModel(model, None, optimizer)


def test_rule_4_16_parameters_of_another_model_are_a_key_error() -> None:
    model, other = Given(*random_weights()), Given(*random_weights())
    executor = poptorch.trainingModel(model, None, poptorch.optim.SGD(other.parameters(), lr=0.1))
    with pytest.raises(KeyError, match="not one of the wrapped model's"):
        executor(*(torch.ones(1, *weight.shape) for weight in model.weights))


def test_rule_4_16_parameters_no_group_holds_stay_as_they_are() -> None:
    weights = random_weights()
    gradients = random_gradients(2, weights)
    training = Training(weights, lambda params: poptorch.optim.Adam([next(params)])).updates(2, gradients)
    assert relative(training.weights[:1], referred(ReferenceAdam(weights[:1]), 2, gradients[:1])) < 1e-6
    assert np.array_equal(training.weights[1], weights[1].astype(np.float32))


# --- state -------------------------------------------------------------------------------------------

STATEFUL = [
    sgd(momentum=0.9, loss_scaling=8.0),
    sgd(momentum=0.9, weight_decay=0.1, use_combined_accum=True),
    making("Adam"),
    making("AdamW", first_order_momentum_accum_type=torch.float16),
    making("LAMB"),
    making("RMSprop", momentum=0.9, centered=True),
]


@pytest.mark.parametrize("optimizer", STATEFUL)
def test_rule_4_17_training_goes_on_where_it_was(optimizer: Any) -> None:
    weights = random_weights()
    gradients = random_gradients(8, weights)
    whole = Training(weights, optimizer).updates(8, gradients)
    first = Training(weights, optimizer).updates(4, [gradient[:4] for gradient in gradients])
    state = copy.deepcopy(first.optimizer.state_dict())
    second = Training(first.weights, optimizer)
    second.optimizer.load_state_dict(state)  # before it is compiled
    third = Training(first.weights, optimizer).updates(2, random_gradients(2, weights, seed=9))
    with torch.no_grad():
        for parameter, weight in zip(third.model.weights, first.weights):
            parameter.copy_(torch.as_tensor(weight))
    third.executor.copyWeightsToDevice()
    third.optimizer.load_state_dict(state)  # and after
    for training in (second, third):
        training.updates(4, [gradient[4:] for gradient in gradients])
        assert all(np.array_equal(a, b) for a, b in zip(training.weights, whole.weights))


def test_rule_4_17_what_was_loaded_goes_to_the_device_once() -> None:
    training, other = Training([np.zeros(1)], sgd(momentum=0.5)), Training([np.zeros(1)], sgd(momentum=0.5))
    rows = [np.ones((1, 1))]
    other.run(rows)
    training.optimizer.load_state_dict(other.optimizer.state_dict())
    for _ in range(2):
        training.run(rows)
        training.executor.setOptimizer(training.optimizer)
    assert training.state["Accl1___weights.0"].tolist() == [1.75]


@pytest.mark.parametrize("name, prefixes", [
    ("Adam", ["Accl1", "Accl2", "Step"]), ("AdamW", ["Accl1", "Accl2", "Step"]), ("LAMB", ["Accl1", "Accl2", "Step"]),
    ("RMSprop", ["Accl1"]),
])  # fmt: skip
def test_rule_4_17_the_state_holds_moments_and_steps(name: str, prefixes: List[str]) -> None:
    training = compiled(name)
    state = training.optimizer.state_dict()
    assert {"ipu_state", "ipu_param", "state", "param_groups"} <= set(state)
    assert sorted(state["ipu_state"]) == sorted(f"{p}___weights.{i}" for p in prefixes for i in (0, 1))
    for i, weight in enumerate(training.weights):
        assert training.state[f"Accl1___weights.{i}"].shape == weight.shape
    assert state["param_groups"][0]["lr"] == 0.01


def test_rule_4_17_before_the_wrap_the_state_is_torchs() -> None:
    optimizer = poptorch.optim.SGD(Given(np.zeros(1)).parameters(), lr=0.1)
    assert set(optimizer.state_dict()) == {"state", "param_groups"}
    assert not optimizer.has_state() and optimizer.get_state_dict() == {}


@pytest.mark.parametrize("missing", ["ipu_state", "ipu_param"])
def test_rule_4_17_only_the_devices_state_can_be_loaded(missing: str) -> None:
    training = compiled("SGD", momentum=0.9)
    state = training.optimizer.state_dict()
    del state[missing]
    with pytest.raises(RuntimeError, match="PopTorch"):
        training.optimizer.load_state_dict(state)


def test_rule_4_17_state_of_other_weights_does_not_fit() -> None:
    training, other = compiled("SGD", momentum=0.9), Training([np.zeros(7)], sgd(momentum=0.9))
    other.run([np.ones((1, 7))])
    state = {**other.optimizer.state_dict(), "param_groups": training.optimizer.state_dict()["param_groups"]}
    with pytest.raises(RuntimeError, match="fits no parameter"):
        training.optimizer.load_state_dict(state)


def test_rule_4_17_loading_brings_back_the_groups_numbers() -> None:
    training = compiled("SGD", momentum=0.9)
    training.optimizer.param_groups[0]["lr"] = 0.125
    state = training.optimizer.state_dict()
    training.optimizer.param_groups[0]["lr"] = 5.0
    training.optimizer.load_state_dict(state)
    assert training.optimizer.param_groups[0]["lr"] == 0.125


def test_rule_4_17_velocities_stay_when_another_optimizer_takes_over() -> None:
    weights = random_weights()
    gradients = random_gradients(6, weights)
    training = Training(weights, sgd(momentum=0.9)).updates(3, [gradient[:3] for gradient in gradients])
    old = training.optimizer
    kept = {name: tensor.clone() for name, tensor in old.state_dict()["ipu_state"].items()}
    training.optimizer = poptorch.optim.SGD(training.model.parameters(), lr=0.02, momentum=0.9)
    training.executor.setOptimizer(training.optimizer)
    training.updates(3, [gradient[3:] for gradient in gradients])
    reference = ReferenceSGD(weights, momentum=0.9)
    referred(reference, 3, [gradient[:3] for gradient in gradients])
    reference.values["lr"] = 0.02
    expected = referred(reference, 3, [gradient[3:] for gradient in gradients])
    assert relative(training.weights, expected) < 1e-6
    assert all(torch.equal(tensor, kept[name]) for name, tensor in old.state_dict()["ipu_state"].items())


def test_rule_4_17_state_survives_destroy_and_pickling() -> None:
    training = compiled("Adam", max_grad_norm=7.0, accum_type=torch.float16)
    state = training.optimizer.state_dict()
    training.executor.destroy()
    copied = pickle.loads(pickle.dumps(training.optimizer))
    for optimizer in (training.optimizer, copied, copy.deepcopy(copied)):
        assert optimizer.max_grad_norm == 7.0 and optimizer.accum_type == torch.float16
        assert not optimizer.variable_attrs.isConstant("lr")
        found = optimizer.state_dict()["ipu_state"]
        assert list(found) == list(state["ipu_state"])
        assert all(torch.equal(tensor, state["ipu_state"][name]) for name, tensor in found.items())


@pytest.mark.parametrize("name", CLASSES)
def test_rule_4_18_every_device_iteration_is_an_update(name: str) -> None:
    weights = random_weights()
    gradients = random_gradients(12, weights)
    at_once = Training(weights, making(name), options(accumulation=2, iterations=3)).updates(2, gradients)
    one_by_one = Training(weights, making(name), options(accumulation=2)).updates(6, gradients)
    assert all(np.array_equal(a, b) for a, b in zip(at_once.weights, one_by_one.weights))
