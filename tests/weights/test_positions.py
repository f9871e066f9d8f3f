"""Resizing positions against scipy (as vit_jax has it), a written-out bicubic, and timm."""

from __future__ import annotations

from typing import Any, Tuple

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ipu_vit.models.positions import grid_side
from ipu_vit.weights.positions import resize_positions


def positions(side: int, width: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(1, 1 + side * side, width, generator=torch.Generator().manual_seed(seed))


@given(side=st.integers(2, 9), height=st.integers(2, 12), width=st.integers(2, 12))
def test_bilinear_is_scipy_s_zoom(side: int, height: int, width: int) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    learnt = positions(side)
    found = resize_positions(learnt, (height, width))
    grid = learnt[0, 1:].double().reshape(side, side, 3).numpy()
    zoomed = ndimage.zoom(grid, (height / side, width / side, 1), order=1)
    assert torch.equal(found[:, 0], learnt[:, 0])
    numpy.testing.assert_allclose(found[0, 1:].reshape(height, width, 3).numpy(), zoomed, atol=1e-5)


def bicubic(line: numpy.ndarray, size: int) -> numpy.ndarray:
    """Cubic convolution along the first axis (Keys 1981, a = −0.75), pixel centres at halves, edges repeated."""
    a, length = -0.75, len(line)

    def kernel(x: float) -> float:
        x = abs(x)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0

    result = []
    for i in range(size):
        centre = (i + 0.5) * length / size - 0.5
        near = [int(numpy.floor(centre)) + offset for offset in (-1, 0, 1, 2)]
        result.append(sum(kernel(centre - j) * line[min(max(j, 0), length - 1)] for j in near))
    return numpy.stack(result)


@pytest.mark.parametrize("grid", [(7, 7), (3, 3), (4, 6)])
def test_bicubic_is_cubic_convolution(grid: Tuple[int, int]) -> None:
    learnt = positions(5)
    found = resize_positions(learnt, grid, mode="bicubic")
    image = learnt[0, 1:].double().reshape(5, 5, 3).numpy()
    expected = bicubic(bicubic(image, grid[0]).swapaxes(0, 1), grid[1]).swapaxes(0, 1)
    numpy.testing.assert_allclose(found[0, 1:].reshape(*grid, 3).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("side", [3, 8])
def test_bicubic_is_timm_s(antialias: bool, side: int) -> None:
    layers = pytest.importorskip("timm.layers")
    learnt = positions(5)
    expected = layers.resample_abs_pos_embed(learnt, [side, side], antialias=antialias)
    assert torch.equal(resize_positions(learnt, (side, side), mode="bicubic", antialias=antialias), expected)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_without_a_class_token_the_grid_is_resized_alike(mode: str) -> None:
    learnt = positions(3)
    found = resize_positions(learnt[:, 1:], (4, 5), mode, class_token=False)
    assert torch.equal(found, resize_positions(learnt, (4, 5), mode)[:, 1:])


def test_the_same_grid_changes_nothing() -> None:
    learnt = positions(4)
    assert resize_positions(learnt, (4, 4)) is learnt


def test_a_single_position_spreads_and_a_grid_can_shrink_to_one() -> None:
    learnt = positions(1)
    assert torch.equal(resize_positions(learnt, (2, 2))[:, 1:], learnt[:, 1:].expand(1, 4, 3))
    assert resize_positions(positions(3), (1, 1)).shape == (1, 2, 3)


def test_float16_stays_float16() -> None:
    learnt = positions(3).half()
    found = resize_positions(learnt, (5, 5))
    assert found.dtype == torch.float16
    assert torch.equal(found, resize_positions(learnt.float(), (5, 5)).half())


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        (9, {}, "9 positions are not a class token and a square grid"),
        (10, {"class_token": False}, "10 positions are not a square grid"),
        (10, {"mode": "nearest"}, "mode='nearest' is not one of bilinear, bicubic"),
        (10, {"antialias": True}, "antialias=True needs mode='bicubic'"),
    ],
)
def test_what_cannot_be_resized_is_refused(tokens: int, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resize_positions(torch.zeros(1, tokens, 2), (2, 2), **options)


def test_grid_side() -> None:
    assert [grid_side(tokens) for tokens in (0, 1, 2, 4, 5, 197, 577)] == [None, None, 1, None, 2, 14, 24]
    assert [grid_side(tokens, class_token=False) for tokens in (0, 1, 2, 4, 197)] == [None, 1, None, 2, None]
