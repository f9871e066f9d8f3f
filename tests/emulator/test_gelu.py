"""GELU in its tanh form, against the formula in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ipu_vit.emulator.gelu import TanhGelu
from ipu_vit.emulator.half import HalfArithmetic

# More numbers than one piece holds, and not a whole number of pieces.
WAYS = [
    (torch.float32, 1e-5, 1e-6),
    (torch.float16, 2**-10, 2**-24),
    (torch.bfloat16, 2**-7, 2**-20),
]


def formula(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize("dtype, relative, absolute", WAYS)
def test_it_is_the_formula_and_its_derivative(dtype: torch.dtype, relative: float, absolute: float) -> None:
    generator = torch.Generator().manual_seed(0)
    values, upstream = (torch.randn(2, 617, 1201, generator=generator) * 3).to(dtype)
    x, exact = values.clone().requires_grad_(), values.double().requires_grad_()
    with HalfArithmetic():
        found = TanhGelu.apply(x)
        (gradient,) = torch.autograd.grad(found, x, upstream)
    expected = formula(exact)
    (expected_gradient,) = torch.autograd.grad(expected, exact, upstream.double())
    assert found.dtype == gradient.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=relative, atol=absolute)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=relative, atol=max(absolute, 5e-6))


@pytest.mark.parametrize("dtype, relative, absolute", WAYS)
def test_the_largest_numbers_and_nan(dtype: torch.dtype, relative: float, absolute: float) -> None:
    x = torch.tensor([65504.0, -65504.0, 0.0, float("nan"), float("inf")], dtype=dtype).requires_grad_()
    with HalfArithmetic():
        found = TanhGelu.apply(x)
        found.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(found, F.gelu(x.detach().float(), approximate="tanh").to(dtype), equal_nan=True)
    torch.testing.assert_close(
        x.grad[:4].float(), torch.tensor([1.0, 0.0, 0.5, float("nan")]), equal_nan=True, rtol=0, atol=0
    )


def test_tensors_that_lie_in_strides() -> None:
    """Neither input nor gradient need be contiguous."""
    generator = torch.Generator().manual_seed(0)
    values, upstream = torch.randn(2, 700, 900, generator=generator)
    x = values.t().requires_grad_()
    found = TanhGelu.apply(x)
    (gradient,) = torch.autograd.grad(found, x, upstream.t())
    expected = F.gelu(x, approximate="tanh")
    (expected_gradient,) = torch.autograd.grad(expected, x, upstream.t())
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=2e-6)
