"""Section 6: number formats and random numbers, against numpy halves, float64 and statistics."""

from __future__ import annotations

import copy
import itertools
import warnings
from typing import Any, Callable, Dict, List, Optional, Tuple

import numpy as np
import poptorch
import pytest
import torch
import torch.nn.functional as F
from emulator_models import Layers, data, options
from operator_models import Calls, infer
from torch import Tensor, nn

from ipu_vit.emulator.half import HalfArithmetic

Array = Any


def half(array: Array) -> Array:
    """To the nearest half."""
    return np.asarray(array).astype(np.float16)


def exact(array: Array) -> Array:
    return np.asarray(array).astype(np.float64)


def halves_apart(found: Tensor, expected: Array) -> Array:
    """How many halves lie between two arrays, element by element."""
    numbers = [half(array).view(np.int16).astype(np.int64) for array in (found.detach().numpy(), expected)]
    ordered = [np.where(each < 0, -(each & 0x7FFF), each) for each in numbers]
    return np.abs(ordered[0] - ordered[1])


# Training in half (6.1) --------------------------------------------------------------------------


class HalfLayer(nn.Module):
    """A layer without bias, a rectifier, and a loss that is a weighted sum."""

    def __init__(self, weight: Array) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.from_numpy(weight.copy()))

    def forward(self, x: Tensor, r: Tensor) -> Tuple[Tensor, Tensor]:
        out = torch.relu(x @ self.weight) * r
        return out, poptorch.identity_loss(out.sum(), "none")


def dyadic(rng: Any, *shape: int) -> Array:
    """Halves of few digits, whose sums of products are exact in float32 in any order."""
    return half(rng.integers(-40, 40, size=shape) / 16)


class HalfTraining:
    """What a device does with `HalfLayer`, written down with numpy: a rounding after every operator and store."""

    def __init__(self, weight: Array, accum: Any, velocity: Any, scale: float, **hyper: float) -> None:
        self.weight, self.accum, self.scale, self.hyper = weight.copy(), accum, scale, hyper
        self.velocity = np.zeros_like(weight, dtype=velocity)

    def gradient(self, x: Array, r: Array) -> Tuple[Array, Array]:
        """The output and the gradient times the loss scale, of one micro batch."""
        hidden = half(exact(x) @ exact(self.weight))
        out = half(np.maximum(exact(hidden), 0) * exact(r))
        d_out = half(np.full(out.shape, self.scale))
        d_hidden = np.where(hidden > 0, half(exact(d_out) * exact(r)), np.float16(0))
        return out, half(exact(x).T @ exact(d_hidden))

    def update(self, micro_batches: List[Tuple[Array, Array]]) -> List[Array]:
        """One update with the mean of the gradients; returns the outputs."""
        outputs, total = [], None
        for position, (x, r) in enumerate(micro_batches):
            out, gradient = self.gradient(x, r)
            outputs.append(out)
            if total is None:
                total = gradient.astype(self.accum)
            elif self.accum is np.float16:  # which chooses running means (rule 3.4)
                share = np.float32(1 / (position + 1))
                before = total.astype(np.float32) * np.float32(1 - 1 / (position + 1))
                total = half(before + gradient.astype(np.float32) * share)
            else:
                total = total + gradient.astype(np.float32)
        assert total is not None
        divisor = self.scale * (1 if self.accum is np.float16 else len(micro_batches))
        mean = exact(total) / divisor
        # The device keeps the velocity times the loss scale.
        share = self.scale * (mean + self.hyper["weight_decay"] * exact(self.weight))
        self.velocity = (self.hyper["momentum"] * exact(self.velocity) + share).astype(self.velocity.dtype)
        self.weight = half(exact(self.weight) - self.hyper["lr"] * exact(self.velocity) / self.scale)
        return outputs


@pytest.mark.parametrize("accum", [np.float16, np.float32])
@pytest.mark.parametrize("velocity", [np.float16, np.float32])
def test_rule_6_1_every_operator_and_every_store_rounds(accum: Any, velocity: Any) -> None:
    """Forward, backward, accumulators, velocity and weights of three updates are numpy's, half for half."""
    rng = np.random.default_rng(3)
    weight = dyadic(rng, 6, 5)
    hyper, types = {"lr": 0.125, "momentum": 0.75, "weight_decay": 0.0625}, {np.float16: torch.float16}
    reference = HalfTraining(weight, accum, velocity, 8.0, **hyper)
    model = HalfLayer(weight)
    optimizer = poptorch.optim.SGD(
        model.parameters(),
        **hyper,
        loss_scaling=8.0,
        accum_type=types.get(accum, torch.float32),
        velocity_accum_type=types.get(velocity, torch.float32),
    )
    executor = poptorch.trainingModel(model, options(accumulation=3), optimizer)
    for _ in range(3):
        micro_batches = [(dyadic(rng, 4, 6), dyadic(rng, 4, 5)) for _ in range(3)]
        expected = reference.update(micro_batches)
        xs, rs = (torch.from_numpy(np.concatenate(arrays)) for arrays in zip(*micro_batches))
        outputs, _ = executor(xs, rs)
        # A rounding of float32 that meets a tie of halves puts a number one half off.
        assert halves_apart(outputs, np.concatenate(expected)).max() <= 1
        apart = halves_apart(model.weight, reference.weight)
        assert apart.max() <= 1 and (apart == 0).mean() > 0.9
        reference.weight = model.weight.detach().numpy().copy()
    assert model.weight.dtype == torch.float16
    state = optimizer.state_dict()["ipu_state"]["Accl1___weight"]
    assert state.dtype == types.get(velocity, torch.float32)


