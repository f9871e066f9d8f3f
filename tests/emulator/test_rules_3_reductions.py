"""Accumulation, replicas and loss scaling: every rule of section 3 against numpy."""

from __future__ import annotations

from typing import Any, List

import numpy as np
import poptorch
import pytest
import torch
from emulator_models import options
from optimizer_references import (
    REFERENCES,
    Given,
    ReferenceSGD,
    Training,
    making,
    random_gradients,
    random_weights,
    referred,
    relative,
)

from ipu_vit.emulator.update.reduction import all_reduce

MEAN, SUM = poptorch.ReductionType.Mean, poptorch.ReductionType.Sum
RUNNING, POST = poptorch.MeanReductionStrategy.Running, poptorch.MeanReductionStrategy.Post


def reducing(reduction: Any = MEAN, strategy: Any = POST, **how: int) -> Any:
    opts = options(**how)
    opts.Training.accumulationAndReplicationReductionType(reduction)
    opts.Training.setMeanAccumulationAndReplicationReductionStrategy(strategy)
    return opts


def sgd(**values: Any) -> Any:
    return making("SGD", **{"lr": 0.1, **values})


# --- reduction ---------------------------------------------------------------------------------------


def test_rule_3_1_the_default_is_the_mean() -> None:
    assert poptorch.Options().Training.accumulation_and_replication_reduction_type == MEAN


def test_rule_3_1_no_reduction_is_refused_when_it_is_set() -> None:
    with pytest.raises(ValueError, match="NoReduction"):
        poptorch.Options().Training.accumulationAndReplicationReductionType(poptorch.ReductionType.NoReduction)


@pytest.mark.parametrize("reduction", [MEAN, SUM])
@pytest.mark.parametrize("strategy", [POST, RUNNING])
@pytest.mark.parametrize("accumulation, replicas", [(6, 1), (1, 4), (3, 2), (2, 4)])
def test_rule_3_2_mean_divides_by_steps_and_replicas_and_sum_by_neither(
    reduction: Any, strategy: Any, accumulation: int, replicas: int
) -> None:
    weights = random_weights()
    gradients = random_gradients(accumulation * replicas, weights)
    found = Training(weights, sgd(), reducing(reduction, strategy, accumulation=accumulation, replicas=replicas))
    expected = referred(ReferenceSGD(weights, lr=0.1), 1, gradients, mean=reduction == MEAN)
    assert relative(found.updates(1, gradients).weights, expected) < 1e-6


def test_rule_3_2_a_replica_alone_keeps_its_sums() -> None:
    """Over several processes: see `tests/distributed`."""
    sums = [torch.randn(7), torch.randn(3)]
    assert all(
        ours is theirs for ours, theirs in zip(all_reduce([sums], [True, False], poptorch.Options(), None), sums)
    )


