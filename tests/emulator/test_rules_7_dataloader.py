"""What a loader's batches hold (rules 7.1 to 7.5 and 7.10); asynchronous ones hold the same.

Datasets yield their own indices, so what a loader should yield can be said without a loader.
"""

from __future__ import annotations

from typing import Any, List

import poptorch
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loader_datasets import (
    Counting,
    Images,
    Sharded,
    Stream,
    Watched,
    join,
    keep_some,
    make_options,
    numbers,
    stack_reversed,
)
from torch.utils.data import BatchSampler, RandomSampler

MODES = list(poptorch.DataLoaderMode)
SYNC, ASYNC, REBATCHED = MODES

# 7.1 ------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(
    iterations=st.integers(1, 4),
    groups=st.integers(1, 3),
    group=st.integers(1, 3),
    accumulation=st.integers(1, 4),
    batch_size=st.integers(1, 4),
    items=st.integers(0, 200),
)
def test_rule_7_1_a_batch_is_what_one_call_consumes(
    iterations: int, groups: int, group: int, accumulation: int, batch_size: int, items: int
) -> None:
    options = make_options(iterations, groups * group, accumulation)
    options.inputReplicaGrouping(group, poptorch.CommGroupType.Consecutive)
    loader = poptorch.DataLoader(options, Counting(items), batch_size=batch_size)
    combined = iterations * groups * accumulation * batch_size  # replicas that share input count once
    assert loader.combinedBatchSize == combined
    assert numbers(loader) == [
        list(range(first, first + combined)) for first in range(0, items - combined + 1, combined)
    ]


