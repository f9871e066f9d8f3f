"""Tracing limits: every rule of section 12. What is refused is refused at compile, with the line that is to blame."""

from __future__ import annotations

import random
from typing import Any, Callable, Dict, List

import numpy as np
import poptorch
import pytest
import torch
import torch.nn.functional as F
from operator_models import Calls, gradient, infer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from ipu_vit.emulator import handlers

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")
X = torch.tensor([[1.0, -2.0, 3.0], [4.0, 5.0, -6.0]])


def refusal(function: Callable[..., Any], *inputs: Any, training: bool = False) -> str:
    """What the compiler says against a function of the inputs, or of a weight."""
    if training:
        executor = poptorch.trainingModel(Calls(lambda w: poptorch.identity_loss(function(w), "mean"), X))
    else:
        executor = poptorch.inferenceModel(Calls(function))
    with pytest.raises(poptorch.Error) as raised:
        executor.compile(*(() if training else inputs or (X,)))
    assert not executor.isCompiled()
    return str(raised.value)


def line_of(function: Callable[..., Any]) -> str:
    return f"{__file__}:{function.__code__.co_firstlineno}"


# --- 12.1: forward runs once, without data -----------------------------------------------------------

ITEM, EAGER, MOVE = "aten::item is only supported in eager mode", "only supported in eager mode", "Illegal move to CPU"
LOOKS: Dict[str, Any] = {
    "item": (lambda x: x.sum().item(), ITEM),
    "bool": (lambda x: x if x.sum() > 0 else -x, ITEM),
    "while": (lambda x: [x for _ in iter(lambda: bool((x > 0).all()), False)], ITEM),
    "assert": (lambda x: x if not torch.any(x > 9) else None, ITEM),
    "float": (lambda x: x * float(x[0, 0]), ITEM),
    "int": (lambda x: x[int(x[0, 0])], ITEM),
    "range": (lambda x: [x for _ in range(x[0, 0].long())], ITEM),
    "in": (lambda x: x if 3.0 in x else -x, ITEM),
    "slice": (lambda x: x[:, : x[0, 0].long()], ITEM),
    "tolist": (lambda x: x.tolist(), EAGER),
    "equal": (lambda x: torch.equal(x, x), EAGER),
    "allclose": (lambda x: torch.allclose(x, x), EAGER),
    "numpy": (lambda x: x.detach().numpy(), MOVE),
    "asarray": (lambda x: np.asarray(x), MOVE),
    "cpu": (lambda x: x.cpu(), MOVE),
    "to": (lambda x: x.to("cpu"), MOVE),
    "to device": (lambda x: x.to(device=torch.device("cpu")), MOVE),
}


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
@pytest.mark.parametrize("name", LOOKS)
@pytest.mark.parametrize("training", [False, True])
def test_rule_12_1_forward_cannot_look_at_values(name: str, training: bool) -> None:
    function, complaint = LOOKS[name]
    message = refusal(function, training=training)
    assert complaint in message and line_of(function) in message


def test_rule_12_1_the_line_is_the_innermost_of_the_program() -> None:
    def inner(x: Tensor) -> Tensor:
        return x.relu() if x.mean() > 0 else x

    def outer(x: Tensor) -> Tensor:
        return inner(nn.functional.gelu(x))

    assert f"{__file__}:{inner.__code__.co_firstlineno + 1}: return x.relu() if x.mean() > 0 else x" in refusal(outer)


def test_rule_12_1_values_of_python_may_be_looked_at() -> None:
    scale = torch.tensor(3.0)
    table = torch.arange(3)

    def forward(x: Tensor) -> Any:
        assert x.shape == (2, 3) and len(x) == 2 and x.numel() == 6 and x.dtype == torch.float32 and x.dim() == 2
        return x * scale.item() + sum(table.tolist()) + torch.tensor(2.0).item()

    assert torch.equal(infer(forward, X), 3 * X + 5)


@pytest.mark.parametrize("show", [print, lambda x: print(f"{x}"), lambda x: print(str(x)), lambda x: print(repr(x))])
def test_rule_12_1_printing_shows_no_values(show: Any, capsys: Any) -> None:
    model = Calls(lambda w, x: (show(x), show(w), show(x + w), x)[-1], torch.ones(3))
    executor = poptorch.inferenceModel(model)
    for _ in range(2):
        executor(X)
    assert capsys.readouterr().out == 3 * "<unavailable>\n"
    show(X)
    assert "-2." in capsys.readouterr().out