def half_weights(strategy: Any, gradients: List[float], replicas: int = 1, **values: Any) -> Any:
    """What one update with half accumulators moves weights of 0 by, at a learning rate of 1."""
    opts = reducing(MEAN, strategy, accumulation=len(gradients) // replicas, replicas=replicas)
    optimizer = sgd(lr=1.0, accum_type=torch.float16, **values)
    return -Training([np.zeros(3)], optimizer, opts).updates(1, [np.outer(gradients, np.ones(3))]).weights[0]


def test_rule_3_3_running_means_are_kept_in_the_accumulators_type() -> None:
    """s = f/(f+1)*s + g/(f+1), rounded to half every time."""
    gradients = np.random.default_rng(0).normal(size=9) * 100
    mean = np.float16(0)
    for f, g in enumerate(gradients):
        mean = np.float16(np.float32(mean) * np.float32(f / (f + 1)) + np.float32(g) * np.float32(1 / (f + 1)))
    found = half_weights(RUNNING, gradients.tolist())
    assert found == pytest.approx(np.full(3, mean), rel=1e-6)
    assert abs(mean - gradients.mean()) > 1e-3  # the rounding shows


def test_rule_3_3_running_means_do_not_overflow_where_sums_do() -> None:
    gradients = [60000.0] * 8
    assert half_weights(RUNNING, gradients) == pytest.approx(60000.0)
    opts = reducing(SUM, POST, accumulation=8)
    summed = Training([np.zeros(3)], sgd(accum_type=torch.float16), opts).updates(1, [np.outer(gradients, np.ones(3))])
    assert np.isinf(summed.weights[0]).all()


def test_rule_3_3_running_means_of_replicas_are_averaged() -> None:
    assert half_weights(RUNNING, [60000.0] * 8, replicas=4) == pytest.approx(60000.0)


def test_rule_3_4_half_accumulators_choose_running_on_the_executors_copy() -> None:
    opts = reducing(accumulation=2)
    training = Training(random_weights(), sgd(accum_type=torch.float16), opts)
    chosen = training.executor.options.Training.meanAccumulationAndReplicationReductionStrategy
    assert chosen == RUNNING
    assert opts.Training.meanAccumulationAndReplicationReductionStrategy == POST
    assert half_weights(POST, [60000.0] * 8) == pytest.approx(60000.0)


@pytest.mark.parametrize(
    "values", [{}, {"accum_type": torch.float32}, {"accum_type": torch.float16, "use_combined_accum": True}]
)
def test_rule_3_4_other_optimizers_leave_the_strategy_alone(values: Any) -> None:
    training = Training(random_weights(), sgd(momentum=0.9, **values), reducing(accumulation=2))
    assert training.executor.options.Training.meanAccumulationAndReplicationReductionStrategy == POST


def test_rule_3_4_changing_to_half_accumulators_after_compile_is_a_value_error() -> None:
    weights = random_weights()
    training = Training(weights, sgd(), reducing(accumulation=2)).updates(1, random_gradients(2, weights))
    half = poptorch.optim.SGD(training.model.parameters(), lr=0.1, accum_type=torch.float16)
    with pytest.raises(ValueError, match="Running"):
        training.executor.setOptimizer(half)
    # With running means already, what is left is the type that cannot change (rule 4.13).
    training = Training(weights, sgd(), reducing(MEAN, RUNNING, accumulation=2))
    training.updates(1, random_gradients(2, weights))
    half = poptorch.optim.SGD(training.model.parameters(), lr=0.1, accum_type=torch.float16)
    with pytest.raises(poptorch.Error, match="accum_type"):
        training.executor.setOptimizer(half)


def test_rule_3_5_post_and_loss_is_out_of_range_when_compiling() -> None:
    weights = random_weights()
    opts = reducing(MEAN, poptorch.MeanReductionStrategy.PostAndLoss, accumulation=2)
    training = Training(weights, sgd(), opts)
    with pytest.raises(poptorch.Error, match="out of range"):
        training.run(random_gradients(2, weights))
    # Half accumulators choose another strategy before anybody looks (rule 3.4).
    Training(weights, sgd(accum_type=torch.float16), opts).run(random_gradients(2, weights))


# --- loss scaling ------------------------------------------------------------------------------------

EVERY_OPTIMIZER = [
    ("SGD", {"momentum": 0.9, "weight_decay": 0.1}),
    ("SGD", {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True, "use_combined_accum": True}),
    ("Adam", {"weight_decay": 0.1}),
    ("AdamW", {"weight_decay": 0.1}),
    ("LAMB", {"weight_decay": 0.1}),
    ("RMSprop", {"weight_decay": 0.1, "momentum": 0.9, "centered": True}),
]


@pytest.mark.parametrize("name, values", EVERY_OPTIMIZER)
def test_rule_3_6_the_loss_scale_cancels_out(name: str, values: Any) -> None:
    """Decay, moments and update are those of the unscaled problem: powers of two change no bit."""
    weights = random_weights()
    gradients = random_gradients(12, weights)

    def trained(loss_scaling: float) -> Any:
        make = making(name, loss_scaling=loss_scaling, **values)
        return Training(weights, make, options(accumulation=2, replicas=2)).updates(3, gradients).weights

    plain, scaled = trained(1.0), trained(4096.0)
    assert all(np.array_equal(a, b) for a, b in zip(plain, scaled))
    known = {key: value for key, value in values.items() if key != "use_combined_accum"}
    expected = referred(REFERENCES[name](weights, lr=0.01, **known), 3, gradients)
    assert relative(plain, expected) < 1e-6


@pytest.mark.parametrize("gradient, finite", [(1.999, True), (2.001, False)])
def test_rule_3_7_accumulators_hold_the_loss_scale_and_all_steps(gradient: float, finite: bool) -> None:
    """loss_scaling x A x gradient stays below 65504, or not: 4094 x 8 x 2 is the limit."""
    opts = reducing(SUM, accumulation=8)
    optimizer = sgd(lr=1.0, loss_scaling=4094.0, accum_type=torch.float16)
    found = Training([np.zeros(2)], optimizer, opts).updates(1, [np.full((8, 2), gradient)]).weights[0]
    assert np.isfinite(found).all() == finite
    if finite:
        assert found == pytest.approx(-8 * gradient, rel=1e-3)


def test_rule_3_7_without_accumulation_there_is_no_accumulator() -> None:
    """A gradient goes into the update in the weights' type, whatever accum_type says."""
    optimizer = sgd(lr=1.0, accum_type=torch.float16)
    found = Training([np.zeros(1)], optimizer, options()).updates(1, [np.full((1, 1), 1e6)]).weights[0]
    assert found == pytest.approx(-1e6)


def test_rule_3_8_the_reported_loss_is_not_scaled() -> None:
    weights = random_weights()
    gradients = random_gradients(1, weights)
    loss = Training(weights, sgd(loss_scaling=1024.0), options()).run(gradients)
    assert float(loss) == pytest.approx(sum((w * g[0]).sum() for w, g in zip(weights, gradients)), rel=1e-5)


# --- automatic loss scaling --------------------------------------------------------------------------


class Scaled(Training):
    """Half weights with automatic loss scaling.

    Of four weights, nine gradients count: theirs, those of their four products with the rows, and of the sum.
    """

    def __init__(self, size: int = 4, dtype: torch.dtype = torch.float16, opts: Any = None, **values: Any) -> None:
        opts = opts or options()
        opts.Training.setAutomaticLossScaling(True)
        super().__init__([np.zeros(size)], sgd(**{"lr": 2.0**-10, **values}), opts, dtype=dtype)

    @property
    def scale(self) -> float:
        return float(self.state["lossScaleUpdateFactor"] * self.optimizer.loss_scaling)

    def scales(self, *calls: Any) -> List[float]:
        """The scale after each call, whose rows are given."""
        found = []
        for rows in calls:
            self.run([np.array(rows, dtype=np.float64)])
            found.append(self.scale)
        return found


CALM, WILD = [[0.0] * 4], [[0.0, 0.0, 0.0, 9000.0]]


def test_rule_3_9_the_scale_doubles_until_gradients_come_near_the_range_of_half() -> None:
    """The edge is an eighth of 65504; the scale that a call ran with is the one before it."""
    training = Scaled(loss_scaling=2.0)
    gradient = [[1000.0] * 4]  # times 8 below the edge of 8188, times 16 above
    assert training.scales(gradient, gradient, gradient, gradient, gradient) == [4, 8, 16, 8, 16]


def test_rule_3_9_the_scale_does_not_change_the_update() -> None:
    training = Scaled(loss_scaling=2.0, lr=2.0**-4)
    for count in range(1, 7):
        training.run([[[1.0, 2.0, 3.0, -4.0]]])
        assert training.weights[0].tolist() == [-count * v / 16 for v in (1, 2, 3, -4)]


def test_rule_3_9_the_velocity_keeps_its_scale() -> None:
    """It is tied to loss_scaling, which the program sets, and not to the automatic factor on it."""
    training = Scaled(loss_scaling=4.0, lr=2.0**-4, momentum=0.5)
    reference = ReferenceSGD([np.zeros(4)], lr=2.0**-4, momentum=0.5)
    for _ in range(5):
        training.run([[[1.0, 2.0, 3.0, -4.0]]])
        reference.update([np.array([1.0, 2.0, 3.0, -4.0])])
    assert training.scale > 4.0
    assert training.weights[0].tolist() == reference.weights[0].tolist()
    assert training.state["Accl1___weights.0"].tolist() == (4.0 * reference.velocities[0]).tolist()


@pytest.mark.parametrize("share, halves", [(0.0, True), (0.11, True), (0.112, False), (0.3, False)])
def test_rule_3_9_the_share_of_large_elements_decides(share: float, halves: bool) -> None:
    """One of nine elements is above the edge."""
    opts = options()
    opts._Popart.set("automaticLossScalingSettings.thresholdUpperCountProportion", share)
    assert Scaled(opts=opts).scales(WILD) == [0.5 if halves else 2.0]


def test_rule_3_9_the_edge_can_be_moved() -> None:
    opts = options()
    opts._Popart.set("automaticLossScalingSettings.binEdgeLocation", 0.5)
    assert Scaled(opts=opts).scales(WILD) == [2.0]


def test_rule_3_9_all_steps_and_replicas_count_together() -> None:
    opts = options(accumulation=2, replicas=2)
    opts._Popart.set("automaticLossScalingSettings.thresholdUpperCountProportion", 0.04)
    training = Scaled(opts=opts)
    assert training.scales(CALM * 3 + WILD, CALM * 2 + WILD * 2) == [2.0, 1.0]  # 1 of 36 elements, then 2


def test_rule_3_9_gradients_of_activations_count() -> None:
    """The weights' are 0, for the inputs are; the scale itself is the gradient of what follows."""
    assert Scaled(loss_scaling=2.0**12).scales(CALM, CALM, CALM) == [2.0**13, 2.0**12, 2.0**13]  # the edge is 8188


def test_rule_3_9_half_activations_of_float32_weights_count() -> None:
    class Mixed(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return poptorch.identity_loss((super().forward(x).half() * 3000).float().sum(), "none")

    model, opts = Mixed(2, 1), options()
    opts.Training.setAutomaticLossScaling(True)
    optimizer = poptorch.optim.SGD(model.parameters(), lr=0.0, loss_scaling=4.0)
    executor = poptorch.trainingModel(model, opts, optimizer)
    executor(torch.ones(1, 2))
    assert float(optimizer.state_dict()["ipu_state"]["lossScaleUpdateFactor"]) == 0.5
    assert executor.isCompiled()


def test_rule_3_9_the_period_counts_updates() -> None:
    opts = options()
    opts._Popart.set("automaticLossScalingSettings.updatePeriod", 3)
    assert Scaled(opts=opts).scales(CALM, WILD, WILD, CALM, CALM, CALM) == [2, 2, 2, 4, 4, 4]


def test_rule_3_9_the_scale_stays_finite() -> None:
    opts = options()
    opts._Popart.set("automaticLossScalingSettings.binEdgeLocation", 1.0)
    assert Scaled(opts=opts, loss_scaling=2.0**13).scales(*[CALM] * 5) == [2.0**14] + [2.0**15] * 4
    assert Scaled().scales([[float("nan")] * 4])[-1] == 0.5  # what is not a number is not small


def test_rule_3_9_the_scale_multiplies_the_programs() -> None:
    """Both are float32: loss_scaling may change, and the factor stays."""
    training = Scaled(loss_scaling=3.0)
    training.scales(CALM, CALM)
    training.optimizer.loss_scaling = 5.0
    training.executor.setOptimizer(training.optimizer)
    assert training.scale == 20.0
    assert training.state["lossScaleUpdateFactor"].dtype == np.float32


def test_rule_3_9_the_loss_scale_becomes_variable() -> None:
    plain = poptorch.optim.SGD(Given(np.zeros(2)).parameters(), lr=0.1)
    assert plain.variable_attrs is not None and plain.variable_attrs.isConstant("loss_scaling")
    assert not Scaled().optimizer.variable_attrs.isConstant("loss_scaling")


def test_rule_3_9_without_half_gradients_compiling_fails() -> None:
    with pytest.raises(poptorch.Error, match="float16"):
        Scaled(dtype=torch.float32).run([CALM])


@pytest.mark.parametrize("name", ["binEdgeLocation", "thresholdUpperCountProportion"])
def test_rule_3_9_settings_out_of_range_fail_when_compiling(name: str) -> None:
    opts = options()
    opts._Popart.set(f"automaticLossScalingSettings.{name}", 1.5)
    with pytest.raises(poptorch.Error, match=name):
        Scaled(opts=opts).run([CALM])


def test_rule_3_9_the_factor_travels_with_the_state() -> None:
    first = Scaled()
    first.scales(CALM, CALM, CALM)
    second = Scaled()
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    assert second.scales(CALM) == [16.0]
