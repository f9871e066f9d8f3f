"""Each of several processes loads its own part of a dataset (rule 7.11)."""

from __future__ import annotations

from typing import Any, Iterator, List

import poptorch
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loader_datasets import Counting, join, make_options, numbers
from torch.utils.data import SequentialSampler

SYNC, ASYNC, REBATCHED = poptorch.DataLoaderMode


def loaders(items: int, processes: int, make: Any = None, seed: Any = None, **kwargs: Any) -> List[Any]:
    """One loader for each process."""
    options = [make_options(process=process, processes=processes, seed=seed) for process in range(processes)]
    if make is None:
        return [poptorch.DataLoader(some, Counting(items), **kwargs) for some in options]
    return [make(poptorch.DataLoader, some, Counting(items), **kwargs) for some in options]


def orders(items: int, seed: int) -> Iterator[List[int]]:
    """The permutations of the epochs, one drawn after the other from the seed."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randperm(items, generator=generator).tolist()


def cut(row: List[int], size: int) -> List[List[int]]:
    return [row[first : first + size] for first in range(0, len(row), size)]


@pytest.mark.parametrize("mode", [SYNC, ASYNC])
def test_rule_7_11_contiguous_blocks(make: Any, mode: Any) -> None:
    first, second = loaders(21, 2, make, batch_size=4, mode=mode)
    for _ in range(2):
        assert numbers(first) == [[0, 1, 2, 3], [4, 5, 6, 7]]
        assert numbers(second) == [[8, 9, 10, 11], [12, 13, 14, 15]]
    assert len(first) == len(second) == len(first.dataset) // 4 == 2


@settings(max_examples=60)
@given(items=st.integers(1, 200), processes=st.integers(2, 5), batch=st.integers(1, 6), seed=st.integers(0, 9))
def test_rule_7_11_equal_numbers_of_batches_of_disjoint_items(
    items: int, processes: int, batch: int, seed: int
) -> None:
    if items < processes * batch:
        with pytest.raises(AssertionError, match=f"not one batch of {batch} for each of {processes} processes"):
            loaders(items, processes, batch_size=batch)
        return
    for kwargs in ({}, dict(shuffle=True, seed=seed)):
        made = loaders(items, processes, batch_size=batch, **kwargs)
        for _ in range(2):
            rows = [numbers(loader) for loader in made]
            flat = join(join(rows))
            assert {len(share) for share in rows} == {items // (processes * batch)} == {len(made[0])}
            assert len(set(flat)) == len(flat) and set(flat) <= set(range(items))


@pytest.mark.parametrize(
    "kwargs",
    [{}, dict(num_workers=2), dict(num_workers=1, persistent_workers=False), dict(mode=ASYNC), dict(mode=REBATCHED)],
    ids=str,
)
def test_rule_7_11_shuffling_permutes_the_whole_dataset_anew_in_each_epoch(make: Any, kwargs: Any) -> None:
    items, batch, seed = 23, 5, 9
    made = loaders(items, 2, make, batch_size=batch, shuffle=True, seed=seed, **kwargs)
    torch.manual_seed(1)  # which has nothing to do with it
    for epoch, order in zip(range(4), orders(items, seed)):
        # The 3 items that are left over are those at the front in every other epoch, beginning with the first.
        used = order[3:] if epoch % 2 == 0 else order[:20]
        assert [numbers(loader) for loader in made] == [cut(used[:10], batch), cut(used[10:], batch)]


def test_rule_7_11_the_rest_is_swapped_every_other_epoch() -> None:
    made = loaders(21, 2, batch_size=5, shuffle=True, seed=4)
    left_out = [set(range(21)) - set(join(join(numbers(loader) for loader in made))) for _ in range(4)]
    firsts_and_lasts = [order[-1] if epoch % 2 else order[0] for epoch, order in zip(range(4), orders(21, 4))]
    assert left_out == [{item} for item in firsts_and_lasts]


def test_rule_7_11_an_abandoned_epoch_counts() -> None:
    (loader,) = loaders(20, 2, batch_size=5, shuffle=True, seed=4)[:1]
    next(iter(loader))
    permutations = orders(20, 4)
    next(permutations)
    assert numbers(loader) == cut(next(permutations)[:10], 5)


def test_rule_7_11_what_is_kept_is_dealt_out() -> None:
    made = loaders(23, 3, batch_size=4, drop_last=False)
    assert [numbers(loader) for loader in made] == [
        [[0, 1, 2, 3], [4, 5, 6, 7]],
        [[8, 9, 10, 11], [12, 13, 14, 15]],
        [[16, 17, 18, 19], [20, 21, 22]],
    ]
    shuffled = loaders(23, 3, batch_size=4, drop_last=False, shuffle=True, seed=2)
    for _, order in zip(range(3), orders(23, 2)):
        assert join(join(numbers(loader) for loader in shuffled)) == order


def test_rule_7_11_the_dataset_of_a_loader_is_the_part() -> None:
    first, second = loaders(21, 2, batch_size=4)
    assert len(first.dataset) == len(second.dataset) == 8
    assert [first.dataset[3].item(), second.dataset[3].item()] == [3, 11]


def test_rule_7_11_a_sampler_orders_the_part() -> None:
    for sampler in (SequentialSampler(range(2)), [3, 0]):
        _, loader = loaders(8, 2, batch_size=2, sampler=sampler)
        assert numbers(loader) == [[4 + position for position in sampler]]


def test_rule_7_11_shuffling_needs_a_seed() -> None:
    with pytest.raises(AssertionError, match="randomSeed"):
        poptorch.DataLoader(make_options(processes=2), Counting(8), shuffle=True)


def test_rule_7_11_parts_need_batches() -> None:
    with pytest.raises(AssertionError, match="batch_size=None"):
        poptorch.DataLoader(make_options(processes=2), Counting(8), batch_size=None, drop_last=False)


def test_rule_7_11_programs_may_do_it_themselves() -> None:
    loader = poptorch.DataLoader(
        make_options(process=1, processes=2), Counting(4), batch_size=2, auto_distributed_partitioning=False
    )
    assert numbers(loader) == [[0, 1], [2, 3]]