def test_rule_6_1_one_update_is_exact() -> None:
    """Without anything that divides, all numbers are met to the last bit."""
    rng = np.random.default_rng(0)
    weight, x, r = dyadic(rng, 6, 5), dyadic(rng, 4, 6), dyadic(rng, 4, 5)
    model = HalfLayer(weight)
    executor = poptorch.trainingModel(model, optimizer=poptorch.optim.SGD(model.parameters(), lr=0.125))
    outputs, _ = executor(torch.from_numpy(x), torch.from_numpy(r))
    reference = HalfTraining(weight, np.float16, np.float32, 1.0)
    out, gradient = reference.gradient(x, r)
    np.testing.assert_array_equal(outputs.numpy(), out)
    np.testing.assert_array_equal(model.weight.detach().numpy(), half(exact(weight) - 0.125 * exact(gradient)))


def test_rule_6_1_float32_weights_may_be_fed_half() -> None:
    """The gradient of a cast is a cast; weights, state and update stay float32."""
    model = Calls(lambda w, x: poptorch.identity_loss((x * w.half()).sum(), "none"), torch.full((2,), 1.0 + 2**-12))
    executor = poptorch.trainingModel(model, optimizer=torch.optim.SGD(model.parameters(), lr=2.0**-12))
    executor(torch.tensor([[1.0, 2.0]]).half())
    assert model.weight is not None and model.weight.dtype == torch.float32
    assert torch.equal(model.weight.detach(), torch.tensor([1.0, 1.0 - 2**-12]))


# One rounding for each operator -------------------------------------------------------------------

X, W = "an input", "another of the same shape"
UNARY: Dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda x: F.softmax(x, -1),
    "log_softmax": lambda x: F.log_softmax(x, -1),
    "layer_norm": lambda x: F.layer_norm(x, (8,)),
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "softplus": F.softplus,
    "hardswish": F.hardswish,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "exp": torch.exp,
    "log": lambda x: torch.log(x.abs()),
    "sqrt": lambda x: torch.sqrt(x.abs()),
    "rsqrt": lambda x: torch.rsqrt(x.abs()),
    "reciprocal": torch.reciprocal,
    "square": torch.square,
    "erf": torch.erf,
    "sin": torch.sin,
    "mean": lambda x: x.mean(0),
    "sum": lambda x: x.sum(1),
    "var": lambda x: x.var(1),
    "norm": lambda x: torch.linalg.vector_norm(x, dim=1),
    "cumsum": lambda x: x.cumsum(1),
    "logsumexp": lambda x: torch.logsumexp(x, 1),
    "max": lambda x: x.max(1).values,
    "group_norm": lambda x: F.group_norm(x, 2),
    "batch_norm": lambda x: F.batch_norm(x, None, None, training=True),
    "average pool": lambda x: F.avg_pool1d(x.unsqueeze(0), 2),
    "upsample": lambda x: F.interpolate(x.view(1, 1, 4, 8), scale_factor=2, mode="bilinear"),
}
BINARY: Dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "subtract": torch.sub,
    "multiply": torch.mul,
    "divide": torch.div,
    "matmul": lambda x, y: x @ y.t(),
    "linear": lambda x, y: F.linear(x, y),
    "bmm": lambda x, y: torch.bmm(x.view(2, 2, 8), y.view(2, 8, 2)),
    "convolution": lambda x, y: F.conv1d(x.unsqueeze(0), y.view(8, 4, 1)),
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "maximum": torch.maximum,
    "atan2": torch.atan2,
}


