"""What a trace makes of ways around PyTorch's functions: custom gradients, hooks, checkpoints, weights in lists."""

from __future__ import annotations

from typing import Any, List

import poptorch
import pytest
import torch
from operator_models import gradient, infer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

X = torch.tensor([[1.0, -2.0, 3.0], [4.0, 5.0, -6.0]])


# --- custom autograd functions -----------------------------------------------------------------------


class Doubled(torch.autograd.Function):
    """x², whose backward is wrong by intent."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.set_materialize_grads(False)
        ctx.factor = factor
        assert ctx.needs_input_grad[1] is False
        return x * x * factor

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0] * 7, None


class SetUp(torch.autograd.Function):
    """The same in PyTorch's other style."""

    @staticmethod
    def forward(x: Tensor, factor: int) -> Tensor:  # type: ignore[override]
        return x * x * factor

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0] * 7, None


@pytest.mark.parametrize("function", [Doubled, SetUp])
def test_custom_gradients_are_ignored_with_a_warning(function: Any, log: Any) -> None:
    torch.testing.assert_close(gradient(lambda w: function.apply(w, 3), X), 6 * X)
    (record,) = log.records
    assert f"The backward of {function.__name__} is ignored" in record.getMessage() and __file__ in record.getMessage()
    assert torch.equal(infer(lambda x: function.apply(x, 3), X), 3 * X * X)
    # Not so on the host.
    weight = X.clone().requires_grad_()
    function.apply(weight, 3).sum().backward()
    assert torch.equal(weight.grad, torch.full_like(X, 7))


def test_a_straight_through_estimator_has_the_gradient_of_its_forward() -> None:
    class Rounded(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.round()

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return grads[0]

    assert torch.equal(gradient(lambda w: Rounded.apply(w) + w * 2, X), torch.full_like(X, 2))


@pytest.mark.parametrize("of", ["a tensor", "a module"])
def test_hooks_of_the_backward_pass_are_ignored_with_a_warning(of: str, log: Any) -> None:
    layer = nn.Linear(3, 3)
    if of == "a module":
        layer.register_full_backward_hook(lambda module, given, got: (given[0] * 7,))

    def forward(w: Tensor) -> Tensor:
        result = layer(w * 2)
        if of == "a tensor":
            result.register_hook(lambda gradient: gradient * 7)
        return result

    torch.testing.assert_close(gradient(forward, X), 2 * layer.weight.detach().sum(0).expand(2, 3))
    (said,) = [record.getMessage() for record in log.records if "Hooks of the backward pass" in record.getMessage()]
    assert "have no effect" in said and __file__ in said


def test_parameters_in_lists_are_trained() -> None:
    class Lists(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(X.clone())
            self.weights = [{"first": self.weight}]

        def forward(self) -> Tensor:
            both = torch.stack([self.weights[0]["first"], self.weight])
            return poptorch.identity_loss(both.square().sum(), "none")

    model = Lists()
    trainer = poptorch.trainingModel(model, optimizer=torch.optim.SGD(model.parameters(), lr=1.0))
    trainer()
    trainer.copyWeightsToHost()
    torch.testing.assert_close(model.weight.detach(), X - 4 * X)


# --- checkpoints -------------------------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_functions_are_traced_once(reentrant: bool) -> None:
    calls: List[Any] = []

    def inner(w: Tensor, factor: int) -> Tensor:
        calls.append(factor)
        return (w * factor).exp() + w.relu()

    def forward(w: Tensor) -> Tensor:
        return checkpoint(inner, w, 2, use_reentrant=reentrant) * w

    x = X / 4
    found = gradient(forward, x)
    assert calls == [2]
    weight = x.clone().requires_grad_()
    (inner(weight, 2) * weight).sum().backward()
    torch.testing.assert_close(found, weight.grad)


@pytest.mark.filterwarnings("ignore:torch.utils.checkpoint")
def test_checkpointed_sequences_are_traced() -> None:
    layers = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3), nn.Tanh())
    found = gradient(lambda w: checkpoint_sequential(layers, 2, w), X)
    weight = X.clone().requires_grad_()
    layers(weight).sum().backward()
    torch.testing.assert_close(found, weight.grad)


# --- questions about types ---------------------------------------------------------------------------


def test_questions_about_types_are_answered_while_tracing() -> None:
    def forward(x: Tensor) -> Tensor:
        assert torch.promote_types(torch.float16, x.dtype) == torch.float32
        assert torch.can_cast(torch.float16, x.dtype) and not torch.can_cast(x.dtype, torch.int32)
        return x.to(torch.promote_types(x.dtype, torch.float16)) + 1

    assert torch.equal(infer(forward, X), X + 1)
