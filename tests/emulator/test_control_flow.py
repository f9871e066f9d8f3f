"""Loops and branches on the device."""

from __future__ import annotations

from typing import Any

import poptorch
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from operator_models import gradient, infer, options
from torch import Tensor, nn


@given(st.integers(0, 6))
def test_loops_feed_a_body_its_own_results(count: int) -> None:
    def fibonacci(a: Tensor, b: Tensor) -> Any:
        return b, a + b

    zeros, ones = torch.zeros(2, 1), torch.ones(2, 1)
    numbers = [0.0, 1.0]
    for _ in range(count):
        numbers.append(numbers[-2] + numbers[-1])
    for found in (
        poptorch.for_loop(count, fibonacci, [zeros, ones]),
        infer(lambda a, b: poptorch.for_loop(count, fibonacci, [a, b]), zeros, ones),
    ):
        assert isinstance(found, list)
        assert torch.equal(found[0], torch.full((2, 1), numbers[count]))
        assert torch.equal(found[1], torch.full((2, 1), numbers[count + 1]))


def test_loops_use_values_from_around_them_and_nest() -> None:
    def forward(x: Tensor, y: Tensor) -> Tensor:
        def inner(a: Tensor) -> Tensor:
            return a + y

        def outer(a: Tensor) -> Any:
            return poptorch.for_loop(3, inner, [a])

        return poptorch.for_loop(2, outer, [x])[0]

    x, y = torch.randn(2, 3), torch.randn(2, 3)
    torch.testing.assert_close(infer(forward, x, y), x + 6 * y)


def test_rule_12_1_python_of_loops_and_conditions_runs_once() -> None:
    called = []

    def body(name: str, a: Tensor) -> Tensor:
        called.append(name)
        return a + len(called)

    def forward(x: Tensor) -> Any:
        (looped,) = poptorch.for_loop(3, lambda a: body("loop", a), [x])
        return poptorch.cond(x.sum() > 0, lambda a: body("then", a), [looped], lambda a: body("else", a), [looped])[0]

    found = infer(forward, torch.tensor([[1.0], [-1.0]]), micro_batches=2)
    assert called == ["loop", "then", "else"]
    # The counter stands still on the device: 3 times 1, then 2 or 3.
    assert found.tolist() == [[6.0], [5.0]]


def test_conditions_run_one_branch_only(capfd: Any) -> None:
    def forward(x: Tensor) -> Any:
        def body(title: str, a: Tensor) -> Any:
            return poptorch.for_loop(2, lambda b: poptorch.ipu_print_tensor(b + a, title), [a])

        return poptorch.cond(x.sum() > 0, lambda a: body("then", a), [x], lambda a: body("else", a), [x])[0]

    found = infer(forward, torch.tensor([[1.0], [-1.0]]), micro_batches=2)
    assert found.tolist() == [[3.0], [-3.0]]
    assert [line.split(":")[0] for line in capfd.readouterr().err.splitlines()] == ["then", "then", "else", "else"]


def test_branches_may_return_what_is_around_them() -> None:
    def forward(x: Tensor, y: Tensor) -> Any:
        (chosen,) = poptorch.cond(x.sum() > 0, lambda: x, [], lambda: y, [])
        (looped,) = poptorch.for_loop(2, lambda a: y, [x])
        chosen += 1
        looped += 2
        return x * 1, y * 1, chosen, looped

    x, y = torch.tensor([[1.0], [-1.0]]), torch.tensor([[5.0], [6.0]])
    same_x, same_y, chosen, looped = infer(forward, x, y, micro_batches=2)
    assert torch.equal(same_x, x) and torch.equal(same_y, y)
    assert chosen.tolist() == [[2.0], [7.0]] and looped.tolist() == [[7.0], [8.0]]


def test_loops_use_weights_and_constants() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)
            self.register_buffer("scale", torch.tensor(0.5))
            self.constant = torch.ones(3)

        def forward(self, x: Tensor) -> Any:
            body = lambda a: torch.tanh(self.layer(a)) * self.scale + self.constant  # noqa: E731
            out = poptorch.for_loop(4, body, [x])[0]
            return out, poptorch.cond(x.sum() > 0, body, [x], self.layer, [x])[0]

    torch.manual_seed(0)
    model, x = Model(), torch.tensor([[1.0, 2.0, 3.0], [-1.0, -2.0, -3.0]])
    looped, chosen = poptorch.inferenceModel(model, options(2))(x)
    with torch.no_grad():
        for row in range(2):
            expected = model(x[row : row + 1])
            torch.testing.assert_close(looped[row : row + 1], expected[0])
            torch.testing.assert_close(chosen[row : row + 1], expected[1])