def as_binary(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, y: function(x)


FUNCTIONS = {**{name: as_binary(function) for name, function in UNARY.items()}, **BINARY}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_rule_6_1_an_operator_rounds_its_result_once(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Results are the halves nearest to what float64 gives; gradients are those of float64 to a few halves."""
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(4, 8, generator=generator).half() for _ in range(2))
    with HalfArithmetic():
        given = [tensor.clone().requires_grad_() for tensor in (x, y)]
        found = function(*given)
        weights = torch.randn(found.shape, generator=generator).half()
        gradients = torch.autograd.grad(found, given, weights, allow_unused=True)
    doubles = [tensor.double().requires_grad_() for tensor in (x, y)]
    expected = function(*doubles)
    assert found.dtype == torch.float16
    apart = halves_apart(found, expected.detach().numpy())
    assert apart.max() <= 1 and (apart == 0).mean() > 0.95
    exact_gradients = torch.autograd.grad(expected, doubles, weights.double(), allow_unused=True)
    for gradient, reference in zip(gradients, exact_gradients):
        if reference is not None:
            assert gradient.dtype == torch.float16
            bound = 6 * 2.0**-11 * max(float(reference.abs().max()), float(weights.abs().max()))
            torch.testing.assert_close(gradient.double(), reference, rtol=6 * 2.0**-11, atol=bound)


def test_rule_6_1_gradients_that_meet_are_added_in_half() -> None:
    x = torch.tensor([1.0]).half().requires_grad_()
    with HalfArithmetic():
        out = x * 2048 + x  # the gradients 2048 and 1 have no exact sum in half
        (gradient,) = torch.autograd.grad(out, [x])
    assert float(gradient) == 2048


def test_rule_6_1_cross_entropy_rounds_its_two_operators() -> None:
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).half()
    target = torch.tensor([0, 1, 2, 3, 4, 0])
    loss = infer(lambda x, y: F.cross_entropy(x, y), logits, target)
    logs = half(torch.log_softmax(logits.double(), 1).numpy())
    expected = -exact(logs)[np.arange(6), target.numpy()].mean()
    assert loss.dtype == torch.float16 and halves_apart(loss, expected).max() <= 1
    in_float = infer(lambda x, y: F.cross_entropy(x.float(), y), logits, target)
    torch.testing.assert_close(in_float, F.cross_entropy(logits.float(), target))


class Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3, momentum=0.25)

    def forward(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        out = self.norm(x)
        return out, poptorch.identity_loss((out * out).sum(), "none")


@pytest.mark.parametrize("kept", [torch.float16, torch.float32])
def test_rule_6_1_statistics_of_batch_norm_have_the_types_of_their_buffers(kept: torch.dtype) -> None:
    model = Normalised()
    model.norm.to(kept)
    executor = poptorch.trainingModel(model, options(accumulation=2), torch.optim.SGD(model.parameters(), lr=0.0))
    x = torch.randn(8, 3, 2, 2, generator=torch.Generator().manual_seed(0)).half()
    out, _ = executor(x)
    mean, variance = np.zeros(3), np.ones(3)
    kind = np.float16 if kept == torch.float16 else np.float32
    for part in x.split(4):
        numbers = exact(part.numpy())
        mean = (0.75 * mean + 0.25 * numbers.mean((0, 2, 3))).astype(kind).astype(np.float64)
        variance = (0.75 * variance + 0.25 * numbers.var((0, 2, 3), ddof=1)).astype(kind).astype(np.float64)
    # A float32 statistic may be an odd rounding off, a half one half.
    bound = 2.0**-11 if kept == torch.float16 else 2.0**-22
    assert out.dtype == torch.float16
    for found, expected in ((model.norm.running_mean, mean), (model.norm.running_var, variance)):
        assert found is not None and found.dtype == kept
        np.testing.assert_allclose(exact(found.numpy()), expected, rtol=bound, atol=bound)
    normalised = [
        (exact(part) - exact(part).mean((0, 2, 3), keepdims=True))
        / np.sqrt(exact(part).var((0, 2, 3), keepdims=True) + 1e-5)
        for part in x.numpy().reshape(2, 4, 3, 2, 2)
    ]
    assert halves_apart(out, np.concatenate(normalised)).max() <= 1


# Types (6.2, 6.3) --------------------------------------------------------------------------------

OPERANDS: Dict[str, Callable[[], Any]] = {
    "half": lambda: torch.rand(3, 4).half(),
    "half scalar": lambda: torch.rand(()).half(),
    "float": lambda: torch.rand(3, 4),
    "float scalar": lambda: torch.rand(()),
    "integers": lambda: torch.randint(1, 5, (3, 4)),
    "an integer": lambda: torch.tensor(3),
    "a number": lambda: 2.0,
}
PROMOTING: Dict[str, Callable[[Any, Any], Tensor]] = {
    "add": torch.add, "mul": torch.mul, "div": torch.div, "pow": torch.pow, "maximum": torch.maximum,
    "where": lambda a, b: torch.where(torch.tensor([True, False, True, False]), a, b),
    "cat": lambda a, b: torch.cat([a, b]), "stack": lambda a, b: torch.stack([a, b]),
    "eq": torch.eq, "mse": F.mse_loss, "smooth l1": F.smooth_l1_loss,
    "in place": lambda a, b: a.clone().add_(b), "copy": lambda a, b: a.clone().copy_(b),
    "masked_fill": lambda a, b: a.masked_fill(a > 0, b), "clamp": lambda a, b: torch.clamp(a, max=b),
    "addcmul": lambda a, b: torch.addcmul(a, b, b), "matmul": lambda a, b: a @ b.t(),
}  # fmt: skip


def type_of(function: Callable[..., Tensor], *operands: Any) -> Optional[torch.dtype]:
    try:
        return function(*operands).dtype
    except (RuntimeError, TypeError, AttributeError):
        return None


@pytest.mark.parametrize("function", PROMOTING.values(), ids=PROMOTING)
def test_rule_6_2_results_have_the_types_that_pytorch_gives_them(function: Callable[..., Tensor]) -> None:
    checked = 0
    for one, other in itertools.product(OPERANDS.values(), repeat=2):
        operands = one(), other()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # operands of different shapes
            expected = type_of(function, *operands)
            with HalfArithmetic():
                found = type_of(function, *operands)
        if expected is not None:  # what PyTorch refuses, the trace refuses
            assert found == expected, operands
            checked += 1
    assert checked >= 2


def test_rule_6_2_mixed_operands_promote_on_the_device() -> None:
    x, w = torch.tensor([1.0, 2.0]).half(), torch.tensor([1.0 + 2**-12, 2.0])
    found = infer(lambda x, w: (x + w, x * w, x + 1.0), x, w)
    assert [tensor.dtype for tensor in found] == [torch.float32, torch.float32, torch.float16]
    assert torch.equal(found[0], x.float() + w) and torch.equal(found[1], x.float() * w)


MIXED: Dict[str, Tuple[Callable[..., Tensor], Tuple[int, ...], Tuple[int, ...]]] = {
    "conv1d": (F.conv1d, (2, 4, 9), (3, 4, 3)),
    "conv2d": (lambda x, w: F.conv2d(x, w, w[:, 0, 0, 0]), (2, 4, 9, 9), (3, 4, 3, 3)),
    "conv_transpose2d": (F.conv_transpose2d, (2, 4, 9, 9), (4, 3, 3, 3)),
    "linear": (lambda x, w: F.linear(x, w, w[:, 0]), (2, 3, 6), (5, 6)),
    "matmul": (torch.matmul, (2, 3, 6), (6, 5)),
    "@": (lambda x, w: x @ w, (2, 3, 6), (2, 6, 5)),
    "bmm": (torch.bmm, (2, 3, 6), (2, 6, 5)),
    "baddbmm": (lambda x, w: torch.baddbmm(w[:, :3], x, w), (2, 3, 6), (2, 6, 6)),
    "einsum": (lambda x, w: torch.einsum("bij,jk->bik", x, w), (2, 3, 6), (6, 5)),
    "attention": (F.scaled_dot_product_attention, (2, 3, 6, 4), (2, 3, 6, 4)),
    "prelu": (F.prelu, (2, 3, 6), (3,)),
}


@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize("halves", ["inputs", "weights"])
def test_rule_6_2_so_do_those_that_pytorch_wants_of_one_type(name: str, halves: str) -> None:
    function, shape, weight_shape = MIXED[name]
    x, w = torch.randn(shape).half(), torch.randn(weight_shape).half()
    if name == "attention":
        function = lambda x, w: F.scaled_dot_product_attention(x, w, w)  # noqa: E731
    given = (x, w.float()) if halves == "inputs" else (x.float(), w)
    found = infer(function, *given)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, function(x.float(), w.float()), rtol=1e-4, atol=1e-4)


def test_rule_6_2_float32_weights_are_trained_with_half_inputs() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(2, 3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return poptorch.identity_loss(self.layer(x).square(), "sum")

    torch.manual_seed(0)
    model, x = Model(), torch.randn(2, 2, 5, 5).half()
    expected = copy.deepcopy(model)
    poptorch.trainingModel(model, None, poptorch.optim.SGD(model.parameters(), lr=1e-3))(x)
    expected(x.float()).backward()
    for weight, other in zip(model.parameters(), expected.parameters()):
        assert other.grad is not None and weight.dtype == torch.float32
        torch.testing.assert_close(weight, other - 1e-3 * other.grad)


def test_rule_6_3_casts_are_kept() -> None:
    """Sums of a thousand ones and a little more: exact where a cast asks for float32."""
    x = torch.full((1, 3000), 1.0009765625).half()

    def casts(x: Tensor) -> Any:
        return (
            x.float().sum(1),
            x.sum(1),
            x.to(torch.float32).half(),
            x.sum(1, dtype=torch.float32),
            x.type(torch.float32),
        )

    found = infer(casts, x)
    assert [tensor.dtype for tensor in found] == [
        torch.float32,
        torch.float16,
        torch.float16,
        torch.float32,
        torch.float32,
    ]
    assert float(found[0]) == float(found[3]) == 3000 * 1.0009765625
    assert float(found[1]) == float(half(3000 * 1.0009765625)) != float(found[0])


def test_rule_6_3_layer_norm_takes_its_weights_to_the_inputs_type() -> None:
    model = nn.LayerNorm(8)
    nn.init.normal_(model.weight)
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).half()
    out = poptorch.inferenceModel(model)(x)
    assert out.dtype == torch.float16
    expected = F.layer_norm(x.double(), (8,), model.weight.detach().double())
    assert halves_apart(out, expected.numpy()).max() <= 1


def test_rule_6_4_half_partials_are_accepted_and_approximated_by_float() -> None:
    x = torch.randn(2, 6, generator=torch.Generator().manual_seed(0)).half()
    outputs = []
    for dtype in (torch.float16, torch.float32):
        opts = poptorch.Options()
        opts.Precision.setPartialsType(dtype)
        torch.manual_seed(0)
        outputs.append(poptorch.inferenceModel(nn.Linear(6, 4).half(), opts)(x))
    assert torch.equal(*outputs)


# Stochastic rounding (6.5) -----------------------------------------------------------------------


def moved(seed: int, enabled: bool, opts: Optional[Any] = None) -> Tensor:
    """4000 weights of 1 after one update that takes a tenth of their spacing off."""
    model = Calls(lambda w, x: poptorch.identity_loss((w * x).sum(), "none"), torch.ones(4000).half())
    opts = options(seed=seed) if opts is None else opts
    if enabled:
        opts.Precision.enableStochasticRounding(True)
    executor = poptorch.trainingModel(model, opts, poptorch.optim.SGD(model.parameters(), lr=0.1 * 2.0**-11))
    executor(torch.ones(1, 4000).half())
    executor.copyWeightsToHost()
    assert model.weight is not None
    return model.weight.detach()


def test_rule_6_5_rounding_is_to_nearest_unless_asked_otherwise() -> None:
    assert torch.equal(moved(0, False), torch.ones(4000).half())


def test_rule_6_5_stochastic_rounding_keeps_the_mean() -> None:
    found = moved(0, True)
    below = 1 - 2.0**-11
    assert set(found.tolist()) == {1.0, below}
    share = float((found == below).float().mean())
    assert abs(share - 0.1) < 5 * (0.1 * 0.9 / 4000) ** 0.5


def test_rule_6_5_results_depend_on_the_seed() -> None:
    assert torch.equal(moved(1, True), moved(1, True))
    assert not torch.equal(moved(1, True), moved(2, True))


def test_rule_6_5_inference_is_not_rounded_at_random() -> None:
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).half()
    outputs = []
    for enabled in (False, True):
        opts = options(seed=3)
        opts.Precision.enableStochasticRounding(enabled)
        torch.manual_seed(0)
        outputs.append(poptorch.inferenceModel(nn.Linear(6, 4).half(), opts)(x))
    assert torch.equal(*outputs)


# Random numbers (6.6) ----------------------------------------------------------------------------

COUNT = 20_000


class Drops(nn.Module):
    """Two dropouts of one row each micro batch."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.weight = nn.Parameter(torch.ones(COUNT))

    def forward(self, x: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        first = F.dropout(x * self.weight, self.p, self.training)
        second = F.dropout(x, self.p, self.training)
        return first, second, poptorch.identity_loss(first.sum(), "none")


def masks(opts: Any, p: float = 0.3, calls: int = 1, model: Optional[nn.Module] = None) -> Tensor:
    """What was kept: calls × micro batches × dropouts × elements."""
    executor = poptorch.inferenceModel(Drops(p) if model is None else model, opts)
    rows = opts.device_iterations * opts.replication_factor
    found = [torch.stack(executor(torch.ones(rows, COUNT))[:2], 1) for _ in range(calls)]
    return torch.stack(found) != 0


def agree(one: Tensor, other: Tensor, p: float) -> bool:
    """Whether two masks agree as often as independent ones do, to five standard deviations."""
    expected = p**2 + (1 - p) ** 2
    found = float((one == other).double().mean())
    return abs(found - expected) < 5 * (expected * (1 - expected) / one.numel()) ** 0.5


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 2.0**-10])
def test_rule_6_6_dropout_keeps_the_mean(p: float) -> None:
    first, second, _ = poptorch.inferenceModel(Drops(p), options(seed=7))(torch.ones(1, COUNT))
    for out in (first, second):
        assert set(out.unique().tolist()) == {0.0, float(torch.tensor(1 / (1 - p)))}
        kept = float((out != 0).double().mean())
        assert abs(kept - (1 - p)) < 5 * (p * (1 - p) / COUNT) ** 0.5


def test_rule_6_6_every_mask_is_drawn_for_itself() -> None:
    """Masks of two calls, two device iterations, two replicas and two dropouts are pairwise independent."""
    p = 0.3
    drawn = masks(options(seed=11, iterations=2, replicas=2), p, calls=2).reshape(-1, COUNT)
    assert len(drawn) == 16
    assert all(agree(one, other, p) for one, other in itertools.combinations(drawn, 2))
    # Nor does an element depend on its neighbours.
    assert all(agree(mask[:-lag], mask[lag:], p) for mask in drawn for lag in (1, 2, 4, 8, 64))


def test_rule_6_6_masks_of_accumulation_steps_differ() -> None:
    model = Drops(0.3)
    executor = poptorch.trainingModel(model, options(accumulation=2, seed=5), torch.optim.SGD(model.parameters(), lr=1))
    first, _, _ = executor(torch.ones(2, COUNT))
    assert agree(first[0] != 0, first[1] != 0, 0.3)


def test_rule_6_6_gradients_pass_where_values_did() -> None:
    model = Drops(0.5)
    executor = poptorch.trainingModel(model, options(seed=5), torch.optim.SGD(model.parameters(), lr=1.0))
    first, _, _ = executor(torch.ones(1, COUNT))
    assert torch.equal(1 - model.weight.detach(), first[0])


def test_rule_6_6_a_seed_reproduces_everything() -> None:
    assert torch.equal(masks(options(seed=1), calls=2), masks(options(seed=1), calls=2))
    assert agree(masks(options(seed=1)), masks(options(seed=2)), 0.3)


def test_rule_6_6_without_a_seed_it_is_arbitrary() -> None:
    torch.manual_seed(0)
    one = masks(poptorch.Options())
    torch.manual_seed(0)
    assert agree(one, masks(poptorch.Options()), 0.3)


def test_rule_6_6_the_host_and_the_device_draw_apart() -> None:
    """Calls leave the host's random numbers alone, and do not depend on them."""
    opts = options(seed=4)
    expected = masks(opts, calls=2)
    executor = poptorch.inferenceModel(Drops(0.3), opts)
    found = []
    for _ in range(2):
        torch.rand(17)
        before = torch.get_rng_state()
        found.append(torch.stack(executor(torch.ones(1, COUNT))[:2], 1) != 0)
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(torch.stack(found), expected)


RANDOM: Dict[str, Callable[[Tensor], Tensor]] = {
    "rand": lambda x: torch.rand(x.shape, device=x.device),
    "randn": lambda x: torch.randn(x.shape, device=x.device),
    "bernoulli": lambda x: torch.bernoulli(x * 0.5),
    "bernoulli_": lambda x: x.new_empty(x.shape).bernoulli_(0.5),
    "uniform_": lambda x: torch.empty_like(x).uniform_(),
    "normal_": lambda x: torch.empty_like(x).normal_(),
    "randperm": lambda x: torch.randperm(x.shape[1], device=x.device).unsqueeze(0).float(),
    "dropout of channels": lambda x: F.dropout2d(x.view(1, -1, 1, 2), 0.5, True).view(x.shape),
}


@pytest.mark.parametrize("draw", RANDOM.values(), ids=RANDOM)
def test_rule_6_6_all_random_operators_are_seeded(draw: Callable[[Tensor], Tensor]) -> None:
    def run(seed: int) -> Tensor:
        executor = poptorch.inferenceModel(Calls(draw), options(seed=seed, iterations=2, replicas=2))
        return torch.cat([executor(torch.ones(4, 50)) for _ in range(2)])

    found = run(1)
    assert torch.equal(found, run(1)) and not torch.equal(found, run(2))
    assert len({tuple(row.tolist()) for row in found}) == 8


@pytest.mark.parametrize("where", ["another executor", "the same", "after a pause"])
def test_rule_6_6_the_random_state_continues_exactly(where: str) -> None:
    opts = options(seed=9, accumulation=2, replicas=2)

    def trainer() -> Any:
        model = Drops(0.3)
        return poptorch.trainingModel(model, opts, torch.optim.SGD(model.parameters(), lr=0.0))

    executor = trainer()
    x = torch.ones(4, COUNT)
    executor(x)
    state = executor.rng_state
    assert isinstance(state, list) and all(isinstance(value, int) for value in state) and state[0] == 9
    expected = [executor(x)[0] for _ in range(2)]
    if where == "another executor":
        executor = trainer()
        executor.compile(x)
    elif where == "after a pause":
        executor.detachFromDevice()
        executor.attachToDevice()
    executor.rng_state = state
    found = [executor(x)[0] for _ in range(2)]
    assert all(torch.equal(one, other) for one, other in zip(found, expected))
    assert not torch.equal(found[0], found[1])


def test_rule_6_6_the_random_state_is_that_of_a_compiled_program() -> None:
    executor = poptorch.inferenceModel(Drops(0.5), options(seed=1))
    with pytest.raises(poptorch.Error, match="not compiled"):
        executor.rng_state  # noqa: B018
    with pytest.raises(poptorch.Error, match="not compiled"):
        executor.rng_state = [1, 0]


def test_rule_6_6_dropout_does_nothing_in_evaluation() -> None:
    x = torch.randn(1, COUNT, generator=torch.Generator().manual_seed(0))
    first, second, _ = poptorch.inferenceModel(Drops(0.5).eval(), options(seed=1))(x)
    assert torch.equal(first, x) and torch.equal(second, x)


@pytest.mark.parametrize("p, kept", [(0.0, 1.0), (1.0, 0.0)])
def test_rule_6_6_all_or_nothing(p: float, kept: float) -> None:
    out, _, _ = poptorch.inferenceModel(Drops(p), options(seed=1))(torch.ones(1, COUNT))
    assert torch.equal(out, torch.full((1, COUNT), kept))


# Types of inputs (6.7, 6.8, 6.10) ----------------------------------------------------------------

INTEGERS = [torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, *INTEGERS])
def test_rule_6_7_inputs_arrive_and_return_as_they_are(dtype: torch.dtype) -> None:
    x = torch.tensor([[0, 1], [1, 100]]).to(dtype)
    y = infer(lambda x: x, x)
    assert y.dtype == dtype and torch.equal(y, x)


