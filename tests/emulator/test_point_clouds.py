"""Sampling and matching points, against their definitions."""

from __future__ import annotations

import math
from typing import Any, List

import numpy as np
import poptorch
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from operator_models import infer
from torch import Tensor


def points(count: int, coordinates: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(count, coordinates, generator=torch.Generator().manual_seed(seed))


def check_farthest(cloud: np.ndarray, chosen: List[int]) -> None:
    """Each point must be as far as possible from the nearest of those chosen before."""
    assert len(set(chosen)) == len(chosen)
    distances = np.linalg.norm(cloud[:, None] - cloud[None], axis=-1)
    for position in range(1, len(chosen)):
        to_chosen = distances[:, chosen[:position]].min(1)
        assert to_chosen[chosen[position]] == pytest.approx(to_chosen.max(), rel=1e-6)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.floats(0.01, 1.0), st.integers(1, 3), st.booleans())
def test_fps_chooses_the_farthest_of_each_cloud(
    sizes: List[int], ratio: float, coordinates: int, random_start: bool
) -> None:
    ptr = [0, *np.cumsum(sizes).tolist()]
    src = points(ptr[-1], coordinates)
    found = poptorch.fps(src, ptr, ratio, random_start).tolist()
    for begin, end in zip(ptr, ptr[1:]):
        count = math.ceil(np.float32(end - begin) * np.float32(ratio))
        chosen, found = [index - begin for index in found[:count]], found[count:]
        assert all(0 <= index < end - begin for index in chosen)
        assert random_start or chosen[0] == 0
        check_farthest(src[begin:end].numpy(), chosen)
    assert not found


def test_fps_on_the_device() -> None:
    src = points(12)
    found = infer(lambda src: src.index_select(0, poptorch.fps(src, [0, 2, 6])), src, micro_batches=2)
    expected = [src[half].index_select(0, poptorch.fps(src[half], [0, 2, 6])) for half in (slice(6), slice(6, 12))]
    assert torch.equal(found, torch.cat(expected))


def test_fps_starts_anew_at_every_micro_batch_if_asked() -> None:
    cloud, options = points(30), poptorch.Options()
    options.randomSeed(1)
    options.deviceIterations(20)

    class Model(torch.nn.Module):
        def forward(self, src: Tensor) -> Tensor:
            return poptorch.fps(src, [0, 30], 0.1, True)

    found = poptorch.inferenceModel(Model(), options)(cloud.repeat(20, 1)).reshape(20, 3)
    assert len(set(found[:, 0].tolist())) > 5
    for chosen in found.tolist():
        check_farthest(cloud.numpy(), chosen)


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"src": [1.0]}, "src must be a torch.Tensor, not list"),
        ({"ptr": torch.tensor([0, 4])}, "ptr must be a list, not Tensor"),
        ({"ptr": [0]}, "ptr must have at least 2 items"),
        ({"ptr": [0, 3, 3]}, "ptr must increase"),
        ({"ptr": [0, 5]}, "at most the 4 points"),
        ({"ratio": 1}, "ratio must be a float, not int"),
        ({"ratio": 1.5}, "ratio must be above 0 and at most 1"),
        ({"random_start": 1}, "random_start must be a bool, not int"),
    ],
    ids=str,
)
def test_fps_refuses(change: Any, complaint: str) -> None:
    with pytest.raises(poptorch.Error, match=complaint):
        poptorch.fps(**{"src": points(4), "ptr": [0, 4], **change})


def nearest_by_definition(x: Tensor, y: Tensor, batch_x: List[int], batch_y: List[int]) -> List[int]:
    distances = np.linalg.norm(x.numpy()[:, None].astype(float) - y.numpy()[None], axis=-1)
    distances[np.array(batch_x)[:, None] != np.array(batch_y)[None]] = np.inf
    return [int(index) for index in distances.argmin(1)]


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=3), st.integers(1, 3), st.data())
def test_nearest_matches_within_batches(sizes: Any, coordinates: int, data: Any) -> None:
    batch_x = [batch for batch, (count, _) in enumerate(sizes) for _ in range(count)]
    batch_y = [batch for batch, (_, count) in enumerate(sizes) for _ in range(count)]
    x, y = points(len(batch_x), coordinates, seed=1), points(len(batch_y), coordinates, seed=2)
    given_ = [torch.tensor(b) if data.draw(st.booleans()) else b for b in (batch_x, batch_y)]
    assert poptorch.nearest(x, y, *given_).tolist() == nearest_by_definition(x, y, batch_x, batch_y)


def test_nearest_without_batches() -> None:
    x, y = points(7, 3, seed=1), points(4, 3, seed=2)
    expected = nearest_by_definition(x, y, [0] * 7, [0] * 4)
    assert poptorch.nearest(x, y).tolist() == expected
    assert poptorch.nearest(x, y, [], [0] * 4).tolist() == expected
    assert poptorch.nearest(x, y, torch.zeros(7, dtype=torch.int32), None).tolist() == expected
    assert poptorch.nearest(x[:, 0], y[:, 0]).tolist() == nearest_by_definition(x[:, :1], y[:, :1], [0] * 7, [0] * 4)


@pytest.mark.parametrize("kind", [torch.float32, torch.float16])
def test_nearest_on_the_device(kind: torch.dtype) -> None:
    x, y = points(6, seed=1).to(kind), points(6, seed=2).to(kind)
    batches = torch.tensor([0, 0, 1, 0, 1, 1], dtype=torch.int32)
    found = infer(lambda x, y, b: poptorch.nearest(x, y, b, [0, 1, 1]), x, y, batches, micro_batches=2)
    assert found.dtype == torch.int32
    for half in (slice(3), slice(3, 6)):
        assert found[half].tolist() == nearest_by_definition(x[half], y[half], batches[half].tolist(), [0, 1, 1])


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"x": [1.0]}, "x must be a torch.Tensor"),
        ({"y": [1.0]}, "y must be a torch.Tensor"),
        ({"y": torch.ones(2, 3)}, "equally many coordinates"),
        ({"x": torch.ones(3, 1, 2)}, "equally many coordinates"),
        ({"batch_x": (0, 0, 1)}, "batch_x must be a list or a tensor, not tuple"),
        ({"batch_x": [0, 0]}, "batch_x has 2 items for 3 points"),
        ({"batch_y": torch.tensor([0])}, "batch_y has 1 items for 2 points"),
        ({"batch_x": [0, 1, 0]}, "batch_x must ascend"),
        ({"batch_x": [0, 0, 1], "batch_y": [0, 0]}, "must name the same batches"),
    ],
    ids=str,
)
def test_nearest_refuses(change: Any, complaint: str) -> None:
    with pytest.raises(poptorch.Error, match=complaint):
        poptorch.nearest(**{"x": torch.ones(3, 2), "y": torch.ones(2, 2), **change})
