"""Printing: tensors while the device computes, and modules with their blocks."""

from __future__ import annotations

import re
from typing import Any, List

import poptorch
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from operator_models import gradient, infer
from torch import Tensor, nn

INF, NAN = float("inf"), float("nan")


def numbers(text: str) -> List[float]:
    return [float(number) for number in re.findall(r"-?\d[\d.e+-]*", text)]


def text_of(capfd: Any, *args: Any, **kwargs: Any) -> str:
    poptorch.ipu_print_tensor(*args, **kwargs)
    out, err = capfd.readouterr()
    assert out == "" and err.endswith("\n")
    return str(err[:-1])


# When --------------------------------------------------------------------------------------------


def test_tensors_are_printed_at_every_micro_batch(capfd: Any) -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    found = infer(lambda x: poptorch.ipu_print_tensor(x * 2, "twice") + 1, x, micro_batches=3)
    assert torch.equal(found, x * 2 + 1)
    lines = capfd.readouterr().err.splitlines()
    assert lines == ["twice: ((2.000, 4.000))", "twice: ((6.000, 8.000))", "twice: ((10.00, 12.00))"]


def test_nothing_is_printed_while_the_model_is_traced(capfd: Any) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))

        def forward(self, x: Tensor) -> Tensor:
            return poptorch.identity_loss(poptorch.ipu_print_tensor(self.weight * x), "sum")

    poptorch.trainingModel(Model()).compile(torch.ones(2))
    assert capfd.readouterr() == ("", "")


def test_gradients_are_printed_under_a_title_of_their_own(capfd: Any) -> None:
    weight = torch.tensor([1.0, 2.0, 3.0])
    assert torch.equal(gradient(lambda w: poptorch.ipu_print_tensor(w * 2, "value") ** 2, weight), 8 * weight)
    lines = capfd.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["value", "value_gradient"]
    assert [numbers(line) for line in lines] == [[2, 4, 6], [4, 8, 12]]


def test_gradients_are_not_printed_if_not_wanted(capfd: Any) -> None:
    gradient(lambda w: poptorch.ipu_print_tensor(w, "value", print_gradient=False), torch.ones(2))
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_printing_on_a_cpu_is_an_identity(capfd: Any) -> None:
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.equal(poptorch.ipu_print_tensor(x), x)
    assert torch.autograd.gradcheck(lambda x: poptorch.ipu_print_tensor(x, print_gradient=False), x)
    capfd.readouterr()
    poptorch.ipu_print_tensor(x, "x").backward(torch.ones(2, 3) * 3)
    assert numbers(capfd.readouterr().err.split("x_gradient")[1]) == [3.0] * 6


def test_half_precision_is_printed(capfd: Any) -> None:
    infer(lambda x: poptorch.ipu_print_tensor(x * 2, "half") * 1, torch.tensor([0.5, 1.0]).half())
    assert capfd.readouterr().err == "half: (1.000, 2.000)\n"


def test_printing_takes_a_tensor_and_a_known_format() -> None:
    with pytest.raises(poptorch.Error, match="must be a torch.Tensor, not float"):
        poptorch.ipu_print_tensor(1.0)
    with pytest.raises(KeyError, match="auto, fixed, scientific, none, not long"):
        poptorch.ipu_print_tensor(torch.ones(1), float_format="long")


# How ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values, options, expected",
    [
        ([1.0, -2.5], {}, "( 1.000, -2.500)"),
        ([[1.0, 20.0], [300.0, 4.5]], {}, "((  1.0,  20.0),\n (300.0,   4.5))"),
        ([1.0, 20000.0], {}, "(1.000e+00, 2.000e+04)"),
        ([1.0, 0.0001], {}, "(1.000e+00, 1.000e-04)"),
        ([0.0, 0.0], {}, "(0.000, 0.000)"),
        ([1.0, 0.0001], {"float_format": "fixed"}, "(1.000, 0.000)"),
        ([1.5], {"float_format": "scientific", "digits": 2}, "(1.5e+00)"),
        ([1.5, 20000.0], {"float_format": "none"}, "(1.5, 2e+04)"),
        ([1.5, 123456.0], {"digits": 0}, "(1.5, 123456)"),
        ([1.0, INF, -INF, NAN], {}, "(1.000,   inf,  -inf,   nan)"),
        ([1, -200, 30], {}, "(   1, -200,   30)"),
        ([True, False], {}, "(1, 0)"),
        (2.5, {}, "2.500"),
        ([[1, 2]], {"separator": " ", "open_bracket": "[", "close_bracket": "]"}, "[[1 2]]"),
        ([[1, 2]], {"title": "t"}, "t: ((1, 2))"),
    ],
    ids=str,
)
def test_text(capfd: Any, values: Any, options: Any, expected: str) -> None:
    assert text_of(capfd, torch.tensor(values), **options) == expected


def test_large_tensors_are_summarised(capfd: Any) -> None:
    x = torch.arange(2000)
    assert numbers(text_of(capfd, x)) == [0, 1, 2, 1997, 1998, 1999]
    assert numbers(text_of(capfd, x, edge_items=1)) == [0, 1999]
    assert "..." in text_of(capfd, x)
    assert numbers(text_of(capfd, x, summarise_threshold=2000)) == list(range(2000))
    assert numbers(text_of(capfd, x, summarise_threshold=0)) == list(range(2000))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40), st.integers(20, 100))
def test_lines_keep_to_the_width_and_numbers_to_the_digits(capfd: Any, values: List[float], width: int) -> None:
    x = torch.tensor(values)
    text = text_of(capfd, x, max_line_width=width, digits=9, float_format="scientific")
    assert max(map(len, text.splitlines())) <= width
    assert torch.equal(torch.tensor(numbers(text)), x)  # nine digits tell float32 numbers apart
    assert "\n" not in text_of(capfd, x, max_line_width=0)


# Modules -----------------------------------------------------------------------------------------


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.ReLU(), nn.Identity()))
        self.head = nn.LayerNorm(3)
        self.nothing = None

    def extra_repr(self) -> str:
        return "of=our\nown=kind"


@pytest.mark.parametrize("model", [nn.Linear(2, 3), nn.ReLU(), Model(), nn.Sequential()], ids=repr)
def test_modules_are_printed_as_torch_does(capsys: Any, model: nn.Module) -> None:
    poptorch.print(model)
    assert capsys.readouterr().out == f"{model!r}\n"


def test_modules_are_printed_with_their_blocks(capsys: Any) -> None:
    model = Model()
    plain = repr(model)
    poptorch.BeginBlock(model.layers[1], "middle", ipu_id=1)
    poptorch.BeginBlock(model.head)
    poptorch.print(model)
    printed = capsys.readouterr().out
    assert "(1): BeginBlock(user_id=middle, ipu_id=1) Sequential(" in printed
    assert "(head): BeginBlock(user_id=None, ipu_id=None) LayerNorm(" in printed
    assert re.sub(r"BeginBlock\([^)]*\) ", "", printed) == f"{plain}\n"


def test_other_things_are_printed_too(capsys: Any) -> None:
    poptorch.print("text")
    assert capsys.readouterr().out == "text\n"