@pytest.mark.parametrize("given, kept", [(torch.int64, torch.int32), (torch.float64, torch.float32)])
def test_rule_6_7_long_types_are_shortened(given: torch.dtype, kept: torch.dtype) -> None:
    x = torch.tensor([[1, -7]]).to(given)
    for y in infer(lambda x: (x, x + 1), x):
        assert y.dtype == kept
    model = Calls(lambda w, x: w * x, torch.tensor([1.5, 2.5]).double())
    assert poptorch.inferenceModel(model)(torch.ones(1, 2).double()).dtype == torch.float32
    assert model.weight is not None and model.weight.dtype == torch.float64  # on the host it stays


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.complex64, torch.complex128])
def test_rule_6_7_other_types_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(poptorch.Error, match=f"type {dtype} cannot be an input"):
        infer(lambda x: x, torch.ones(1, 2).to(dtype))


def test_rule_6_7_nobody_checks_whether_integers_fit() -> None:
    x = torch.tensor([2**31 + 5, -(2**33) + 7, 3])
    assert infer(lambda x: x, x).tolist() == [-(2**31) + 5, 7, 3]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16])
@pytest.mark.parametrize("to", [torch.float32, torch.float16])
def test_rule_6_8_short_integers_can_be_cast(dtype: torch.dtype, to: torch.dtype) -> None:
    x = torch.arange(-128, 128).to(dtype).reshape(1, -1)
    for cast in (lambda x: x.to(to), lambda x: x.half() if to == torch.float16 else x.float(), lambda x: x.type(to)):
        y = infer(cast, x)
        assert y.dtype == to and torch.equal(y, x.to(to))


