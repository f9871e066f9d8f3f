"""float16 on the emulator against numpy's half type, rounded after every operator."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np
import poptorch
import pytest
import torch
import torch.nn.functional as F
from emulator_models import Layers, data, options
from hypothesis import given, settings
from hypothesis import strategies as st

from ipu_vit.emulator.arithmetic import HalfArithmetic
from ipu_vit.emulator.random import BitStream
from ipu_vit.emulator.rounding import round_stochastically

Array = Any


def half(array: Array) -> Array:
    return array.astype(np.float16)


def product(a: Array, b: Array) -> Array:
    """A matrix product of halves, accumulated in float32, rounded once."""
    return half(a.astype(np.float32) @ b.astype(np.float32))


@settings(max_examples=50)
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([1e-4, 1.0, 30.0]))
def test_forward_and_backward_round_after_every_operator(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    x, w, r = (half(rng.normal(size=size) * scale) for size in ((5, 7), (7, 4), (5, 4)))
    tx, tw, tr = (torch.from_numpy(array).requires_grad_() for array in (x, w, r))
    with HalfArithmetic():
        hidden = tx @ tw
        out = torch.relu(hidden) * tr
        gradients = torch.autograd.grad(out, [tx, tw, tr], torch.ones_like(out))

    hidden_np = product(x, w)
    relu = np.maximum(hidden_np, 0)
    out_np = half(relu.astype(np.float32) * r.astype(np.float32))
    d_relu = half(np.ones_like(out_np, np.float32) * r.astype(np.float32))
    d_hidden = np.where(hidden_np > 0, d_relu, np.float16(0))
    expected = [product(d_hidden, w.T), product(x.T, d_hidden), half(relu.astype(np.float32))]
    np.testing.assert_array_equal(out.detach().numpy(), out_np)
    for gradient, reference in zip(gradients, expected):
        assert gradient.dtype == torch.float16
        np.testing.assert_allclose(
            gradient.numpy().astype(np.float32), reference.astype(np.float32), rtol=2**-10, atol=2**-24
        )


@pytest.mark.parametrize(
    "operate", [F.gelu, lambda x: x.softmax(-1), lambda x: x.softmax(0)], ids=["gelu", "rows", "columns"]
)
def test_large_tensors_are_no_different(operate: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Large tensors may be worked off in blocks; against float32, rounded once forward and once more backward."""
    generator = torch.Generator().manual_seed(0)
    values, upstream = torch.randn(2, 3, 617, 701, generator=generator).half()
    half_values, float_values = values.clone().requires_grad_(), values.float().requires_grad_()
    with HalfArithmetic():
        out = operate(half_values)
        (gradient,) = torch.autograd.grad(out, half_values, upstream)
    expected = operate(float_values)
    (expected_gradient,) = torch.autograd.grad(expected, float_values, upstream.float())
    assert out.dtype == gradient.dtype == torch.float16
    torch.testing.assert_close(out.float(), expected, rtol=2**-10, atol=2**-24)
    torch.testing.assert_close(gradient.float(), expected_gradient, rtol=2**-8, atol=2**-11)


def test_overflow_is_that_of_half() -> None:
    with HalfArithmetic():
        assert torch.isinf(torch.full((2,), 60000.0).half() * 2).all()
        assert (torch.full((2,), 1e-8).half() * 1.0 == 0).all()


def test_mixed_operands_promote_to_float32() -> None:
    with HalfArithmetic():
        assert (torch.ones(3).half() + torch.full((3,), 2.0**-20)).dtype == torch.float32
        assert (torch.ones(3).half() * 2.0).dtype == torch.float16
        assert (torch.ones(3).half() * torch.tensor(2.0)).dtype == torch.float16
        assert torch.ones(3).half().sum(dtype=torch.float32).dtype == torch.float32


def test_sums_and_factors_are_no_halves() -> None:
    """Half stops counting at 2048, and knows a third to three digits."""
    x, y = torch.ones(5000).half(), torch.full((5000,), 3000.0).half()
    with HalfArithmetic():
        assert x.sum() == 5000
        assert (torch.add(x, y, alpha=1 / 3) == 1001).all()
        assert (y * (1 / 3) == 1000).all()