@pytest.mark.parametrize("kind", [poptorch.CommGroupType.Consecutive, poptorch.CommGroupType.Orthogonal])
def test_rule_7_1_replicas_that_share_input_count_once(make: Any, kind: Any) -> None:
    options = make_options(iterations=3, replicas=4)
    options.inputReplicaGrouping(2, kind)
    loader = make(poptorch.DataLoader, options, Counting(100), batch_size=5, mode=ASYNC)
    assert numbers(loader) == [list(range(first, first + 3 * (4 // 2) * 5)) for first in (0, 30, 60)]


def test_rule_7_1_options_are_frozen() -> None:
    options = make_options()
    loader = poptorch.DataLoader(options, Counting(4))
    assert loader.options is options
    with pytest.raises(AttributeError, match="Can't modify frozen Options"):
        options.deviceIterations(2)


def test_rule_7_1_options_come_first() -> None:
    with pytest.raises(AssertionError, match="takes a poptorch.Options"):
        poptorch.DataLoader(Counting(4), make_options())


def test_rule_7_1_without_a_batch_size_the_dataset_makes_the_batches(make: Any) -> None:
    for mode in (SYNC, ASYNC):
        loader = make(poptorch.DataLoader, make_options(), Counting(3), batch_size=None, drop_last=False, mode=mode)
        assert loader.combinedBatchSize is None
        assert numbers(loader) == [[0], [1], [2]]


# 7.2 ------------------------------------------------------------------------------------------


def test_rule_7_2_the_rest_is_dropped_by_default() -> None:
    assert numbers(poptorch.DataLoader(make_options(), Counting(10), batch_size=4)) == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize("mode", MODES)
def test_rule_7_2_keeping_the_rest_warns_of_its_size(make: Any, log: Any, mode: Any) -> None:
    loader = make(poptorch.DataLoader, make_options(), Counting(10), batch_size=4, drop_last=False, mode=mode)
    assert "last batch has 2 items instead of 4" in log.text
    for _ in range(2):
        assert numbers(loader) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


@pytest.mark.parametrize("mode", MODES)
def test_rule_7_2_fewer_items_than_one_batch(make: Any, mode: Any) -> None:
    loader = make(poptorch.DataLoader, make_options(), Counting(3), batch_size=4, drop_last=False, mode=mode)
    for _ in range(2):
        assert numbers(loader) == [[0, 1, 2]]


@pytest.mark.parametrize("mode", [ASYNC, REBATCHED])
def test_rule_7_2_the_rests_of_several_workers_are_one(make: Any, mode: Any) -> None:
    loader = make(
        poptorch.DataLoader, make_options(), Sharded(14), batch_size=4, num_workers=2, drop_last=False, mode=mode
    )
    for _ in range(2):
        rows = numbers(loader)
        assert [len(row) for row in rows] == [4, 4, 4, 2]
        assert sorted(join(rows)) == list(range(14))


def test_rule_7_2_no_rest_no_warning(log: Any) -> None:
    poptorch.DataLoader(make_options(), Counting(8), batch_size=4, drop_last=False)
    assert not log.records


def test_rule_7_2_workers_persist_by_default() -> None:
    def persist(**kwargs: Any) -> bool:
        return bool(poptorch.DataLoader(make_options(), Counting(4), **kwargs).persistent_workers)

    assert persist(num_workers=1) and not persist()
    assert not persist(num_workers=1, persistent_workers=False)


# 7.3 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [SYNC, ASYNC])
def test_rule_7_3_batches_of_a_batch_sampler_are_joined(make: Any, mode: Any) -> None:
    batches = BatchSampler(range(11, -1, -1), batch_size=2, drop_last=True)
    loader = make(poptorch.DataLoader, make_options(iterations=2), Counting(12), batch_sampler=batches, mode=mode)
    assert loader.combinedBatchSize == 4
    assert len(loader) == 3
    assert numbers(loader) == [[11, 10, 9, 8], [7, 6, 5, 4], [3, 2, 1, 0]]


@pytest.mark.parametrize("mode", [SYNC, ASYNC])
def test_rule_7_3_a_batch_sampler_is_any_iterable(make: Any, mode: Any) -> None:
    batches = [[5, 0], [3, 1], [2, 2], [4, 1], [0, 0]]
    loader = make(poptorch.DataLoader, make_options(accumulation=2), Counting(6), batch_sampler=batches, mode=mode)
    assert loader.combinedBatchSize is None
    assert numbers(loader) == [[5, 0, 3, 1], [2, 2, 4, 1]]


@pytest.mark.parametrize("mode", [SYNC, ASYNC])
@pytest.mark.parametrize("drop_last", [True, False])
def test_rule_7_3_an_incomplete_join_is_a_rest(make: Any, mode: Any, drop_last: bool) -> None:
    batches = BatchSampler(range(10), batch_size=2, drop_last=True)
    options = make_options(iterations=2)
    loader = make(poptorch.DataLoader, options, Counting(10), batch_sampler=batches, mode=mode, drop_last=drop_last)
    expected = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]][: 2 if drop_last else 3]
    assert numbers(loader) == expected
    assert len(loader) == len(expected)


def test_rule_7_3_exclusions() -> None:
    batches = BatchSampler(range(4), batch_size=2, drop_last=True)
    with pytest.raises(AssertionError, match="either shuffle or batch_sampler"):
        poptorch.DataLoader(make_options(), Counting(4), batch_sampler=batches, shuffle=True)
    distributed = make_options(processes=2)
    with pytest.raises(AssertionError, match="auto_distributed_partitioning=False"):
        poptorch.DataLoader(distributed, Counting(4), batch_sampler=batches)
    loader = poptorch.DataLoader(distributed, Counting(4), batch_sampler=batches, auto_distributed_partitioning=False)
    assert numbers(loader) == [[0, 1], [2, 3]]


@pytest.mark.parametrize("mode", [SYNC, ASYNC])
@pytest.mark.parametrize(
    "kwargs",
    [
        dict(sampler=[5, 3, 8, 0]),
        dict(sampler=RandomSampler(range(9), replacement=True, num_samples=6)),
        dict(shuffle=True),
        dict(collate_fn=stack_reversed),
        dict(pin_memory=True),
        dict(num_workers=1, prefetch_factor=3, timeout=60, persistent_workers=False),
    ],
    ids=lambda kwargs: " ".join(kwargs),
)
@pytest.mark.filterwarnings("ignore:'pin_memory'")
def test_rule_7_3_other_arguments_are_torchs(make: Any, mode: Any, kwargs: Any) -> None:
    """As torch's own loader yields, both from the same state of the random generator."""
    torch.manual_seed(8)
    loader = make(poptorch.DataLoader, make_options(), Counting(9), batch_size=2, mode=mode, **kwargs)
    found = [str(batch) for epoch in range(2) for batch in loader]
    torch.manual_seed(8)
    reference = torch.utils.data.DataLoader(Counting(9), batch_size=2, drop_last=True, **kwargs)
    assert found == [str(batch) for epoch in range(2) for batch in reference]


def test_rule_7_3_a_generator_of_its_own() -> None:
    def epochs(kind: Any, *args: Any) -> List[List[List[int]]]:
        generator = torch.Generator().manual_seed(3)
        loader = kind(*args, Counting(8), batch_size=2, shuffle=True, generator=generator)
        return [numbers(loader) for _ in range(2)]

    assert epochs(poptorch.DataLoader, make_options()) == epochs(torch.utils.data.DataLoader)


def test_rule_7_3_a_worker_init_fn_of_a_map_dataset(make: Any) -> None:
    # It makes the workers' copies of the dataset shorter, which must not matter to who asks for items.
    for mode in (SYNC, ASYNC):
        loader = make(
            poptorch.DataLoader, make_options(), Counting(7), num_workers=2, worker_init_fn=keep_some, mode=mode
        )
        assert numbers(loader) == [[index] for index in range(7)]


# 7.4, 7.5 -------------------------------------------------------------------------------------


def test_rule_7_4_a_mode_is_one_of_the_enum() -> None:
    with pytest.raises(ValueError, match="not a valid DataLoaderMode"):
        poptorch.DataLoader(make_options(), Counting(4), mode="Async")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("kind", [Counting, Sharded])
def test_rule_7_5_len(make: Any, mode: Any, drop_last: bool, kind: Any) -> None:
    loader = make(
        poptorch.DataLoader, make_options(iterations=2), kind(11), batch_size=2, mode=mode, drop_last=drop_last
    )
    assert len(loader) == (2 if drop_last else 3)
    assert len(list(loader)) == len(loader)


@pytest.mark.parametrize("mode", MODES)
def test_rule_7_5_an_iterable_dataset_needs_a_length(make: Any, mode: Any) -> None:
    loader = make(poptorch.DataLoader, make_options(), Stream(6), batch_size=2, mode=mode)
    with pytest.raises(TypeError):
        len(loader)
    assert numbers(loader) == [[0, 1], [2, 3], [4, 5]]


def test_rule_7_5_the_length_of_an_accessor(make: Any) -> None:
    loader = torch.utils.data.DataLoader(Counting(10), batch_size=5)
    assert len(make(poptorch.AsynchronousDataAccessor, loader)) == 2
    accessor = make(poptorch.AsynchronousDataAccessor, loader, rebatched_size=3)
    assert len(accessor) == 3
    assert numbers(accessor) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


# 7.10 -----------------------------------------------------------------------------------------


def test_rule_7_10_unsharded_workers_are_warned_of(log: Any) -> None:
    loader = poptorch.DataLoader(make_options(), Stream(2), num_workers=2)
    assert "Each of the 2 workers iterates over the whole IterableDataset" in log.text
    assert sorted(numbers(loader)) == [[0], [0], [1], [1]]


@pytest.mark.parametrize("mode", [SYNC, ASYNC])
def test_rule_7_10_a_worker_init_fn_shards(make: Any, log: Any, mode: Any) -> None:
    loader = make(poptorch.DataLoader, make_options(), Stream(12), num_workers=2, worker_init_fn=keep_some, mode=mode)
    assert not log.records
    for _ in range(2):
        assert sorted(join(numbers(loader))) == sorted([*range(5), *range(6)])


def test_rule_7_10_an_iterable_dataset_is_not_partitioned() -> None:
    options = make_options(processes=2)
    with pytest.raises(AssertionError, match="auto_distributed_partitioning=False"):
        poptorch.DataLoader(options, Stream(4))
    loader = poptorch.DataLoader(options, Stream(2), auto_distributed_partitioning=False)
    assert numbers(loader) == [[0], [1]]


# What programs also do ------------------------------------------------------------------------


def test_a_synchronous_loader_loads_nothing_in_advance() -> None:
    dataset = Watched(8)
    iterator = iter(poptorch.DataLoader(make_options(), dataset, batch_size=4))
    assert dataset.loads == 0
    next(iterator)
    assert dataset.loads == 4


def test_a_synchronous_loader_can_be_the_dataset_of_an_accessor(make: Any) -> None:
    loader = poptorch.DataLoader(make_options(iterations=2), Counting(9), batch_size=2, num_workers=1)
    accessor = make(poptorch.AsynchronousDataAccessor, loader)
    assert numbers(accessor) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert len(accessor) == 2


def test_an_asynchronous_loader_cannot_be_the_dataset_of_an_accessor(make: Any) -> None:
    loader = make(poptorch.DataLoader, make_options(), Images(4), mode=ASYNC)
    with pytest.raises(poptorch.Error, match="asynchronous itself"):
        poptorch.AsynchronousDataAccessor(loader)


def test_an_accessor_of_a_loader_with_a_rest_must_rebatch(make: Any) -> None:
    loader = poptorch.DataLoader(make_options(), Counting(4), batch_size=3, drop_last=False)
    with pytest.raises(AssertionError, match="set rebatched_size"):
        poptorch.AsynchronousDataAccessor(loader)
    assert numbers(make(poptorch.AsynchronousDataAccessor, loader, rebatched_size=2)) == [[0, 1], [2, 3]]