def test_rule_12_1_python_is_frozen_when_traced() -> None:
    class Counts(nn.Module):
        calls, factor = 0, 2

        def forward(self, x: Tensor) -> Any:
            self.calls += 1
            noise = random.random() + np.random.rand()
            return x * self.factor, self.calls, noise, torch.full((1,), noise, device=x.device)

    model = Counts()
    options = poptorch.Options()
    options.deviceIterations(2)
    executor = poptorch.inferenceModel(model, options)
    first = executor(X)
    model.factor = 5
    for _ in range(2):
        doubled, calls, noise, noises = executor(-X)
        assert torch.equal(doubled, -2 * X)
        assert (calls, noise) == (1, first[2]) and torch.equal(noises, first[3])
    torch.testing.assert_close(noises, torch.full((2,), noise))


def test_rule_12_1_tensors_of_the_host_are_frozen_too() -> None:
    host = torch.ones(3)

    def forward(x: Tensor) -> Any:
        before = x * host
        if host.sum() == 3:  # Python may look at the host's tensors
            host.add_(1)  # and changes them once
        return before, x * host, x * host.square().to(x.device), host.device.type, f"{host}"

    executor = poptorch.inferenceModel(Calls(forward))
    for value in (2, 7):
        *found, place, text = executor(X)
        assert all(torch.equal(ours, X * factor) for ours, factor in zip(found, (1, 2, 4)))
        assert (place, text) == ("cpu", "tensor([2., 2., 2.])")
        assert torch.equal(host, torch.full((3,), value))
        host.fill_(7)


def test_rule_12_1_the_device_may_write_into_copies_of_the_hosts_tensors() -> None:
    host = torch.zeros(3)

    def forward(x: Tensor) -> Tensor:
        host.add_(x)
        return host * 2

    assert torch.equal(infer(forward, torch.arange(6.0), micro_batches=2), 2 * torch.arange(6.0))
    assert torch.equal(host, torch.zeros(3))


def test_rule_12_1_compiling_leaves_pytorch_as_it_was() -> None:
    def parts() -> List[Any]:
        eval_frame = torch._dynamo.eval_frame  # type: ignore[attr-defined]
        checkpoints = {name: value for name, value in vars(torch.utils.checkpoint).items() if "reentrant" in name}
        owners = vars(FakeTensor), vars(torch.autograd.Function), vars(eval_frame)
        names = "device", "__repr__", "apply", "set_eval_frame", "_maybe_set_eval_frame"
        return [checkpoints, *([owner.get(name) for name in names] for owner in owners)]

    infer(lambda x: x, X)
    before = parts()
    model = nn.Linear(3, 3)
    weights = dict(model.named_parameters())
    model.forward = lambda x: model.weight + x.sum().item()  # type: ignore[method-assign]
    with pytest.raises(poptorch.Error):
        poptorch.inferenceModel(model)(X)
    assert parts() == before and X.device == torch.device("cpu")
    assert all(dict(model.named_parameters())[name] is weight for name, weight in weights.items())
    torch.testing.assert_close(model(X), model.weight + X.sum())


def _scripted(x: Tensor, count: int) -> Tensor:
    for _ in range(count):
        x = x * 2 + 1
    return x.sum(1)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_rule_12_1_scripts_are_traced_as_one_operator() -> None:
    script = torch.jit.script(_scripted)
    assert torch.equal(infer(lambda x: script(x, 3), X), _scripted(X, 3))
    torch.testing.assert_close(gradient(lambda w: script(w, 3), X), torch.full_like(X, 8))


# --- 12.2: shapes ------------------------------------------------------------------------------------

SHAPES: Dict[str, Callable[[Tensor], Any]] = {
    "nonzero": lambda x: x.nonzero(),
    "argwhere": lambda x: torch.argwhere(x > 0),
    "masked_select": lambda x: x.masked_select(x > 0),
    "mask": lambda x: x[x > 0],
    "where": lambda x: torch.where(x > 0)[0],
    "unique": lambda x: x.unique(),
    "repeats": lambda x: torch.repeat_interleave(x, x[:, 0].long(), 0),
}


@pytest.mark.parametrize("name", SHAPES)
def test_rule_12_2_shapes_depend_on_no_data(name: str) -> None:
    message = refusal(SHAPES[name])
    assert "makes a tensor whose shape depends on data" in message and line_of(SHAPES[name]) in message


def test_rule_12_2_masks_may_choose_where_to_write() -> None:
    def forward(x: Tensor) -> Any:
        written = x.clone()
        written[written > 0] = 0
        return written, x.masked_fill(x > 0, 9.0), torch.where(x > 0, x, -x)

    for ours, theirs in zip(infer(forward, X), forward(X)):
        assert torch.equal(ours, theirs)