def test_in_place_operators_write_into_the_half_tensor() -> None:
    target = torch.ones(4).half()
    with HalfArithmetic():
        same = target.mul_(3.0).add_(torch.full((4,), 0.5).half())
    assert same is target
    assert torch.equal(target, torch.full((4,), 3.5).half())


def test_layer_norm_of_halves_is_half_both_ways() -> None:
    x = torch.randn(4, 8).half().requires_grad_()
    w, b = torch.ones(8).half().requires_grad_(), torch.zeros(8).half().requires_grad_()
    with HalfArithmetic():
        out = F.layer_norm(x, (8,), w, b)
        gradients = torch.autograd.grad(out.sum(), [x, w, b])
    assert out.dtype == torch.float16 and all(gradient.dtype == torch.float16 for gradient in gradients)
    torch.testing.assert_close(out.float(), F.layer_norm(x.float(), (8,)), atol=2e-3, rtol=0)


def trained(model: Layers, opts: Any, **optimizer: Any) -> Any:
    """Train a model in half for one call; returns the optimizer's state."""
    model.half()
    sgd = poptorch.optim.SGD(model.parameters(), **optimizer)
    executor = poptorch.trainingModel(model, opts, sgd)
    count = opts.Training.gradient_accumulation * opts.replication_factor * 2
    x, y = data(count)
    executor(x.half(), y)
    executor.copyWeightsToHost()
    return sgd.state_dict()


def test_weights_accumulators_and_momentum_have_their_types() -> None:
    model = Layers()
    state = trained(
        model,
        options(accumulation=4),
        lr=0.1,
        momentum=0.9,
        accum_type=torch.float16,
        velocity_accum_type=torch.float16,
    )["ipu_state"]
    assert state and all(tensor.dtype == torch.float16 for tensor in state.values())
    assert all(parameter.dtype == torch.float16 for parameter in model.parameters())


def test_rule_3_7_sums_in_half_accumulators_overflow_and_running_means_do_not() -> None:
    """Loss scaling × gradient × accumulation passes 65504 only where sums are kept."""
    finite = {}
    for reduction in (poptorch.ReductionType.Sum, poptorch.ReductionType.Mean):
        opts = options(accumulation=512)
        opts.Training.accumulationAndReplicationReductionType(reduction)
        model = Layers()
        trained(model, opts, lr=1e-6, loss_scaling=8192.0, accum_type=torch.float16)
        finite[reduction] = all(bool(torch.isfinite(p).all()) for p in model.parameters())
    assert finite == {poptorch.ReductionType.Sum: False, poptorch.ReductionType.Mean: True}


@pytest.mark.parametrize("low, high", [(1.0, 2.0), (1e-3, 2e-3), (1e-7, 6e-5), (-3.0, 3.0)])
def test_stochastic_rounding_is_unbiased(low: float, high: float) -> None:
    """The mean of many roundings of a value is the value, and each is one of its two neighbours."""
    values = torch.linspace(low, high, 37)
    draws = 20_000
    rounded = round_stochastically(values.repeat(draws, 1), BitStream(5)).double()
    nearest = values.half()
    step = torch.tensor(np.spacing(np.abs(nearest.numpy()))).double()
    assert bool(((rounded - values.double()).abs() <= step * 1.0001).all())
    error = (rounded.mean(0) - values.double()).abs()
    # A rounding's deviation is at most half a step; six of the mean's deviations never happen.
    assert bool((error <= 6 * 0.5 * step / draws**0.5 + step * 2**-13).all())


def test_stochastic_rounding_keeps_what_needs_none() -> None:
    exact = torch.cat([torch.randn(1000).half().float(), torch.tensor([0.0, float("inf"), float("-inf"), 2.0**-24])])
    assert torch.equal(round_stochastically(exact, BitStream(1)).float(), exact)
    assert torch.isnan(round_stochastically(torch.tensor([float("nan")]), BitStream(1))).all()


def test_stochastic_rounding_lets_small_updates_move_weights() -> None:
    """Steps a hundred times below a weight's spacing vanish when rounded to nearest."""
    moved = {}
    for enabled in (False, True):
        opts = options()
        opts.Precision.enableStochasticRounding(enabled)
        model = Layers()
        before = {name: value.half().clone() for name, value in model.state_dict().items()}
        trained(model, opts, lr=1e-5)
        moved[enabled] = any(not torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert moved == {False: False, True: True}