def test_rule_6_8_pictures_are_normalised_after_a_cast() -> None:
    pictures = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    y = infer(lambda x: (x.half() / 255 - 0.5) / 0.25, pictures)
    scaled = half(exact(np.arange(256)) / 255)
    expected = half(exact(half(exact(scaled) - 0.5)) / 0.25)
    assert halves_apart(y.flatten(), expected).max() <= 1 and y.dtype == torch.float16


def test_rule_6_10_long_integers_are_int32_on_the_device() -> None:
    """Sums and products are those of int32, which differ from int64's by multiples of 2**32."""
    x = torch.tensor([[2**30, -(2**31) + 1, 46341, 12345]])
    found = infer(lambda x: (x + x, x * x, x - 2**31), x)
    for values, expected in zip(found, (x + x, x * x, x - 2**31)):
        assert values.dtype == torch.int32
        assert torch.equal(values.long(), (expected + 2**31) % 2**32 - 2**31)


# GELU (6.9) --------------------------------------------------------------------------------------


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("as_module", [True, False])
def test_rule_6_9_both_forms_of_gelu_are_the_tanh_form(approximate: str, as_module: bool) -> None:
    x = torch.linspace(-5, 5, 1001).reshape(1, -1)
    function: Callable[[Tensor], Tensor] = (
        nn.GELU(approximate) if as_module else lambda x: F.gelu(x, approximate=approximate)
    )
    found = infer(lambda x: function(x), x)
    numbers = x.double()
    expected = 0.5 * numbers * (1 + torch.tanh((2 / np.pi) ** 0.5 * (numbers + 0.044715 * numbers**3)))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    error = (found - F.gelu(x)).abs().max()
    assert 1e-4 < float(error) < 1e-3