# --- 12.3: factories ---------------------------------------------------------------------------------

FACTORIES: Dict[str, Callable[..., Tensor]] = {
    "arange": lambda **where: torch.arange(3, **where),
    "empty": lambda **where: torch.empty(3, **where).fill_(1.0),
    "full": lambda **where: torch.full((3,), 2.0, **where),
    "ones": lambda **where: torch.ones(3, **where),
    "rand": lambda **where: torch.rand(3, **where),
    "randint": lambda **where: torch.randint(0, 5, (3,), **where),
    "randn": lambda **where: torch.randn(3, **where),
    "randperm": lambda **where: torch.randperm(3, **where),
    "zeros": lambda **where: torch.zeros(3, **where),
}


def test_rule_12_3_all_factories_are_known() -> None:
    refused = {torch.eye, torch.linspace}  # PopTorch has no lowering for them
    assert {getattr(torch, name) for name in FACTORIES} == handlers.FACTORIES - refused


@pytest.mark.parametrize("name", FACTORIES)
def test_rule_12_3_factories_without_a_device_warn_once_a_place(name: str, log: Any) -> None:
    make = FACTORIES[name]

    def forward(x: Tensor) -> Any:
        made = [make() for _ in range(3)]
        assert all(tensor.device.type == "ipu" for tensor in made)
        return x + make() * 0, [x + tensor for tensor in made]

    executor = poptorch.inferenceModel(Calls(forward))
    found, _ = executor(X)
    executor(X)
    assert torch.equal(found, X)
    (record,) = log.records
    assert record.levelname == "WARNING" and f"torch.{name} has no device=" in record.getMessage()
    assert line_of(make) in record.getMessage()


@pytest.mark.parametrize("name", FACTORIES)
def test_rule_12_3_factories_with_a_device_do_not_warn(name: str, log: Any) -> None:
    for where in (lambda x: x.device, lambda x: "ipu", lambda x: "ipu:0", lambda x: torch.device("ipu", 0)):
        found = infer(lambda x, where=where: x + FACTORIES[name](device=where(x)) * 0, X)
        assert torch.equal(found, X)
    assert not log.records
    torch.arange(3)  # nor outside a trace
    assert not log.records


def test_rule_12_3_factories_without_values_to_draw_are_the_hosts() -> None:
    for name in ("arange", "empty", "full", "ones", "zeros"):
        make = FACTORIES[name]
        assert torch.equal(infer(lambda x, make=make: x + make(device=x.device), X), X + make())


def test_rule_12_3_random_factories_draw_for_each_micro_batch() -> None:
    found = infer(lambda x: torch.rand(1000, device=x.device), torch.ones(3), micro_batches=3).reshape(3, 1000)
    assert not torch.equal(found[0], found[1]) and not torch.equal(found[1], found[2])
    assert ((found >= 0) & (found < 1)).all() and (found.mean(1) - 0.5).abs().max() < 0.05


def test_rule_12_3_tensors_of_the_device_say_so() -> None:
    class Devices(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))
            self.register_buffer("buffer", torch.ones(3))

        def forward(self, x: Tensor, other: Tensor) -> Any:
            tensors = [x, x + 1, x[0], self.weight, self.buffer, self.weight * x, torch.tensor(2.0), x.new_ones(3)]
            devices = {str(tensor.device) for tensor in tensors}
            assert all(tensor.device == x.device == torch.device("ipu:0") for tensor in tensors)
            moved = other.to(x.device).to(x.device, x.dtype).to(device=x.device).to(x)
            return moved + x, sorted(devices), x.device.type, x.device.index, x.is_cuda

    model = Devices()
    found, *rest = poptorch.inferenceModel(model)(X, torch.ones(2, 3, dtype=torch.int32))
    assert torch.equal(found, X + 1) and rest == [["ipu:0"], "ipu", 0, False]
    assert {str(model.weight.device), str(model.buffer.device), str(found.device)} == {"cpu"}


# --- 12.4: compilers, mixed precision (loops and branches: test_control_flow) ----------------------------------------


def test_rule_12_4_nothing_is_compiled_by_torch() -> None:
    def sine(x: Tensor) -> Tensor:
        return x.sin()

    compiled = torch.compile(sine)
    assert "torch.compile is not supported" in refusal(lambda x: compiled(x))
    assert "torch.compile is not supported" in refusal(lambda x: torch.compile(sine)(x), training=True)
    with pytest.raises(poptorch.Error, match="torch.compile is not supported"):
        poptorch.inferenceModel(torch.compile(nn.Linear(3, 3)))(X)


