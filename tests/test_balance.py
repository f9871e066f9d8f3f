"""Layers are spread so that the busiest IPU has the least to do: against all splits there are."""

from __future__ import annotations

from itertools import combinations
from typing import List, Sequence, Tuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipu_vit.balance import balanced_layers
from ipu_vit.models.costs import costs
from ipu_vit.models.sizes import MODELS
from ipu_vit.settings import ModelSettings, PipelineSettings


def loads(parts: Sequence[int], layers_per_ipu: List[int]) -> List[int]:
    """The cost of each IPU."""
    embedding, *layers, head = parts
    remaining = iter(layers)
    found = [sum(next(remaining) for _ in range(count)) for count in layers_per_ipu]
    assert not list(remaining)
    found[0] += embedding
    found[-1] += head
    return found


def rank(found: List[int]) -> Tuple[int, int]:
    return max(found), sum(load**2 for load in found)


@settings(max_examples=200)
@given(parts=st.lists(st.integers(0, 50), min_size=2, max_size=9), data=st.data())
def test_no_split_is_better(parts: List[int], data: st.DataObject) -> None:
    ipus = data.draw(st.integers(1, len(parts)))
    found = balanced_layers(parts, ipus)
    assert len(found) == ipus and 0 not in found[1:-1]
    every = []
    for cuts in combinations(range(1, len(parts)), ipus - 1):
        ends = [0, *cuts, len(parts)]
        every.append([sum(parts[start:end]) for start, end in zip(ends, ends[1:])])
    assert rank(loads(parts, found)) == min(map(rank, every))


@pytest.mark.parametrize("ipus", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("name", MODELS)
def test_named_models_split_over_all_numbers_of_ipus(name: str, ipus: int) -> None:
    model = ModelSettings(**MODELS[name].settings)
    known = costs(**model.model_dump())
    if ipus > model.depth + 2:
        with pytest.raises(ValueError, match=f"over {ipus} IPUs; use 1 to {model.depth + 2}"):
            balanced_layers(known.parts, ipus)
        return
    found = balanced_layers(known.parts, ipus)
    assert sum(found) == model.depth
    PipelineSettings(layers_per_ipu=found, available_memory_proportion=[0.3], global_batch=62, micro_batch=1)


@pytest.mark.parametrize(
    "name, ipus, expected",
    [
        ("ViT-B/16", 4, [3, 3, 3, 3]),
        ("ViT-L/16", 8, [3] * 8),
        # The ResNet costs as much as three encoder layers, so that the first IPU has fewer of these.
        ("R50+ViT-B/16", 4, [1, 4, 4, 3]),
    ],
)
def test_splits_are_those_of_common_sense(name: str, ipus: int, expected: List[int]) -> None:
    model = ModelSettings(**MODELS[name].settings)
    assert balanced_layers(costs(**model.model_dump()).parts, ipus) == expected