def test_rule_6_9_a_transformer_layer_uses_it_too() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, activation="gelu", batch_first=True)
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0)) * 3
    found = poptorch.inferenceModel(layer)(x)
    plain = layer(x)
    layer.activation = nn.GELU("tanh")
    torch.testing.assert_close(found, layer(x), rtol=1e-5, atol=1e-5)
    assert float((found - plain.detach()).abs().max()) > 1e-5


# The fast mode -----------------------------------------------------------------------------------


class Mixed(nn.Module):
    """Convolution, batch norm, layer norm, dropout's neighbours and a loss in float32."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.batch = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 4)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor, y: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        self.seen += 1  # type: ignore[operator]
        features = F.gelu(self.batch(self.conv(x.half() / 255))).mean((2, 3))
        logits = self.head(self.norm(features))
        return logits, features.to(torch.float16), F.cross_entropy(logits.float(), y)


def fast_and_exact(monkeypatch: pytest.MonkeyPatch, run: Callable[[nn.Module], Any]) -> List[Any]:
    results = []
    for arithmetic in ("bfloat16", "float16"):
        monkeypatch.setenv("IPU_VIT_EMULATOR_ARITHMETIC", arithmetic)
        results.append(run(Mixed().half()))
    return results


def pictures(count: int, seed: int = 0) -> Tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 6, 6), generator=generator, dtype=torch.uint8)
    return images, torch.randint(0, 4, (count,), generator=generator)


def test_the_fast_mode_trains_to_similar_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(model: nn.Module) -> Any:
        optimizer = poptorch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, loss_scaling=64.0)
        executor = poptorch.trainingModel(model, options(accumulation=2), optimizer)
        outputs = [executor(*pictures(16, seed)) for seed in range(4)]
        return outputs, model.state_dict(), optimizer.state_dict()["ipu_state"]

    (fast, fast_weights, fast_state), (exact, weights, state) = fast_and_exact(monkeypatch, train)
    assert not torch.equal(fast[0][0], exact[0][0])  # it is another arithmetic
    for one, other in zip(fast, exact):
        assert [tensor.dtype for tensor in one] == [torch.float16, torch.float16, torch.float32]
        for found, expected in zip(one, other):
            torch.testing.assert_close(found, expected, rtol=0.1, atol=0.1)
    for found, expected in ((fast_weights, weights), (fast_state, state)):
        assert {name: value.dtype for name, value in found.items()} == {n: v.dtype for n, v in expected.items()}
    for name, value in weights.items():
        torch.testing.assert_close(fast_weights[name], value, rtol=0.1, atol=0.1)
    assert float(fast_weights["seen"]) == 8 and int(fast_weights["batch.num_batches_tracked"]) == 8
    # Statistics have more digits than bfloat16 has.
    torch.testing.assert_close(fast_weights["batch.running_var"], weights["batch.running_var"], rtol=0.01, atol=1e-3)


def test_the_fast_mode_infers_similar_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    def infer(model: nn.Module) -> Any:
        return poptorch.inferenceModel(model.eval(), options(iterations=2))(*pictures(8))

    fast, exact = fast_and_exact(monkeypatch, infer)
    assert [tensor.dtype for tensor in fast] == [torch.float16, torch.float16, torch.float32]
    assert not torch.equal(fast[0], exact[0])
    for found, expected in zip(fast, exact):
        torch.testing.assert_close(found, expected, rtol=0.05, atol=0.02)


def test_the_fast_mode_leaves_float32_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = []
    for arithmetic in ("bfloat16", "float16"):
        monkeypatch.setenv("IPU_VIT_EMULATOR_ARITHMETIC", arithmetic)
        model = Layers()
        executor = poptorch.trainingModel(model, options(), torch.optim.SGD(model.parameters(), lr=0.1))
        outputs.append([executor(*data(4))[0] for _ in range(2)][1])
    assert torch.equal(*outputs)


def test_the_fast_mode_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IPU_VIT_EMULATOR_ARITHMETIC", "float8")
    with pytest.raises(poptorch.Error, match="float8 is unknown"):
        infer(lambda x: x * 2, torch.ones(1, 2).half())