def test_rule_12_4_forward_does_not_autocast() -> None:
    def forward(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return x @ x.t()

    for training in (False, True):
        message = refusal(forward, training=training)
        assert message.startswith("autocast is not supported") and f"{__file__}:" in message


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    "surroundings", [lambda: torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode, torch.no_grad]
)
def test_rule_12_4_what_surrounds_a_call_stays_on_the_host(surroundings: Any, compiled: bool) -> None:
    weight, x = torch.randn(3, 3), torch.randn(2, 3)
    model = Calls(lambda w, x: poptorch.identity_loss((x @ w).square(), "sum"), weight)
    trainer = poptorch.trainingModel(model, optimizer=torch.optim.SGD(model.parameters(), lr=1.0))
    evaluator = poptorch.inferenceModel(Calls(lambda w, x: x @ w, weight))
    if compiled:
        trainer.compile(x)
        evaluator.compile(x)
    with surroundings():
        loss, found = trainer(x), evaluator(x + 0)
        trainer(x + 0)
        evaluator.copyWeightsToDevice()
    evaluator.copyWeightsToDevice()
    trainer.copyWeightsToHost()
    torch.testing.assert_close(loss, (x @ weight).square().sum())
    torch.testing.assert_close(found, x @ weight)
    once = weight - 2 * x.t() @ (x @ weight)
    torch.testing.assert_close(model.weight.detach(), once - 2 * x.t() @ (x @ once))


# --- 12.5: slices ------------------------------------------------------------------------------------


def test_rule_12_5_constant_slices_are_pytorchs() -> None:
    def forward(x: Tensor) -> Any:
        half = x.shape[1] // 2
        return x[:, 1:], x[:, half : half + 100], x[:, -2:-1], x[1:, ::2], x[..., None, :2], x[:, [2, 0]]

    for ours, theirs in zip(infer(forward, X), forward(X)):
        assert torch.equal(ours, theirs)


def test_rule_12_5_computed_slices_have_a_constant_length_and_wrap() -> None:
    def forward(x: Tensor, start: Tensor) -> Tensor:
        return poptorch.dynamic_slice(x, 1, start, 2, 1)

    for start, columns in ((0, [0, 1]), (1, [1, 2]), (2, [2, 0])):
        assert torch.equal(infer(forward, X, torch.tensor([start])), X[:, columns])
    computed = lambda x, start: x[:, start : start + 2]  # noqa: E731
    message = refusal(computed, X, torch.tensor([1]))
    assert message.startswith(ITEM) and line_of(computed) in message


# --- 12.6: operators ---------------------------------------------------------------------------------


def test_rule_12_1_what_hides_its_operators_cannot_be_traced() -> None:
    vectorised = torch.func.vmap(lambda row: row * 2)
    function = lambda x: vectorised(x) + 1  # noqa: E731
    message = refusal(function)
    assert "made by something that cannot be traced" in message and line_of(function) in message


@pytest.mark.parametrize("training", [False, True])
def test_rule_12_6_all_unsupported_operators_are_named_at_once(training: bool) -> None:
    def helper(x: Tensor) -> Tensor:
        return torch.special.i0(x)

    def forward(x: Tensor) -> Any:
        for _ in range(2):
            x = x.lerp(x, 0.5)
        y = helper(x.relu())
        return x + y + torch.eye(3)[0]

    message = refusal(forward, training=training)
    first = forward.__code__.co_firstlineno
    assert message.startswith("Unsupported ops found in compiled model: ")
    named = message[message.index(": ") + 2 :].split("; ")
    places = ["aten::lerp", first + 2, "aten::i0", helper.__code__.co_firstlineno + 1, "aten::eye", first + 4]
    assert len(named) == 3
    for text, operator, line in zip(named, places[::2], places[1::2]):
        assert text.startswith(f"{operator} at {__file__}:{line}: ")


def test_rule_12_6_operators_are_checked_inside_of_modules() -> None:
    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.tril()

    model = nn.Sequential(nn.Linear(3, 3), Inner())
    with pytest.raises(poptorch.Error, match=r"Unsupported ops .*aten::tril at .*test_rules_12_tracing.py:\d+: return"):
        poptorch.inferenceModel(model).compile(X)


def test_rule_12_1_the_line_of_pytorch_that_looks_is_named_too() -> None:
    """The program's own line does not show what is wrong."""
    model = Calls(lambda x: F.gaussian_nll_loss(x, x, x))
    with pytest.raises(poptorch.Error, match=rf"{__file__}:\d+.* leads to .*functional.py:\d+: (el)?if torch.any.var"):
        poptorch.inferenceModel(model)(torch.ones(2, 3))
