"""Operators in tiles against the same ones in float64, rounded to half once."""

from __future__ import annotations

from typing import List, Tuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ipu_vit.emulator import tiles
from ipu_vit.emulator.half import HalfArithmetic

aten = torch.ops.aten


@st.composite
def calls(draw: st.DrawFn) -> Tuple[torch._ops.OpOverload, List[object]]:
    """An operator and its arguments: matrices of any shape and layout, most of more than one tile."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))

    def tensor(*shape: int) -> Tensor:
        """Of halves, row by row in memory or column by column."""
        values = torch.randn(shape, generator=generator).half()
        return values.mT.contiguous().mT if len(shape) > 1 and draw(st.booleans()) else values

    batch, rows, inner, columns = (draw(st.integers(1, 40)) for _ in range(4))
    shape = draw(st.sampled_from([(), (columns,), (rows, columns), (batch, rows, columns)]))
    scale = draw(st.sampled_from([0.1, -3.0, 1e-3]))
    softmaxed, upstream, dim = tensor(*shape), tensor(*shape), draw(st.integers(-len(shape), max(0, len(shape) - 1)))
    return draw(
        st.sampled_from(
            [
                (aten.mm.default, [tensor(rows, inner), tensor(inner, columns)]),
                (aten.addmm.default, [tensor(columns), tensor(rows, inner), tensor(inner, columns)]),
                (aten.addmm.default, [tensor(1, columns), tensor(rows, inner), tensor(inner, columns)]),
                (aten.addmm.default, [tensor(1), tensor(rows, inner), tensor(inner, columns)]),
                (aten.bmm.default, [tensor(batch, rows, inner), tensor(batch, inner, columns)]),
                (aten.add.Tensor, [upstream, softmaxed]),
                (aten.sub.Tensor, [upstream, tensor(columns) if shape else upstream]),
                (aten.mul.Tensor, [upstream, scale]),
                (aten.div.Tensor, [upstream, scale]),
                (aten.add.Scalar, [upstream, scale, 2]),
                (aten.sum.dim_IntList, [upstream, [dim]]),
                (aten._softmax.default, [softmaxed, dim, False]),
                (aten._log_softmax.default, [softmaxed, dim, False]),
                (aten._softmax_backward_data.default, [upstream, softmaxed, dim, torch.float16]),
            ]
        )
    )


@settings(max_examples=300)
@given(calls())
def test_tiles_are_as_the_whole(call: Tuple[torch._ops.OpOverload, List[object]]) -> None:
    operator, args = call
    with pytest.MonkeyPatch.context() as patch, HalfArithmetic():
        patch.setattr(tiles, "TILE", 500)
        result = operator(*args)
    exact = operator(*(each.double() if isinstance(each, Tensor) else _doubled(each) for each in args))
    assert result.dtype == torch.float16 and result.shape == exact.shape
    # half's precision, and float32's where large terms cancel
    torch.testing.assert_close(result.double(), exact, rtol=2**-11, atol=1e-4)


def _doubled(value: object) -> object:
    return torch.float64 if value is torch.float16 else value


def test_infinities_and_nan_stay_in_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "TILE", 100)
    left, right = torch.ones(64, 8).half(), torch.ones(8, 16).half()
    left[5] = 60000
    left[50, 3] = float("nan")
    with HalfArithmetic():
        result = left @ right
    assert result[5].isinf().all() and result[50].isnan().all()
    rest = [row for row in range(64) if row not in (5, 50)]
    assert (result[rest] == 8).all()