def test_loops_work_on_copies() -> None:
    def body(a: Tensor) -> Tensor:
        a += 1
        return a

    x = torch.zeros(2)
    (found,) = poptorch.for_loop(3, body, [x])
    assert found.tolist() == [3, 3] and x.tolist() == [0, 0]
    assert torch.equal(infer(lambda x: (poptorch.for_loop(3, body, [x])[0], x), x)[1], x)


@pytest.mark.parametrize("inputs", [torch.ones(1), (torch.ones(1),), [1.0], [torch.ones(1), None]], ids=str)
def test_loops_take_a_list_of_tensors(inputs: Any) -> None:
    with pytest.raises(ValueError, match="for_loop"):
        poptorch.for_loop(2, lambda *values: values, inputs)


@pytest.mark.parametrize(
    "count, body, complaint",
    [
        (2, lambda a: (a, a), "equally many"),
        (2, lambda a: a[:1], "of the same shapes and types"),
        (2, lambda a: a.half(), "of the same shapes and types"),
        (2, lambda a: 1.0, "must return tensors"),
        (1.5, lambda a: a, "count must be an int"),
        (-1, lambda a: a, "count must not be negative"),
    ],
)
def test_loops_refuse(count: Any, body: Any, complaint: str) -> None:
    with pytest.raises(poptorch.Error, match=complaint):
        poptorch.for_loop(count, body, [torch.ones(2)])


def test_conditions_choose_at_every_micro_batch() -> None:
    def forward(x: Tensor, y: Tensor) -> Any:
        return poptorch.cond(x.sum() > 0, lambda a, b: (a * b, a), [x, y], lambda b: (b - y, b + 1), [y])

    x, y = torch.tensor([[1.0, 2.0], [-3.0, 1.0], [0.0, 0.5]]), torch.randn(3, 2)
    first, second = infer(forward, x, y, micro_batches=3)
    positive = torch.tensor([[True], [False], [True]])
    assert torch.equal(first, torch.where(positive, x * y, torch.zeros(3, 2)))
    assert torch.equal(second, torch.where(positive, x, y + 1))


@pytest.mark.parametrize("value", [True, False])
def test_conditions_choose_on_a_cpu(value: bool) -> None:
    """There, only the chosen body runs, and may return what it likes."""
    called = []

    def body(name: str, *results: Tensor) -> Any:
        called.append(name)
        return results[0] if len(results) == 1 else results

    x = torch.ones(1)
    found = poptorch.cond(torch.tensor(value), lambda a: body("then", a), [x], lambda: body("else", x + 1, x), [])
    assert called == ["then" if value else "else"]
    assert [item.item() for item in found] == ([1.0] if value else [2.0, 1.0])


@pytest.mark.parametrize("wrong", [torch.ones(1), (torch.ones(1),), [2]], ids=str)
def test_conditions_take_lists_of_tensors(wrong: Any) -> None:
    good = [torch.ones(1)]
    for pair in ((wrong, good), (good, wrong)):
        with pytest.raises(ValueError, match="cond"):
            poptorch.cond(torch.tensor(True), lambda a: a, pair[0], lambda a: a, pair[1])


@pytest.mark.parametrize(
    "condition, then_body, complaint",
    [
        (lambda x: x > 0, lambda a: a, "condition must hold one bool"),
        (lambda x: x.sum(), lambda a: a, "condition must hold one bool"),
        (lambda x: True, lambda a: a, "condition must be a torch.Tensor"),
        (lambda x: x.sum() > 0, lambda a: (a, a), "equally many"),
        (lambda x: x.sum() > 0, lambda a: a[:1], "of the same shapes and types"),
        (lambda x: x.sum() > 0, lambda a: a.int(), "of the same shapes and types"),
        (lambda x: x.sum() > 0, lambda a: None, "must return tensors"),
    ],
)
def test_conditions_refuse(condition: Any, then_body: Any, complaint: str) -> None:
    with pytest.raises(poptorch.Error, match=complaint):
        infer(lambda x: poptorch.cond(condition(x), then_body, [x], lambda a: a, [x])[0], torch.ones(2, 2))


def test_rule_12_4_loops_and_conditions_are_for_inference() -> None:
    weight = torch.ones(2)
    with pytest.raises(poptorch.Error, match=r"poptorch\.for_loop is for inference only"):
        gradient(lambda w: poptorch.for_loop(2, lambda a: a * 2, [w])[0], weight)
    with pytest.raises(poptorch.Error, match=r"poptorch\.cond is for inference only"):
        gradient(lambda w: poptorch.cond(w.sum() > 0, lambda a: a, [w], lambda a: -a, [w])[0], weight)
